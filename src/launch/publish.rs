//! The published ports of an image's machine, with those of the host that hull chooses.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use crate::net::Publish;
use crate::net::config::Protocol;

/// Most ports of a range.
const MAX_RANGE: u16 = 128;

/// A port of the guest for which the host's is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnyPort {
    /// The host address to listen on.
    pub address: Ipv4Addr,
    /// The guest port, 1 to 65535.
    pub guest: u16,
    /// The transport protocol.
    pub protocol: Protocol,
}

impl AnyPort {
    /// Parse ports of a guest as an image exposes them: `80`, `53/udp`, `8000-8010/tcp`.
    ///
    /// # Errors
    /// What the text must be instead, for the message behind its flag.
    pub fn parse_exposed(text: &str) -> Result<Vec<Self>, String> {
        let wrong =
            || format!("{text}: write PORT or FROM-TO, 1 to 65535, and /udp behind it for UDP");
        let (ports, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(wrong()),
        };
        let (from, to) = ports.split_once('-').unwrap_or((ports, ports));
        let number = |text: &str| text.parse::<u16>().ok().filter(|&port| port > 0);
        let (from, to) = number(from).zip(number(to)).ok_or_else(wrong)?;
        if from > to || to - from >= MAX_RANGE {
            return Err(format!("{text}: a range has 1 to {MAX_RANGE} ports"));
        }
        let port = |guest| Self {
            address: Ipv4Addr::UNSPECIFIED,
            guest,
            protocol,
        };
        Ok((from..=to).map(port).collect())
    }

    /// A port of the host that is free, which it is until the socket is closed.
    fn choose(self) -> io::Result<(Publish, Socket)> {
        let (socket, chosen) = match self.protocol {
            Protocol::Tcp => {
                let socket = TcpListener::bind((self.address, 0))?;
                let chosen = socket.local_addr()?;
                (Socket::Tcp(socket), chosen)
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind((self.address, 0))?;
                let chosen = socket.local_addr()?;
                (Socket::Udp(socket), chosen)
            }
        };
        let publish = Publish {
            address: self.address,
            host: chosen.port(),
            guest: self.guest,
            protocol: self.protocol,
        };
        Ok((publish, socket))
    }
}

/// Keeps a port until all are chosen.
enum Socket {
    Tcp(#[allow(dead_code)] TcpListener),
    Udp(#[allow(dead_code)] UdpSocket),
}

/// Ports of the host for `wanted`, all different.
///
/// # Errors
/// An address is none of this host's.
pub fn choose(wanted: &[AnyPort]) -> io::Result<Vec<Publish>> {
    let chosen: io::Result<Vec<_>> = wanted.iter().map(|port| port.choose()).collect();
    Ok(chosen?.into_iter().map(|(publish, _)| publish).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposed_ports_are_written_as_images_have_them() {
        let guests = |text| {
            let ports = AnyPort::parse_exposed(text);
            ports.map(|ports| ports.iter().map(|port| port.guest).collect::<Vec<_>>())
        };
        assert_eq!(guests("80"), Ok(vec![80]));
        assert_eq!(guests("8000-8002/tcp"), Ok(vec![8000, 8001, 8002]));
        let udp = AnyPort::parse_exposed("53/udp").expect("a port");
        assert_eq!(udp[0].protocol, Protocol::Udp);
        for bad in ["", "0", "65536", "2-1", "1-1000", "80/sctp", "a", "-1"] {
            assert!(guests(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn chosen_ports_differ() {
        let port = AnyPort {
            address: Ipv4Addr::LOCALHOST,
            guest: 80,
            protocol: Protocol::Tcp,
        };
        let chosen = choose(&[port; 20]).expect("ports");
        let numbers: std::collections::BTreeSet<_> = chosen.iter().map(|it| it.host).collect();
        assert_eq!(numbers.len(), 20);
    }
}
