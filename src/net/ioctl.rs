//! The ioctls of network interfaces, which no crate of the set has: the only `unsafe` here.

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

/// Most bytes of an interface's name (IFNAMSIZ, its NUL not counted).
pub const NAME_MOST: usize = 15;

/// struct ifreq: a name, and what is asked or told of the interface (netdevice(7)).
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
        for (to, from) in request.name.iter_mut().zip(name.bytes().take(NAME_MOST)) {
            *to = from;
        }
        request
    }

    fn first<const N: usize>(&self) -> [u8; N] {
        std::array::from_fn(|n| self.value.get(n).copied().unwrap_or_default())
    }
}

/// What an interface is asked.
#[derive(Clone, Copy)]
pub enum Question {
    /// Its flags (IFF_UP, ..).
    Flags,
    /// Its IPv4 address.
    Address,
    /// The mask of that.
    Netmask,
    /// Most bytes of a packet.
    Mtu,
}

/// The first bytes of the answer of interface `name`, asked over any `socket`: a sockaddr_in for
/// addresses, a native integer for the rest.
///
/// # Errors
/// There is no such interface, or it has no such thing.
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

/// Make an open /dev/net/tun the far end of interface `name`.
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

/// Have `bytes` of a header before each frame.
///
/// # Errors
/// `tun` is attached to nothing.
pub fn set_header(tun: impl AsFd, bytes: i32) -> io::Result<()> {
    // SAFETY: the call reads one int.
    unsafe { ioctl(tun, Setter::<TUNSETVNETHDRSZ, i32>::new(bytes)) }?;
    Ok(())
}

/// What the frames that are read may need (TUN_F_..).
///
/// # Errors
/// The kernel does not know it.
pub fn set_offload(tun: impl AsFd, offload: usize) -> io::Result<()> {
    // SAFETY: the call takes a number.
    unsafe { ioctl(tun, IntegerSetter::<TUNSETOFFLOAD>::new_usize(offload)) }?;
    Ok(())
}
