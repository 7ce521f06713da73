//! Machines that wait for a command, restored and before their first instruction.
//!
//! ```text
//!  hull run                     the socket of a machine                  a process of hull pool
//!    finds it by the template
//!    in its record (see fleet)  -- Action::Take, the command,       -->  waits
//!                                  and its three streams (SCM_RIGHTS)
//!                              <-- Reply::Taken                      ---  makes the streams its own
//!    hands on signals,          -- by the process, as kill(1) does   -->  runs
//!    the terminal's size too
//!    exits with that status    <-- Reply::Ended                      ---  ends
//! ```
//! A machine whose customer leaves before that is killed. Up to `Taken` nothing has happened that a
//! run of one's own could not follow, and up to `Reply::Unfit` nothing that the guest knows of.

#![forbid(unsafe_code)]

mod customer;
mod member;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::agent::{Exec, WindowSize};

pub use customer::{Outcome, Taken, ready, take};
pub use member::{Customer, wait};

/// How long either side may take for what it can do at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of a [`Command`]: what the agent takes, and its lengths.
const COMMAND_MOST: u32 = 8 << 20;
/// Most bytes of a reply.
const REPLY_MOST: u64 = 4096;

/// What a waiting machine is to run: an [`Exec`] without devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    argv: Vec<Vec<u8>>,
    env: Vec<Vec<u8>>,
    /// Rows and columns.
    terminal: Option<(u16, u16)>,
    /// Its standard input is a terminal in raw mode.
    pub raw: bool,
}

impl Command {
    /// Of what init would be told. Nothing if that is more than a command.
    pub fn of(exec: &Exec, raw: bool) -> Option<Self> {
        let bytes = |strings: &[OsString]| -> Vec<Vec<u8>> {
            let each = strings.iter().map(|string| string.as_bytes().to_vec());
            each.collect()
        };
        let alone = exec.networks.is_empty() && exec.mounts.is_empty() && exec.cwd.is_empty();
        alone.then(|| Self {
            argv: bytes(&exec.argv),
            env: bytes(&exec.env),
            terminal: exec.tty.map(|size| (size.rows, size.cols)),
            raw,
        })
    }

    /// What init is to be told.
    pub fn exec(&self) -> Exec {
        let strings = |bytes: &[Vec<u8>]| -> Vec<OsString> {
            let each = bytes.iter().cloned().map(OsString::from_vec);
            each.collect()
        };
        Exec {
            argv: strings(&self.argv),
            env: strings(&self.env),
            tty: self.terminal.map(|(rows, cols)| WindowSize { rows, cols }),
            ..Exec::default()
        }
    }
}

/// What a machine says to its customer, each in a line of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    /// The command is this machine's from now on.
    Taken,
    /// It ended, and hull would exit with this.
    Ended(u8),
    /// The guest was never told of it: another machine may be.
    Unfit,
}

impl Reply {
    fn line(self) -> Vec<u8> {
        let mut line = serde_json::to_vec(&self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// The next one; none if the machine is gone, or says something else.
    fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut line = Vec::new();
        BufReader::with_capacity(1, from)
            .take(REPLY_MOST)
            .read_until(b'\n', &mut line)?;
        Ok(serde_json::from_slice(&line)?)
    }
}
