//! The command of an `Exec`: the arguments of execve(2), encoded so that the guest need not copy them.
//!
//! `tty u8 | rows u16 | cols u16 | argc u32 | envc u32 | cwd | user | argv... | env...`, integers
//! little endian, each string ended by a NUL.

use core::ffi::CStr;

use crate::Error;

/// Maximum length of an encoded command in bytes.
pub const MAX_COMMAND: usize = 2 << 20;

/// Maximum number of arguments and variables together.
pub const MAX_STRINGS: usize = 1 << 18;

const HEADER: usize = 13;

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Height in lines.
    pub rows: u16,
    /// Width in characters.
    pub cols: u16,
}

/// The fixed part, before the strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandHeader {
    /// Run on a terminal of this size; `None`: on three pipes.
    pub tty: Option<WindowSize>,
    /// Number of arguments, at least one.
    pub argc: u32,
    /// Number of variables.
    pub envc: u32,
}

impl CommandHeader {
    /// Encode it. The strings follow: cwd, user, `argc` arguments, `envc` variables.
    pub fn encode(&self) -> [u8; HEADER] {
        let window = self.tty.unwrap_or_default();
        let mut bytes = [0; HEADER];
        bytes[0] = self.tty.is_some().into();
        bytes[1..3].copy_from_slice(&window.rows.to_le_bytes());
        bytes[3..5].copy_from_slice(&window.cols.to_le_bytes());
        bytes[5..9].copy_from_slice(&self.argc.to_le_bytes());
        bytes[9..13].copy_from_slice(&self.envc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER]) -> Result<Self, Error> {
        let &[tty, r0, r1, c0, c1, a0, a1, a2, a3, e0, e1, e2, e3] = bytes;
        let window = WindowSize {
            rows: u16::from_le_bytes([r0, r1]),
            cols: u16::from_le_bytes([c0, c1]),
        };
        let tty = match tty {
            0 => None,
            1 => Some(window),
            _ => return Err(Error::WrongCommand("tty is neither 0 nor 1")),
        };
        Ok(Self {
            tty,
            argc: u32::from_le_bytes([a0, a1, a2, a3]),
            envc: u32::from_le_bytes([e0, e1, e2, e3]),
        })
    }
}

/// A decoded command, borrowed from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// Terminal and counts.
    pub header: CommandHeader,
    strings: &'a [u8],
}

impl<'a> Command<'a> {
    /// Decode a command and check that it has every string that the header announces.
    ///
    /// # Errors
    /// [`Error::WrongCommand`] if there is no argument, the strings do not match the counts, or a
    /// limit of this module is exceeded.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Error> {
        let Some((header, strings)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(Error::WrongCommand("its end is missing"));
        };
        let header = CommandHeader::decode(header)?;
        let count = header.argc as usize + header.envc as usize;
        if header.argc == 0 {
            return Err(Error::WrongCommand("it has no arguments"));
        }
        if bytes.len() > MAX_COMMAND || count > MAX_STRINGS {
            return Err(Error::WrongCommand("it is too long"));
        }
        let nuls = strings.iter().filter(|&&byte| byte == 0).count();
        if nuls != 2 + count || strings.last() != Some(&0) {
            return Err(Error::WrongCommand("strings and counts disagree"));
        }
        Ok(Self { header, strings })
    }

    /// The working directory, empty for the root directory.
    pub fn cwd(&self) -> &'a CStr {
        self.strings().next().unwrap_or_default()
    }

    /// The user, as `NAME|UID[:GROUP|GID]`; empty for root.
    pub fn user(&self) -> &'a CStr {
        self.strings().nth(1).unwrap_or_default()
    }

    /// The arguments, the program's name first.
    pub fn argv(&self) -> impl Iterator<Item = &'a CStr> + Clone + use<'a> {
        self.strings().skip(2).take(self.header.argc as usize)
    }

    /// The environment, `NAME=value` each.
    pub fn env(&self) -> impl Iterator<Item = &'a CStr> + Clone + use<'a> {
        self.strings().skip(2 + self.header.argc as usize)
    }

    fn strings(&self) -> impl Iterator<Item = &'a CStr> + Clone + use<'a> {
        let mut rest = self.strings;
        core::iter::from_fn(move || {
            let string = CStr::from_bytes_until_nul(rest).ok()?;
            rest = rest.get(string.count_bytes() + 1..)?;
            Some(string)
        })
    }
}
