//! A network's configuration, and how it is typed: `user`, `tap=NAME` or `network=NAME`, and options.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use super::address::Subnet;
use super::frame::{TCP, UDP};
use super::ioctl::MAX_NAME;
use super::policy::Policy;
use crate::config::table::{Separators, Table};
use crate::devices::rate::{Limits, RATE};
use crate::devices::virtio::net::Mac;

/// A network in a file as a table.
pub const TABLE: Table = Table::new(
    "net",
    &[],
    &[
        "user",
        "tap",
        "network",
        "ip",
        "gw",
        "alias",
        "publish",
        "host-loopback",
        "allow",
        "deny-private",
        "mac",
        "rate",
    ],
    Separators::Commas,
);

/// A network as the user asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Where its frames go.
    pub kind: Kind,
    /// The guest's MAC address; `None` for a random one.
    pub mac: Option<Mac>,
    /// How fast each direction may be.
    pub limits: Limits,
    /// What may leave by it; open with a tap device.
    pub policy: Policy,
}

/// The backend that takes the guest's frames on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A tap device, which must exist.
    Tap {
        /// The tap's interface name, at most `MAX_NAME` bytes.
        name: String,
        /// The guest's address; `None` for the address after the tap's own, if the tap has one.
        address: Option<Subnet>,
        /// The guest's default gateway.
        gateway: Option<Ipv4Addr>,
    },
    /// A passt process, which needs no rights on the host.
    User {
        /// Host ports that passt forwards to the guest.
        publish: Vec<Publish>,
        /// Whether the gateway's address leads to the host's loopback.
        host_loopback: bool,
    },
    /// A network that machines share, which `hull network create` made.
    Shared {
        /// Its name.
        network: String,
        /// Further names of the machine in it.
        aliases: Vec<String>,
        /// Host ports that lead to the guest.
        publish: Vec<Publish>,
    },
}

impl Config {
    /// Whether there may be rules on what leaves: its own, or those of the network.
    pub fn is_held(&self) -> bool {
        !self.policy.is_open() || matches!(self.kind, Kind::Shared { .. })
    }
}

impl Kind {
    /// The host ports that lead to the guest.
    pub fn publish(&self) -> &[Publish] {
        match self {
            Self::User { publish, .. } | Self::Shared { publish, .. } => publish,
            Self::Tap { .. } => &[],
        }
    }

    /// As [`Kind::publish`], to change them; `None` for a kind that has none.
    pub fn publish_mut(&mut self) -> Option<&mut Vec<Publish>> {
        match self {
            Self::User { publish, .. } | Self::Shared { publish, .. } => Some(publish),
            Self::Tap { .. } => None,
        }
    }
}

/// A host port that passt forwards to a guest port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// The host address to listen on.
    pub address: Ipv4Addr,
    /// The host port to listen on, 1 to 65535.
    pub host: u16,
    /// The guest port, 1 to 65535.
    pub guest: u16,
    /// The transport protocol of both ports.
    pub protocol: Protocol,
}

impl Publish {
    /// What is reached in the guest: the number of the protocol (RFC 1700), and its port.
    pub(super) fn reaches(&self) -> (u8, u16) {
        let protocol = match self.protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        };
        (protocol, self.guest)
    }
}

/// A transport protocol whose ports can be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// Written `/tcp`, the default.
    Tcp,
    /// Written `/udp`.
    Udp,
}

/// As it is typed behind its flag.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::User {
                publish,
                host_loopback,
            } => {
                f.write_str("user")?;
                for port in publish {
                    write!(f, ",{port}")?;
                }
                if *host_loopback {
                    f.write_str(",host-loopback")?;
                }
            }
            Kind::Shared {
                network,
                aliases,
                publish,
            } => {
                write!(f, "network={network}")?;
                for alias in aliases {
                    write!(f, ",alias={alias}")?;
                }
                for port in publish {
                    write!(f, ",{port}")?;
                }
            }
            Kind::Tap {
                name,
                address,
                gateway,
            } => {
                write!(f, "tap={name}")?;
                if let Some(Subnet { address, prefix }) = address {
                    write!(f, ",ip={address}/{prefix}")?;
                }
                if let Some(gateway) = gateway {
                    write!(f, ",gw={gateway}")?;
                }
            }
        }
        for allow in &self.policy.allow {
            write!(f, ",allow={allow}")?;
        }
        if self.policy.deny_private {
            f.write_str(",deny-private")?;
        }
        if let Some(mac) = self.mac {
            write!(f, ",mac={}", show_mac(mac))?;
        }
        if self.limits != Limits::default() {
            write!(f, ",rate={}", self.limits)?;
        }
        Ok(())
    }
}

/// A MAC address as it is written.
pub fn show_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let (address, host, guest) = (self.address, self.host, self.guest);
        write!(f, "publish={address}:{host}:{guest}/{protocol}")
    }
}

/// Names that mean something else to `hull run --network`, or to docker.
const RESERVED: [&str; 5] = ["none", "host", "bridge", "default", "user"];

const FORM: &str = "write tap=NAME, network=NAME or user, such as tap=tap0 or user,publish=8080:80";

/// Parse `tap=NAME[,ip=ADDR/PREFIX][,gw=ADDR]` or `user[,publish=..][,host-loopback]`, both with
/// `[,mac=MAC]` and `[,rate=..]`.
impl FromStr for Config {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let kind = kind(words.next().unwrap_or_default())?;
        let mut config = Config {
            kind,
            mac: None,
            limits: Limits::default(),
            policy: Policy::default(),
        };
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match (key, &mut config.kind) {
                ("mac", _) => config.mac = Some(parse_mac(value)?),
                ("rate", _) => config.limits = value.parse()?,
                ("publish", Kind::User { publish, .. } | Kind::Shared { publish, .. }) => {
                    publish.push(port(value)?);
                }
                ("allow" | "deny-private", Kind::User { .. } | Kind::Shared { .. })
                    if is_rule(word, &mut config.policy)? => {}
                ("alias", Kind::Shared { aliases, .. }) => aliases.push(alias(value)?),
                ("host-loopback", Kind::User { host_loopback, .. }) if word == key => {
                    *host_loopback = true;
                }
                ("ip", Kind::Tap { address, .. }) => *address = Some(subnet(value)?),
                ("gw", Kind::Tap { gateway, .. }) => {
                    let wrong =
                        || format!("gw={value}: write an IPv4 address, such as gw=172.16.0.1");
                    *gateway = Some(value.parse().map_err(|_| wrong())?);
                }
                (_, kind) => {
                    let own = match kind {
                        Kind::User { .. } => {
                            "publish=HOST:GUEST, host-loopback, allow=DEST, deny-private"
                        }
                        Kind::Tap { .. } => "ip=ADDR/PREFIX, gw=ADDR",
                        Kind::Shared { .. } => {
                            "alias=NAME, publish=HOST:GUEST, allow=DEST, deny-private"
                        }
                    };
                    return Err(format!(
                        "'{word}' is no option of this network; there are {own}, mac=MAC and {}",
                        RATE
                    ));
                }
            }
        }
        if let Kind::Tap {
            address: None,
            gateway: Some(gateway),
            ..
        } = config.kind
        {
            return Err(format!(
                "gw={gateway} without ip=: say which address the guest has, as ip=ADDR/PREFIX"
            ));
        }
        Ok(config)
    }
}

/// Add the rule `word` to `policy`; whether it is one.
fn is_rule(word: &str, policy: &mut Policy) -> Result<bool, String> {
    if let Some(value) = word.strip_prefix("allow=") {
        let allow = value.parse();
        let allow = allow.map_err(|reason: String| format!("allow={reason}"))?;
        policy.allow.push(allow);
        return Ok(true);
    }
    policy.deny_private |= word == "deny-private";
    Ok(word == "deny-private")
}

/// Parse where the frames of a network go, without options.
fn kind(word: &str) -> Result<Kind, String> {
    if word == "user" {
        return Ok(Kind::User {
            publish: Vec::new(),
            host_loopback: false,
        });
    }
    if let Some(name) = word.strip_prefix("network=") {
        return Ok(Kind::Shared {
            network: shared(name)?,
            aliases: Vec::new(),
            publish: Vec::new(),
        });
    }
    Ok(Kind::Tap {
        name: tap(word.strip_prefix("tap=").ok_or(FORM)?)?,
        address: None,
        gateway: None,
    })
}

/// Refuse networks that one machine cannot have together.
///
/// # Errors
/// Two have the same address, tap device or published port.
pub fn check<'a>(nets: impl Iterator<Item = &'a Config> + Clone) -> Result<(), String> {
    for (index, net) in nets.clone().enumerate() {
        net.policy
            .check_size()
            .map_err(|it| format!("allow: {it}"))?;
        let others = || nets.clone().take(index);
        if let Some(mac) = net.mac
            && others().any(|other| other.mac == Some(mac))
        {
            return Err(format!(
                "mac={}: two networks have this address; give each its own, or none",
                show_mac(mac)
            ));
        }
        let same = |other: &Config| is_same(&other.kind, &net.kind);
        if others().any(same) {
            return Err(match &net.kind {
                Kind::Shared { network, .. } => {
                    format!(
                        "network={network}: given twice; alias= gives a machine further names in it"
                    )
                }
                Kind::Tap { name, .. } => format!(
                    "tap={name}: given twice, and one machine is at its far end; make another tap \
                     device"
                ),
                Kind::User { .. } => continue,
            });
        }
        let publish = net.kind.publish();
        let before = others().flat_map(|other| other.kind.publish());
        let same = |one: &Publish, other: &Publish| {
            (one.address, one.host, one.protocol) == (other.address, other.host, other.protocol)
        };
        let twice = publish.iter().enumerate().find(|(index, one)| {
            let mut before = before.clone().chain(publish.iter().take(*index));
            before.any(|other| same(one, other))
        });
        if let Some((_, one)) = twice {
            return Err(format!(
                "{one}: the host's port is published twice; choose another"
            ));
        }
    }
    Ok(())
}

/// Whether two networks lead to the same place, where one machine is once.
fn is_same(one: &Kind, other: &Kind) -> bool {
    match (one, other) {
        (Kind::Tap { name: one, .. }, Kind::Tap { name: other, .. }) => one == other,
        (Kind::Shared { network: one, .. }, Kind::Shared { network: other, .. }) => one == other,
        _ => false,
    }
}

/// Parse the name of a network that machines share.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn shared(name: &str) -> Result<String, String> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let first = name.bytes().next();
    let fits = (2..=63).contains(&name.len())
        && first.is_some_and(|it| it.is_ascii_alphanumeric())
        && name.bytes().all(known)
        && !RESERVED.contains(&name);
    fits.then(|| name.into()).ok_or_else(|| {
        format!(
            "{name:?} is no name of a network: it has 2 to 63 letters, digits, '_', '.' and '-', the first a letter \
             or digit, and is none of none, host, bridge, default and user"
        )
    })
}

/// Parse a further name of a machine in a network.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn alias(name: &str) -> Result<String, String> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match (1..=63).contains(&name.len()) && name.bytes().all(known) {
        true => Ok(name.into()),
        false => Err(format!(
            "{name:?}: a name in a network has 1 to 63 letters, digits, '-', '.' and '_'"
        )),
    }
}

fn tap(name: &str) -> Result<String, String> {
    // What the kernel takes (net/core/dev.c, dev_valid_name), without characters that cannot be typed.
    let valid = |b: u8| b.is_ascii_graphic() && !b"/:%".contains(&b);
    match name.len() {
        1..=MAX_NAME if name.bytes().all(valid) && name != "." && name != ".." => Ok(name.into()),
        0 => Err(FORM.into()),
        1..=MAX_NAME => Err(format!(
            "tap={name}: an interface's name has no space, /, : or % and is not . or .."
        )),
        len => Err(format!(
            "tap={name}: {len} bytes, and an interface's name has at most {MAX_NAME}"
        )),
    }
}

/// Parse the address of a station.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn parse_mac(text: &str) -> Result<Mac, String> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2);
        let digits = part.filter(|part| part.bytes().all(|b| b.is_ascii_hexdigit()));
        *byte = digits
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or_else(|| format!("mac={text}: write six bytes, such as mac=02:00:00:00:00:01"))?;
    }
    let [first, ..] = mac;
    match parts.next() {
        Some(_) => Err(format!("mac={text}: a MAC address has six bytes")),
        None if first & 1 != 0 || mac == [0; 6] => Err(format!(
            "mac={text}: a group's address or none, not a station's; write an even first byte, \
             such as mac=02:00:00:00:00:01"
        )),
        None => Ok(mac),
    }
}

fn subnet(text: &str) -> Result<Subnet, String> {
    let wrong = || format!("ip={text}: write ADDRESS/PREFIX, such as ip=172.16.0.2/24");
    let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
    match prefix.parse() {
        Ok(prefix @ 1..=32)
            if !address.is_unspecified()
                && !address.is_multicast()
                && !address.is_broadcast()
                && !address.is_loopback() =>
        {
            Ok(Subnet { address, prefix })
        }
        _ => Err(wrong()),
    }
}

/// Parse `[ADDR:]HOST:GUEST[/tcp|/udp]`.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn port(text: &str) -> Result<Publish, String> {
    let wrong = || {
        format!(
            "publish={text}: write HOST:GUEST or ADDR:HOST:GUEST, ports from 1 to 65535, and /udp \
             behind it for UDP, such as publish=8080:80"
        )
    };
    let (ports, protocol) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return Err(wrong()),
    };
    let parts: Vec<&str> = ports.split(':').collect();
    let (address, host, guest) = match parts.as_slice() {
        [host, guest] => (Ok(Ipv4Addr::LOCALHOST), host, guest),
        [address, host, guest] => (address.parse(), host, guest),
        _ => return Err(wrong()),
    };
    let number = |text: &str| text.parse().ok().filter(|&port| port > 0);
    match (address, number(host), number(guest)) {
        (Ok(address), Some(host), Some(guest)) => Ok(Publish {
            address,
            host,
            guest,
            protocol,
        }),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_has_a_name_and_may_have_addresses() {
        let config: Result<Config, String> =
            str::parse("tap=tap0,mac=02:00:00:00:00:fe,ip=10.1.2.3/16,gw=10.1.0.1,rate=1M");
        let config = config.expect("parsed");
        assert_eq!(config.mac, Some([2, 0, 0, 0, 0, 0xfe]));
        assert_eq!(config.limits.bytes.map(|limit| limit.burst), Some(1 << 20));
        let kind = Kind::Tap {
            name: "tap0".into(),
            address: Some(Subnet {
                address: Ipv4Addr::new(10, 1, 2, 3),
                prefix: 16,
            }),
            gateway: Some(Ipv4Addr::new(10, 1, 0, 1)),
        };
        assert_eq!(config.kind, kind);
    }

    #[test]
    fn a_user_network_publishes_ports() {
        let config: Result<Config, String> =
            str::parse("user,publish=8080:80,publish=0.0.0.0:53:5353/udp,publish=1:2/tcp");
        let Kind::User {
            publish,
            host_loopback: false,
        } = config.expect("parsed").kind
        else {
            panic!("a user network");
        };
        let shown: Vec<String> = publish.iter().map(ToString::to_string).collect();
        let expected = [
            "publish=127.0.0.1:8080:80/tcp",
            "publish=0.0.0.0:53:5353/udp",
            "publish=127.0.0.1:1:2/tcp",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("", "write tap=NAME, network=NAME or user"),
            ("tap=", "write tap=NAME, network=NAME or user"),
            ("users", "write tap=NAME, network=NAME or user"),
            ("network=", "is no name of a network"),
            ("network=none", "is no name of a network"),
            ("network=ab,alias=", "a name in a network"),
            ("network=ab,host-loopback", "'host-loopback' is no option"),
            ("user,alias=a", "'alias=a' is no option"),
            ("tap=0123456789abcdef", "16 bytes"),
            ("tap=a/b", "an interface's name has no"),
            ("tap=t,publish=1:2", "'publish=1:2' is no option"),
            ("user,ip=1.2.3.4/5", "'ip=1.2.3.4/5' is no option"),
            ("tap=t,gw=1.2.3.4", "without ip="),
            ("tap=t,ip=1.2.3.4", "write ADDRESS/PREFIX"),
            ("tap=t,ip=1.2.3.4/33", "write ADDRESS/PREFIX"),
            ("tap=t,ip=127.0.0.1/8", "write ADDRESS/PREFIX"),
            ("user,mac=01:00:00:00:00:00", "a group's address"),
            ("user,mac=00:00:00:00:00:00", "a group's address"),
            ("user,mac=02:00:00:00:00", "six bytes"),
            ("user,mac=02:00:00:00:00:00:00", "six bytes"),
            ("user,mac=+2:00:00:00:00:00", "six bytes"),
            ("user,publish=80", "HOST:GUEST"),
            ("user,publish=0:80", "HOST:GUEST"),
            ("user,publish=80:65536", "HOST:GUEST"),
            ("user,publish=80:80/sctp", "HOST:GUEST"),
            ("user,publish=::1:80:80", "HOST:GUEST"),
            ("user,rate=0", "rate=0"),
            ("user,host-loopback=no", "'host-loopback=no' is no option"),
            ("tap=t,host-loopback", "'host-loopback' is no option"),
            ("tap=t,allow=a.org", "'allow=a.org' is no option"),
            ("user,allow=a.org:0", "from 1 to 65535"),
            ("user,deny-private=1", "'deny-private=1' is no option"),
        ] {
            let refusal = text.parse::<Config>().expect_err(text);
            assert!(refusal.contains(part), "{text}: {refusal}");
        }
    }

    #[test]
    fn nothing_is_given_twice() {
        for (one, other, part) in [
            ("tap=a", "tap=a", "given twice"),
            ("network=ab", "network=ab,alias=c", "given twice"),
            (
                "network=ab,publish=80:1",
                "user,publish=80:2",
                "published twice",
            ),
            (
                "tap=a,mac=02:00:00:00:00:01",
                "user,mac=02:00:00:00:00:01",
                "two networks",
            ),
            ("user,publish=80:1", "user,publish=80:2", "published twice"),
            ("user,publish=80:1,publish=80:2", "user", "published twice"),
        ] {
            let nets = [one, other].map(|text| text.parse::<Config>().expect(text));
            let refusal = check(nets.iter()).expect_err(part).to_string();
            assert!(refusal.contains(part), "{refusal}");
        }
        let nets = [
            "tap=a",
            "tap=b",
            "user,publish=80:1,publish=80:1/udp",
            "user",
        ];
        let nets = nets.map(|text| text.parse::<Config>().expect(text));
        check(nets.iter()).expect("all are different");
    }
}
