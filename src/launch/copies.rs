//! Several machines from one snapshot, each a process of its own.

use std::io;
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::error::LaunchError;
use super::run::OWN_ERROR;
use crate::vmm::Signals;

/// Between two looks at the processes.
const INTERVAL: Duration = Duration::from_millis(100);

/// Start `copies` processes by `start`, which is given each one's number from 1, and wait for all of
/// them; they get the signals that come. The first status that is not 0, or 0.
///
/// # Errors
/// One cannot be started; those before it are killed then.
pub fn run(
    copies: u16,
    signals: Signals,
    start: impl Fn(u16) -> io::Result<Child>,
) -> Result<u8, LaunchError> {
    let mut children = Vec::new();
    for copy in 1..=copies {
        match start(copy) {
            Ok(child) => children.push(child),
            Err(error) => {
                children.iter_mut().for_each(|child| {
                    let _ = child.kill();
                    let _ = child.wait();
                });
                return Err(LaunchError::Spawn(error));
            }
        }
    }
    wait(children, signals)
}

fn wait(mut running: Vec<Child>, mut signals: Signals) -> Result<u8, LaunchError> {
    let mut status = 0;
    while !running.is_empty() {
        for signal in signals.wait(INTERVAL) {
            let Some(signal) = Signal::from_named_raw(signal) else {
                continue;
            };
            for child in &running {
                let _ = kill_process(Pid::from_child(child), signal);
            }
        }
        let mut left = Vec::new();
        for mut child in running {
            let ended = child.try_wait();
            match ended.map_err(LaunchError::system("wait for a machine"))? {
                None => left.push(child),
                Some(ended) if status == 0 => {
                    status = ended.code().unwrap_or(OWN_ERROR.into()) as u8;
                }
                Some(_) => {}
            }
        }
        running = left;
    }
    Ok(status)
}
