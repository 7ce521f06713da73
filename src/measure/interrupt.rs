//! An end that somebody asks for while something is measured.
//!
//! Who measures has processes, folders and devices that have to go first, and a signal's usual effect
//! leaves no time for that: [`watch`] makes it a note, which [`timed`](super::timed) and all who take turns
//! look at.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static ASKED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// From now on SIGHUP, SIGINT and SIGTERM are noted, and do nothing else.
///
/// # Errors
/// The host's kernel refused.
pub fn watch() -> io::Result<()> {
    let asked = ASKED.get_or_init(Arc::default);
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register_usize(signal, asked.clone(), signal as usize)?;
    }
    Ok(())
}

/// The signal that came, if one did.
pub fn asked() -> Option<i32> {
    let number = ASKED.get()?.load(Ordering::Relaxed);
    (number != 0).then_some(number as i32)
}
