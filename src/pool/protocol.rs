//! What a machine of a pool and the `hull run` that uses it exchange.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::agent::{Exec, Privileges, WindowSize};

/// Timeout for each step that either side can do at once.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest encoded [`Command`] in bytes: what the agent accepts, and the lengths.
pub const MAX_COMMAND: u32 = 8 << 20;
/// Longest reply in bytes.
const MAX_REPLY: u64 = 4096;

/// A command for a waiting machine: an [`Exec`] without networks and mounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    argv: Vec<Vec<u8>>,
    env: Vec<Vec<u8>>,
    /// The terminal's rows and columns.
    terminal: Option<(u16, u16)>,
    /// Whether its standard input is a terminal in raw mode.
    pub raw: bool,
}

impl Command {
    /// The command of `exec`; `None` if `exec` needs networks, mounts, a working directory or a user.
    pub fn of(exec: &Exec, raw: bool) -> Option<Self> {
        let bytes = |strings: &[OsString]| -> Vec<Vec<u8>> {
            let each = strings.iter().map(|string| string.as_bytes().to_vec());
            each.collect()
        };
        let alone = exec.networks.is_empty()
            && exec.root.is_none()
            && exec.mounts.is_empty()
            && exec.cwd.is_empty()
            && exec.user.is_empty()
            && exec.privileges == Privileges::default();
        alone.then(|| Self {
            argv: bytes(&exec.argv),
            env: bytes(&exec.env),
            terminal: exec.tty.map(|size| (size.rows, size.cols)),
            raw,
        })
    }

    /// What init is to run.
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

/// What a machine reports to the `hull run` that brought its command, each in a line of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// The machine runs the command.
    Taken,
    /// The command ended; hull exits with this status.
    Ended(u8),
    /// The guest was never told of the command: another machine may run it.
    Unfit,
}

impl Reply {
    /// The reply as a line.
    pub fn line(self) -> Vec<u8> {
        let mut line = serde_json::to_vec(&self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// Read the next reply.
    ///
    /// # Errors
    /// The machine is gone, or sent something else.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut line = Vec::new();
        BufReader::with_capacity(1, from)
            .take(MAX_REPLY)
            .read_until(b'\n', &mut line)?;
        Ok(serde_json::from_slice(&line)?)
    }
}
