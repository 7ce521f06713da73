//! The agent's channel to the host: the virtio-console port of that name, or a UART.
//!
//! A port's name is in sysfs (Linux, drivers/char/virtio_console.c). It appears some time after the
//! driver has bound the device. The word `hull.agent` on the kernel command line makes init wait for
//! the port. With `hull.agent=ttyS1` it waits only if a driver has bound the device; otherwise the
//! channel is that terminal.

use core::ffi::CStr;

use hull_agent::PORT_NAME;

use crate::sys::{self, Fd};
use crate::text::join;

/// Time between two attempts in milliseconds; 500 attempts take 5 s.
pub const INTERVAL_MS: i64 = 10;
pub const ATTEMPTS: usize = 500;

/// The result of the search.
pub enum Search {
    /// The channel, open and non-blocking.
    Found(Fd),
    /// The command line names a channel that did not appear.
    Missing,
    /// The command line names no channel.
    None,
}

/// Look for the channel.
pub fn find() -> Search {
    if let Some(fd) = port() {
        return Search::Found(fd);
    }
    let mut line = [0; 4096];
    let len = match sys::open(c"/proc/cmdline", sys::O_RDONLY) {
        Ok(fd) => sys::read(fd, &mut line).unwrap_or(0),
        Err(_) => 0,
    };
    let mut words = line[..len].split(u8::is_ascii_whitespace);
    let Some(rest) = words.find_map(|word| word.strip_prefix(PORT_NAME.as_bytes())) else {
        return Search::None;
    };
    if let Some(name) = rest.strip_prefix(b"=")
        && !console_is_driven()
    {
        return terminal(name).map_or(Search::Missing, Search::Found);
    }
    for _ in 0..ATTEMPTS {
        sys::sleep_ms(INTERVAL_MS);
        if let Some(fd) = port() {
            return Search::Found(fd);
        }
    }
    Search::Missing
}

/// The port with the agent's name.
fn port() -> Option<Fd> {
    in_folder(c"/sys/class/virtio-ports", |ports, name| {
        if !name.starts_with(b"vport") || !is_agent(ports, name) {
            return None;
        }
        let mut path = [0; 64];
        let path = join(&mut path, &[b"/dev/", name])?;
        sys::open(path, sys::O_RDWR | sys::O_NONBLOCK).ok()
    })
}

/// Whether the kernel's driver has bound a console, whose ports appear sooner or later.
fn console_is_driven() -> bool {
    in_folder(c"/sys/bus/virtio/drivers/virtio_console", |_, name| {
        name.starts_with(b"virtio").then_some(())
    })
    .is_some()
}

/// The first result of `look`, which gets the folder and the name of each entry. Only the first 2 KiB
/// of entries are read.
fn in_folder<T>(folder: &CStr, look: impl Fn(Fd, &[u8]) -> Option<T>) -> Option<T> {
    let folder = sys::open(folder, sys::O_DIRECTORY).ok()?;
    let mut entries = [0; 2048];
    let len = sys::read_dir(folder, &mut entries).unwrap_or(0);
    let found = first_of(entries.get(..len).unwrap_or_default(), |name| {
        look(folder, name)
    });
    sys::close(folder);
    found
}

/// struct linux_dirent64: inode and offset, 8 bytes each, then its length, type and name.
fn first_of<T>(mut entries: &[u8], look: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    while let Some(&[a, b]) = entries.get(16..18) {
        let (entry, rest) = entries.split_at_checked(u16::from_le_bytes([a, b]).into())?;
        entries = rest;
        let name = entry.get(19..)?.split(|&byte| byte == 0).next()?;
        if let Some(found) = look(name) {
            return Some(found);
        }
    }
    None
}

fn is_agent(ports: Fd, port: &[u8]) -> bool {
    let (mut path, mut name) = ([0; 64], [0; 64]);
    let Some(path) = join(&mut path, &[port, b"/name"]) else {
        return false;
    };
    let Ok(fd) = sys::open_at(ports, path, sys::O_RDONLY) else {
        return false;
    };
    let len = sys::read(fd, &mut name).unwrap_or(0);
    sys::close(fd);
    name[..len].trim_ascii_end() == PORT_NAME.as_bytes()
}

/// struct termios as TCGETS and TCSETS have it.
#[derive(Default)]
#[repr(C)]
pub struct Termios {
    input: u32,
    output: u32,
    control: u32,
    pub local: u32,
    line: u8,
    characters: [u8; 19],
}

/// The terminal /dev/`name` in raw mode.
fn terminal(name: &[u8]) -> Option<Fd> {
    const VMIN: usize = 6;
    const B115200_CS8_CREAD_CLOCAL: u32 = 0o10_002 | 0o60 | 0o200 | 0o4000;
    let mut path = [0; 64];
    let path = join(&mut path, &[b"/dev/", name])?;
    let fd = sys::open(path, sys::O_RDWR | sys::O_NONBLOCK | sys::O_NOCTTY).ok()?;
    let mut raw = Termios {
        input: 0,
        output: 0,
        control: B115200_CS8_CREAD_CLOCAL,
        local: 0,
        line: 0,
        characters: [0; 19],
    };
    raw.characters[VMIN] = 1;
    sys::ioctl_with(fd, sys::TCSETS, &raw).ok()?;
    Some(fd)
}
