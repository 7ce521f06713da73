//! A command of `hull run` in a machine that `hull pool` has ready.

use std::os::fd::AsFd;

use anyhow::bail;
use rustix::event::{PollFd, PollFlags, poll};

use super::machine;
use crate::pool::{self, Command, Outcome};
use crate::templates::Key;
use crate::vmm::{Config, Console, Signals};

/// Whether a machine that waits can be the one of `config`: it has no device for which this process
/// would be needed, and no name.
pub fn fits(config: &Config) -> bool {
    config.disks.is_empty()
        && config.nets.is_empty()
        && config.shares.is_empty()
        && config.vsock.is_none()
        && config.balloon.is_none()
        && config.explain_exits.is_none()
        && config.name.is_none()
}

/// Run the command of `config` in a machine that waits with the template `key`; the status to exit
/// with. `None` if there is none, or the guest was never told of the command.
///
/// # Errors
/// The machine was lost, after the guest may have begun.
pub fn run(key: &Key, config: &Config, signals: &mut Signals) -> anyhow::Result<Option<u8>> {
    let Console::Agent { exec, .. } = &config.console else {
        return Ok(None);
    };
    let machines = pool::ready(&key.to_string());
    if machines.is_empty() || exec.check().is_err() {
        return Ok(None);
    }
    let raw = machine::raw(config)?;
    let streams = machine::streams(raw.is_some());
    let streams = [streams.stdin, streams.stdout, streams.stderr];
    let taken = Command::of(exec, raw.is_some())
        .and_then(|command| pool::take(&machines, &command, streams));
    drop(machines);
    let Some(taken) = taken else {
        return Ok(None);
    };
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(taken.as_fd(), PollFlags::IN),
        ];
        // Interrupted: by a signal, which is seen to below.
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
        Outcome::Lost => bail!("the machine of the pool (process {pid}) was killed"),
    }
}
