//! A tap device of the host: frames of the guest arrive there as if from a cable.
//!
//! hull neither creates nor configures tap devices; the administrator does, and assigns an owner.
//! The headers before frames are the guest's, unread: the kernel checks them as it does those of any
//! program (include/linux/virtio_net.h, virtio_net_hdr_to_skb; SKB_GSO_DODGY).

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use super::config::Subnet;
use super::error::NetError;
use super::ioctl::{self, Question};
use crate::devices::virtio::net::{HEADER, Offloads, Wire};
use crate::memory::transfer::Pieces;

const TUN: &str = "/dev/net/tun";

// uapi/linux/if_tun.h.
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO4: usize = 0x02;
const TUN_F_TSO6: usize = 0x04;
const TUN_F_TSO_ECN: usize = 0x08;
/// uapi/linux/if.h.
const IFF_UP: u16 = 1;

/// An attached tap device.
#[derive(Debug)]
pub struct Tap {
    /// Reads and writes frames.
    pub file: Arc<File>,
    /// Bytes of the longest packet.
    pub mtu: u16,
    /// The host's address on this interface.
    pub subnet: Option<Subnet>,
    /// The interface is up (IFF_UP).
    pub up: bool,
}

impl Tap {
    /// Attach to the tap device `name`, which must exist.
    ///
    /// # Errors
    /// It does not exist, is not a tap device, is in use or belongs to another user; or
    /// /dev/net/tun is missing.
    pub fn open(name: &str) -> Result<Self, NetError> {
        let other = |error: io::Error| NetError::Tap {
            name: name.into(),
            error,
        };
        let (family, kind) = (AddressFamily::INET, SocketType::DGRAM);
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None);
        let socket = socket.map_err(|errno| other(errno.into()))?;
        // Otherwise TUNSETIFF would make one.
        match netdevice::name_to_index(&socket, name) {
            Ok(_) => {}
            Err(Errno::NODEV) => return Err(NetError::TapMissing { name: name.into() }),
            Err(errno) => return Err(other(errno.into())),
        }
        let file = attach(name)?;
        ioctl::set_header(&file, HEADER as i32).map_err(other)?;
        ioctl::set_offload(&file, 0).map_err(other)?;
        let integer = |question| {
            let answer = ioctl::ask(&socket, name, question);
            answer.map(|[a, b, c, d, ..]| i32::from_ne_bytes([a, b, c, d]))
        };
        let mtu = integer(Question::Mtu).map_err(other)?;
        let flags = integer(Question::Flags).map_err(other)?;
        Ok(Self {
            file: Arc::new(file),
            mtu: mtu.clamp(68, 65535) as u16,
            subnet: subnet(&socket, name),
            up: flags as u16 & IFF_UP != 0,
        })
    }

    /// The wire for the network device.
    pub fn wire(&self) -> Box<dyn Wire> {
        Box::new(TapWire(self.file.clone()))
    }
}

/// An open /dev/net/tun, attached to the tap device `name`.
fn attach(name: &str) -> Result<File, NetError> {
    let mut options = File::options();
    options.read(true).write(true);
    options.custom_flags(OFlags::NONBLOCK.bits() as i32);
    let file = options.open(TUN).map_err(|error| NetError::Tun {
        name: name.into(),
        hint: match error.kind() {
            ErrorKind::PermissionDenied => {
                "`chmod 666 /dev/net/tun` (as root) lets users open the devices that are theirs"
            }
            _ => "`modprobe tun` (as root) makes it; a container must be given it",
        },
        error,
    })?;
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    let attached = ioctl::attach(&file, name, flags).map_err(|error| {
        let name = name.into();
        match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => NetError::TapInUse { name },
            Some(Errno::PERM) => NetError::TapNotOurs { name },
            Some(Errno::INVAL) => NetError::NotATap { name },
            _ => NetError::Tap { name, error },
        }
    });
    attached.map(|()| file)
}

/// The host's address on the interface `name`, if it is in a network with others.
fn subnet(socket: impl AsFd + Copy, name: &str) -> Option<Subnet> {
    // struct sockaddr_in: family, port, address.
    let address = |question| {
        let answer = ioctl::ask(socket, name, question);
        answer
            .map(|[.., a, b, c, d]| Ipv4Addr::new(a, b, c, d))
            .ok()
    };
    let address_and_mask = address(Question::Address).zip(address(Question::Netmask));
    let subnet = address_and_mask.map(|(address, mask)| Subnet {
        address,
        prefix: mask.to_bits().leading_ones() as u8,
    });
    subnet.filter(|subnet| subnet.prefix > 0)
}

struct TapWire(Arc<File>);

impl Wire for TapWire {
    fn send(&mut self, frame: &Pieces) -> io::Result<()> {
        match frame.write(&*self.0) {
            // The tap device has been deleted.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BADFD) => {
                Err(ErrorKind::BrokenPipe.into())
            }
            sent => sent.map(drop),
        }
    }

    fn flush(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    fn receive(&mut self, room: &Pieces) -> io::Result<usize> {
        again(|| room.read(&*self.0))
    }

    fn receive_buffered(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        again(|| (&*self.0).read(buffer))
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let Offloads {
            checksum,
            tso4,
            tso6,
            ecn,
        } = offloads;
        let flags = [
            (checksum, TUN_F_CSUM),
            (tso4, TUN_F_TSO4),
            (tso6, TUN_F_TSO6),
            (ecn, TUN_F_TSO_ECN),
        ];
        let flags = flags.iter().filter(|(on, _)| *on).map(|(_, flag)| flag);
        ioctl::set_offload(&*self.0, flags.sum())
    }
}

/// Read again after a signal.
fn again(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    let read =
        retry_on_intr(|| read().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)));
    Ok(read?)
}
