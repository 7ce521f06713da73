//! A command in a machine that `hull pool` has ready.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};

use super::error::LaunchError;
use crate::config::{Device, Machine, Stop};
use crate::pool::{self, Command, Outcome};
use crate::templates::Key;
use crate::vmm::{self, Signals, Streams};

/// Whether a machine that waits can be `machine`: it has no device for which this process would be
/// needed, no name, and no terminal for which to wait. All else is in the key of its template.
pub fn fits(machine: &Machine, streams: &Streams) -> bool {
    !streams.in_background()
        && !streams.no_stdout
        && machine.name.is_none()
        && machine.stop == Stop::default()
        && machine.devices.iter().all(|device| *device == Device::Rng)
}

/// Run the command of `machine` in one that waits with the template `key`; the status to exit with.
/// `None` if there is none, or the guest never got the command.
///
/// # Errors
/// The machine was lost, after the guest may have begun.
pub fn run(
    key: &Key,
    machine: &Machine,
    streams: &Streams,
    signals: &mut Signals,
) -> Result<Option<u8>, LaunchError> {
    let size = streams.window_size().unwrap_or_default();
    let Some(exec) = vmm::exec(machine, &[], size) else {
        return Ok(None);
    };
    let machines = pool::ready(&key.to_string());
    if machines.is_empty() || exec.check().is_err() {
        return Ok(None);
    }
    let descriptors = [streams.stdin, streams.stdout, streams.stderr];
    let taken = Command::of(&exec, streams.is_raw())
        .and_then(|command| pool::take(&machines, &command, descriptors));
    drop(machines);
    let Some(taken) = taken else {
        return Ok(None);
    };
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(taken.as_fd(), PollFlags::IN),
        ];
        // If a signal interrupts it, that signal is handed on below.
        let _ = poll(&mut fds, None);
        let over = !fds[1].revents().is_empty();
        for signal in signals.take() {
            taken.signal(signal);
        }
        if over {
            break;
        }
    }
    let pid = taken.pid;
    match taken.outcome() {
        Outcome::Ended(status) => Ok(Some(status)),
        Outcome::Unfit => Ok(None),
        Outcome::Lost => Err(LaunchError::Lost { pid }),
    }
}
