//! The stop flag: a signal ends all measurements of this process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use super::error::RunError;

/// Interval at which a wait checks the flag.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);

static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// The flag, for a signal handler to set: every run then ends with [`RunError::Stopped`] at once, and no
/// other begins.
pub fn flag() -> Arc<AtomicBool> {
    STOP.clone()
}

pub fn is_stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Sleeps, unless or until the flag is set.
pub fn pause(time: Duration) -> Result<(), RunError> {
    let start = Instant::now();
    while !is_stopped() {
        let left = time.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(POLL_INTERVAL));
    }
    Err(RunError::Stopped)
}
