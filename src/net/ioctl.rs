//! The ioctls of network interfaces, which none of the crates has: the only `unsafe` in `net`.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl};

// uapi/linux/sockios.h and uapi/linux/if_tun.h.
const SIOCGIFFLAGS: Opcode = 0x8913;
const SIOCGIFADDR: Opcode = 0x8915;
const SIOCGIFNETMASK: Opcode = 0x891b;
const SIOCGIFMTU: Opcode = 0x8921;
const TUNSETIFF: Opcode = 0x4004_54ca;
const TUNSETOFFLOAD: Opcode = 0x4004_54d0;
const TUNSETVNETHDRSZ: Opcode = 0x4004_54d8;

/// Bytes of the longest interface name (IFNAMSIZ without its NUL).
pub const MAX_NAME: usize = 15;

/// struct ifreq: a name, and a value to get or set (netdevice(7)).
#[repr(C, align(8))]
struct Request {
    name: [u8; 16],
    value: [u8; 24],
}

impl Request {
    fn new(name: &str) -> Self {
        let mut request = Self {
            name: [0; 16],
            value: [0; 24],
        };
        for (to, from) in request.name.iter_mut().zip(name.bytes().take(MAX_NAME)) {
            *to = from;
        }
        request
    }

    fn first<const N: usize>(&self) -> [u8; N] {
        std::array::from_fn(|n| self.value.get(n).copied().unwrap_or_default())
    }
}

/// A property of an interface.
#[derive(Clone, Copy)]
pub enum Question {
    /// Flags such as IFF_UP.
    Flags,
    /// The first IPv4 address.
    Address,
    /// Netmask of that address.
    Netmask,
    /// Bytes of the longest packet.
    Mtu,
}

/// The first bytes of a property of interface `name`, by any `socket`: a sockaddr_in for addresses,
/// a native integer for the others.
///
/// # Errors
/// There is no such interface, or it has no such property.
pub fn ask(socket: impl AsFd, name: &str, question: Question) -> io::Result<[u8; 8]> {
    let mut request = Request::new(name);
    // SAFETY: these calls read and write one struct ifreq and keep nothing of it.
    unsafe {
        match question {
            Question::Flags => ioctl(socket, Updater::<SIOCGIFFLAGS, _>::new(&mut request)),
            Question::Address => ioctl(socket, Updater::<SIOCGIFADDR, _>::new(&mut request)),
            Question::Netmask => ioctl(socket, Updater::<SIOCGIFNETMASK, _>::new(&mut request)),
            Question::Mtu => ioctl(socket, Updater::<SIOCGIFMTU, _>::new(&mut request)),
        }
    }?;
    Ok(request.first())
}

/// Attach an open /dev/net/tun to the interface `name`.
///
/// # Errors
/// Those of TUNSETIFF (drivers/net/tun.c).
pub fn attach(tun: impl AsFd, name: &str, flags: u16) -> io::Result<()> {
    let mut request = Request::new(name);
    for (to, from) in request.value.iter_mut().zip(flags.to_ne_bytes()) {
        *to = from;
    }
    // SAFETY: the call reads and writes one struct ifreq.
    unsafe { ioctl(tun, Updater::<TUNSETIFF, _>::new(&mut request)) }?;
    Ok(())
}

/// Set the size in bytes of the header before each frame.
///
/// # Errors
/// `tun` is not attached.
pub fn set_header(tun: impl AsFd, bytes: i32) -> io::Result<()> {
    // SAFETY: the call reads one int.
    unsafe { ioctl(tun, Setter::<TUNSETVNETHDRSZ, i32>::new(bytes)) }?;
    Ok(())
}

/// Set what frames that are read may need (TUN_F_..).
///
/// # Errors
/// The kernel does not support it.
pub fn set_offload(tun: impl AsFd, offload: usize) -> io::Result<()> {
    // SAFETY: the call takes a number.
    unsafe { ioctl(tun, IntegerSetter::<TUNSETOFFLOAD>::new_usize(offload)) }?;
    Ok(())
}
