//! The command of an `Exec`: the arguments of execve(2), encoded so that the guest need not copy them.
//!
//! `flags u8 | rows u16 | cols u16 | argc u32 | envc u32 | capabilities u64 | groups u8 | limits u8 |
//! group u32... | limit (resource u8 | soft u64 | hard u64)... | cwd | user | argv... | env...`, integers
//! little endian, each string ended by a NUL.

use core::ffi::CStr;

use crate::Error;

/// Maximum length of an encoded command in bytes.
pub const MAX_COMMAND: usize = 2 << 20;

/// Maximum number of arguments and variables together.
pub const MAX_STRINGS: usize = 1 << 18;

/// Maximum number of additional groups.
pub const MAX_GROUPS: usize = 64;

/// Number of resources that getrlimit(2) knows.
pub const RESOURCES: usize = 16;

/// The value of [`CommandHeader::capabilities`] that takes none away.
pub const ALL_CAPABILITIES: u64 = u64::MAX;

const HEADER: usize = 23;
const LIMIT: usize = 17;

const TTY: u8 = 1;
const REPORT_START: u8 = 2;
const OWN: u8 = 4;

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Height in lines.
    pub rows: u16,
    /// Width in characters.
    pub cols: u16,
}

/// A limit of the command: setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The resource's number, below [`RESOURCES`].
    pub resource: u8,
    /// The limit.
    pub soft: u64,
    /// What it may be raised to.
    pub hard: u64,
}

/// The fixed part, before groups, limits and strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandHeader {
    /// Run on a terminal of this size; `None`: on three pipes.
    pub tty: Option<WindowSize>,
    /// Report by `Started` that it runs.
    pub report_start: bool,
    /// Run a function of init's own, which the arguments name, and not a program of the guest.
    pub own: bool,
    /// Number of arguments, at least one.
    pub argc: u32,
    /// Number of variables.
    pub envc: u32,
    /// The bounding set, bit N for capability N (capabilities(7)). A command of root has all that are in it.
    pub capabilities: u64,
    /// Number of additional groups, at most [`MAX_GROUPS`].
    pub groups: u8,
    /// Number of limits, at most [`RESOURCES`].
    pub limits: u8,
}

impl Default for CommandHeader {
    fn default() -> Self {
        Self {
            tty: None,
            report_start: false,
            own: false,
            argc: 0,
            envc: 0,
            capabilities: ALL_CAPABILITIES,
            groups: 0,
            limits: 0,
        }
    }
}

impl CommandHeader {
    /// Encode it. The groups, the limits and the strings follow: cwd, user, `argc` arguments, `envc`
    /// variables.
    pub fn encode(&self) -> [u8; HEADER] {
        let window = self.tty.unwrap_or_default();
        let flag = |set: bool, flag| if set { flag } else { 0 };
        let mut bytes = [0; HEADER];
        bytes[0] = flag(self.tty.is_some(), TTY)
            | flag(self.report_start, REPORT_START)
            | flag(self.own, OWN);
        bytes[1..3].copy_from_slice(&window.rows.to_le_bytes());
        bytes[3..5].copy_from_slice(&window.cols.to_le_bytes());
        bytes[5..9].copy_from_slice(&self.argc.to_le_bytes());
        bytes[9..13].copy_from_slice(&self.envc.to_le_bytes());
        bytes[13..21].copy_from_slice(&self.capabilities.to_le_bytes());
        bytes[21] = self.groups;
        bytes[22] = self.limits;
        bytes
    }

    fn decode(bytes: &[u8; HEADER]) -> Result<Self, Error> {
        let (start, [groups, limits]) = bytes.split_last_chunk().ok_or(CUT)?;
        let (start, capabilities) = start.split_last_chunk().ok_or(CUT)?;
        let &[flags, r0, r1, c0, c1, a0, a1, a2, a3, e0, e1, e2, e3] = start else {
            return Err(CUT);
        };
        if flags > TTY | REPORT_START | OWN {
            return Err(Error::WrongCommand("it has flags that do not exist"));
        }
        let window = WindowSize {
            rows: u16::from_le_bytes([r0, r1]),
            cols: u16::from_le_bytes([c0, c1]),
        };
        Ok(Self {
            tty: (flags & TTY != 0).then_some(window),
            report_start: flags & REPORT_START != 0,
            own: flags & OWN != 0,
            argc: u32::from_le_bytes([a0, a1, a2, a3]),
            envc: u32::from_le_bytes([e0, e1, e2, e3]),
            capabilities: u64::from_le_bytes(*capabilities),
            groups: *groups,
            limits: *limits,
        })
    }
}

const CUT: Error = Error::WrongCommand("its end is missing");

impl Limit {
    /// Encode it.
    pub fn encode(&self) -> [u8; LIMIT] {
        let mut bytes = [self.resource; LIMIT];
        bytes[1..9].copy_from_slice(&self.soft.to_le_bytes());
        bytes[9..].copy_from_slice(&self.hard.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; LIMIT]) -> Option<Self> {
        let (&resource, rest) = bytes.split_first()?;
        let (soft, rest) = rest.split_first_chunk()?;
        Some(Self {
            resource,
            soft: u64::from_le_bytes(*soft),
            hard: u64::from_le_bytes(*rest.first_chunk()?),
        })
    }
}

/// A decoded command, borrowed from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// Terminal, counts and capabilities.
    pub header: CommandHeader,
    groups: &'a [u8],
    limits: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Command<'a> {
    /// Decode a command and check that it has all that the header announces.
    ///
    /// # Errors
    /// [`Error::WrongCommand`] if there is no argument, the strings do not match the counts, or a
    /// limit of this module is exceeded.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Error> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>().ok_or(CUT)?;
        let header = CommandHeader::decode(header)?;
        let count = header.argc as usize + header.envc as usize;
        if header.argc == 0 {
            return Err(Error::WrongCommand("it has no arguments"));
        }
        if bytes.len() > MAX_COMMAND || count > MAX_STRINGS {
            return Err(Error::WrongCommand("it is too long"));
        }
        let (groups, limits) = (usize::from(header.groups), usize::from(header.limits));
        if groups > MAX_GROUPS || limits > RESOURCES {
            return Err(Error::WrongCommand("it has too many groups or limits"));
        }
        let (groups, rest) = rest.split_at_checked(4 * groups).ok_or(CUT)?;
        let (limits, strings) = rest.split_at_checked(LIMIT * limits).ok_or(CUT)?;
        let command = Self {
            header,
            groups,
            limits,
            strings,
        };
        if command
            .limits()
            .any(|it| usize::from(it.resource) >= RESOURCES)
        {
            return Err(Error::WrongCommand(
                "it limits a resource that does not exist",
            ));
        }
        let nuls = strings.iter().filter(|&&byte| byte == 0).count();
        if nuls != 2 + count || strings.last() != Some(&0) {
            return Err(Error::WrongCommand("strings and counts disagree"));
        }
        Ok(command)
    }

    /// The additional groups, beside those of the user.
    pub fn groups(&self) -> impl Iterator<Item = u32> + use<'a> {
        let groups = self.groups.chunks_exact(4);
        groups.filter_map(|group| group.first_chunk().map(|group| u32::from_le_bytes(*group)))
    }

    /// The limits.
    pub fn limits(&self) -> impl Iterator<Item = Limit> + use<'a> {
        let limits = self.limits.chunks_exact(LIMIT);
        limits.filter_map(|limit| limit.first_chunk().and_then(Limit::decode))
    }

    /// The working directory, empty for the root directory.
    pub fn cwd(&self) -> &'a CStr {
        self.strings().next().unwrap_or_default()
    }

    /// The user, as `NAME|UID[:GROUP|GID]`, or nothing for root; and more groups, a comma before each.
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
