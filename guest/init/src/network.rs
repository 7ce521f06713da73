//! Configures network interfaces for the host: netdevice(7), struct rtentry of
//! uapi/linux/route.h, resolv.conf(5).

use core::sync::atomic::{AtomicBool, Ordering};

use hull_agent::Interface;

use crate::channel::{ATTEMPTS, INTERVAL_MS};
use crate::sys::{self, Fd};
use crate::text::decimal;

const AF_INET: usize = 2;
const SOCK_DGRAM: usize = 2;
const SIOCADDRT: u32 = 0x890b;
const SIOCGIFNAME: u32 = 0x8910;
const SIOCSIFFLAGS: u32 = 0x8914;
const SIOCSIFADDR: u32 = 0x8916;
const SIOCSIFNETMASK: u32 = 0x891c;
const SIOCSIFHWADDR: u32 = 0x8924;
const SIOCGIFHWADDR: u32 = 0x8927;
const IFF_UP: u8 = 1;
const RTF_UP_GATEWAY: u8 = 1 | 2;
/// Highest interface index to look at.
const MAX_INDEX: u8 = 64;

/// struct ifreq: a name of 16 bytes, then a value.
#[repr(C, align(8))]
struct Request([u8; 40]);

impl Request {
    /// Set the value to a sockaddr_in.
    fn set_address(&mut self, address: [u8; 4]) {
        self.0[16..24].copy_from_slice(&socket_address(address));
    }
}

fn socket_address([a, b, c, d]: [u8; 4]) -> [u8; 8] {
    [AF_INET as u8, 0, 0, 0, a, b, c, d]
}

/// Configure `interface`, and its DNS server.
pub fn set_up(interface: &Interface) -> sys::Result<()> {
    let socket = sys::socket(AF_INET, SOCK_DGRAM)?;
    let done = set_up_with(socket, interface);
    sys::close(socket);
    done?;
    match interface.dns {
        Some(dns) => name_server(dns, interface.index == Some(0)),
        None => Ok(()),
    }
}

fn set_up_with(socket: Fd, interface: &Interface) -> sys::Result<()> {
    let mut request = find(socket, interface)?;
    request.set_address(interface.address);
    sys::ioctl_with(socket, SIOCSIFADDR, &request)?;
    request.set_address(interface.netmask());
    sys::ioctl_with(socket, SIOCSIFNETMASK, &request)?;
    request.0[16..24].fill(0);
    request.0[16] = IFF_UP;
    sys::ioctl_with(socket, SIOCSIFFLAGS, &request)?;
    if let Some(gateway) = interface.gateway {
        // struct rtentry: a word, then addresses for destination, gateway and mask, then flags.
        #[repr(C, align(8))]
        struct Route([u8; 120]);
        let mut route = Route([0; 120]);
        for (at, address) in [(8, [0; 4]), (24, gateway), (40, [0; 4])] {
            route.0[at..at + 8].copy_from_slice(&socket_address(address));
        }
        route.0[56] = RTF_UP_GATEWAY;
        match sys::ioctl_with(socket, SIOCADDRT, &route) {
            // The route exists already.
            Ok(_) | Err(sys::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Find the interface by its MAC address, or else by its index; then it gets the address. A driver
/// that was loaded as a module may need some time to create the interface.
fn find(socket: Fd, interface: &Interface) -> sys::Result<Request> {
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sys::sleep_ms(INTERVAL_MS);
        }
        for index in 1..=MAX_INDEX {
            let mut request = Request([0; 40]);
            request.0[16] = index;
            if sys::ioctl_into(socket, SIOCGIFNAME, &mut request).is_err() {
                continue;
            }
            // struct sockaddr: a type, then the address.
            let there = sys::ioctl_into(socket, SIOCGIFHWADDR, &mut request).is_ok();
            if there && request.0[18..24] == interface.mac {
                return Ok(request);
            }
        }
        if let Some(index) = interface.index {
            return readdress(socket, index, interface.mac);
        }
    }
    Err(sys::ENODEV)
}

/// Set the MAC address of eth`index`, which must be down for that.
fn readdress(socket: Fd, index: u8, mac: [u8; 6]) -> sys::Result<Request> {
    let (digits, zeros) = decimal(index);
    let mut request = Request([0; 40]);
    request.0[..3].copy_from_slice(b"eth");
    request.0[3..6 - zeros].copy_from_slice(&digits[zeros..]);
    sys::ioctl_with(socket, SIOCSIFFLAGS, &request)?;
    // Reads the address with its type before it.
    sys::ioctl_into(socket, SIOCGIFHWADDR, &mut request)?;
    request.0[18..24].copy_from_slice(&mac);
    sys::ioctl_with(socket, SIOCSIFHWADDR, &request)?;
    Ok(request)
}

/// Whether /etc/resolv.conf is init's.
static WRITTEN: AtomicBool = AtomicBool::new(false);

/// Write `dns` to /etc/resolv.conf: behind those of other interfaces, unless it is of the `first` one of a machine
/// that was restored.
fn name_server(dns: [u8; 4], first: bool) -> sys::Result<()> {
    let _ = sys::mkdir(c"/etc");
    let path = c"/etc/resolv.conf";
    let file = match WRITTEN.swap(true, Ordering::Relaxed) && !first {
        true => sys::append(path)?,
        false => sys::create(path, 0o644)?,
    };
    let mut line = [0; 32];
    let mut len = 0;
    let mut put = |bytes: &[u8]| {
        for byte in bytes {
            line[len] = *byte;
            len += 1;
        }
    };
    put(b"nameserver ");
    for (n, part) in dns.into_iter().enumerate() {
        if n > 0 {
            put(b".");
        }
        let (digits, zeros) = decimal(part);
        put(&digits[zeros..]);
    }
    put(b"\n");
    let written = sys::write(file, &line[..len]);
    sys::close(file);
    written.map(drop)
}
