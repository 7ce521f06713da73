//! The standard streams between a machine in the background and its keeper.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::{Errno, ioctl_fionbio};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::fleet::kept::KeptRecord;
use crate::fleet::log::{LogWriter, MAX_LINE};

/// The size of a terminal to which nobody is attached.
const SIZE: Winsize = Winsize {
    ws_row: 24,
    ws_col: 80,
    ws_xpixel: 0,
    ws_ypixel: 0,
};

/// The machine's standard streams.
pub struct Theirs {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// The keeper's ends of them, which do not block.
pub struct Ours {
    /// Of standard input, if it has one.
    pub input: Option<OwnedFd>,
    /// Of standard output, or the terminal.
    pub output: OwnedFd,
    /// Of standard error.
    pub error: OwnedFd,
    /// Of which the command's terminal follows the size.
    pub terminal: Option<OwnedFd>,
}

/// New streams for the machine of `record`.
///
/// # Errors
/// No descriptor is left.
pub fn channels(record: &KeptRecord) -> io::Result<(Theirs, Ours)> {
    let (error, stderr) = pipe()?;
    if record.terminal {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let output = openpt(flags)?;
        unlockpt(&output)?;
        let stdin = ioctl_tiocgptpeer(&output, flags)?;
        // Before hull does it: nothing that is typed may be echoed.
        let mut raw = tcgetattr(&stdin)?;
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        tcsetwinsize(&stdin, SIZE)?;
        ioctl_fionbio(&output, true)?;
        let stdout = stdin.try_clone()?;
        let ours = Ours {
            input: record.input.then(|| output.try_clone()).transpose()?,
            terminal: Some(output.try_clone()?),
            output,
            error,
        };
        let theirs = Theirs {
            stdin,
            stdout,
            stderr,
        };
        return Ok((theirs, ours));
    }
    let (output, stdout) = pipe()?;
    let (stdin, input) = match record.input {
        false => (null()?.into(), None),
        true => {
            let (stdin, input) = pipe()?;
            ioctl_fionbio(&input, true)?;
            (stdin, Some(input))
        }
    };
    let ours = Ours {
        input,
        output,
        error,
        terminal: None,
    };
    let theirs = Theirs {
        stdin,
        stdout,
        stderr,
    };
    Ok((theirs, ours))
}

/// A pipe: where to read and where to write.
///
/// # Errors
/// No descriptor is left.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

/// /dev/null, to read and write.
///
/// # Errors
/// It cannot be opened.
pub fn null() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/null")
}

/// A stream of the machine's, and the line that has no end yet.
pub struct Stream {
    name: &'static str,
    /// `None` at its end.
    pub fd: Option<OwnedFd>,
    line: Vec<u8>,
}

impl Stream {
    /// The stream of this name in the log, which is read from `fd`.
    pub fn new(name: &'static str, fd: OwnedFd) -> Self {
        Self {
            name,
            fd: Some(fd),
            line: Vec::new(),
        }
    }

    /// What is to be read, if it is ready, at most `most` bytes.
    pub fn read(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; most];
        let read = self.fd.as_ref().map(|fd| rustix::io::read(fd, &mut bytes));
        match read {
            Some(Ok(len @ 1..)) => bytes.truncate(len),
            Some(Err(Errno::INTR | Errno::AGAIN)) => bytes.clear(),
            _ => {
                bytes.clear();
                self.fd = None;
            }
        }
        bytes
    }

    /// Add `bytes` to the log, in whole lines; at the end of the stream also what is left.
    pub fn log(&mut self, bytes: &[u8], log: &mut LogWriter) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            for piece in part.chunks(MAX_LINE) {
                self.line.extend_from_slice(piece);
                if piece.ends_with(b"\n") || self.line.len() >= MAX_LINE {
                    // A full disk loses lines, and not the machine.
                    let _ = log.add(self.name, &std::mem::take(&mut self.line));
                }
            }
        }
        if self.fd.is_none() && !self.line.is_empty() {
            let _ = log.add(self.name, &std::mem::take(&mut self.line));
        }
    }
}
