//! Rules on what may leave a machine, and how they are typed: HOST[:PORT] and CIDR[:PORT].

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::net::address::Subnet;

/// Most rules of a machine.
pub const MAX_ALLOWED: usize = 128;
/// Longest name of a host (RFC 1035, 2.3.4), as it is written.
const MAX_NAME: usize = 253;

/// What may leave a machine: all, unless it says something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// If there are any, nothing else may leave. At most [`MAX_ALLOWED`].
    pub allow: Vec<Allow>,
    /// Nothing leaves to addresses of private networks (RFC 1918 and the like), nor to those of the host.
    pub deny_private: bool,
}

/// A destination that is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allow {
    /// Where it is.
    pub to: Target,
    /// The port of TCP or UDP, 1 to 65535; all, and ping, if `None`.
    pub port: Option<u16>,
}

/// Where a destination is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// At these addresses.
    Addresses(Subnet),
    /// At the addresses of this name, in lower case.
    Name(String),
    /// At the addresses of the names below this one, in lower case: `*.NAME`.
    Below(String),
}

/// Why something does not leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// No rule allows it.
    NotAllowed,
    /// It is a private address, or one of the host's.
    Private,
    /// It is not what hull looks into: IPv6, fragments, options, other protocols and the like.
    Unknown,
    /// It claims to come from another machine.
    Forged,
}

/// Addresses that are private, or lead to the host or to many (RFC 6890, RFC 5771): no name leads to those of the
/// first part, and nothing does with [`Policy::deny_private`].
const NEVER: [Subnet; 6] = [
    subnet([0, 0, 0, 0], 8),
    subnet([127, 0, 0, 0], 8),
    subnet([169, 254, 0, 0], 16),
    subnet([192, 0, 0, 0], 24),
    subnet([224, 0, 0, 0], 4),
    subnet([240, 0, 0, 0], 4),
];

/// See [`NEVER`].
const PRIVATE: [Subnet; 5] = [
    subnet([10, 0, 0, 0], 8),
    subnet([172, 16, 0, 0], 12),
    subnet([192, 168, 0, 0], 16),
    subnet([100, 64, 0, 0], 10),
    subnet([198, 18, 0, 0], 15),
];

const fn subnet([a, b, c, d]: [u8; 4], prefix: u8) -> Subnet {
    Subnet {
        address: Ipv4Addr::new(a, b, c, d),
        prefix,
    }
}

impl Policy {
    /// Whether it holds nothing back.
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && !self.deny_private
    }

    /// Whether only some names may be asked for.
    pub fn limits_names(&self) -> bool {
        !self.allow.is_empty()
    }

    /// Whether the name, in lower case, may be asked for.
    pub fn allows_name(&self, name: &str) -> bool {
        self.allow.iter().any(|allow| allow.has_name(name))
    }

    /// Whether a name that is allowed may lead to `address`; `own` are addresses of the host.
    ///
    /// # Errors
    /// [`Reason::Private`].
    pub fn check_answer(&self, address: Ipv4Addr, own: &[Ipv4Addr]) -> Result<(), Reason> {
        let never = NEVER.iter().any(|it| it.contains(address));
        match never || self.deny_private && is_private(address, own) {
            true => Err(Reason::Private),
            false => Ok(()),
        }
    }

    /// Whether packets may leave to `address`, which some `names` have, and this port of it (`None`: they have none).
    /// `own` are addresses of the host. The name by which they may, if it is by a name.
    ///
    /// # Errors
    /// Why they may not.
    pub fn check<'a>(
        &self,
        address: Ipv4Addr,
        port: Option<u16>,
        mut names: impl Iterator<Item = &'a str>,
        own: &[Ipv4Addr],
    ) -> Result<Option<&'a str>, Reason> {
        let private = self.deny_private && is_private(address, own);
        let fits = |allow: &&Allow| allow.port.is_none() || allow.port == port;
        let explicit = self.allow.iter().filter(fits).any(|allow| match allow.to {
            // A private address is let out to by a rule on private addresses, and not by one on all.
            Target::Addresses(to) => to.contains(address) && (!private || is_within(to, own)),
            _ => false,
        });
        if explicit || self.allow.is_empty() && !private {
            return Ok(None);
        }
        if private {
            return Err(Reason::Private);
        }
        let by_name = |name: &&str| self.allow.iter().filter(fits).any(|it| it.has_name(name));
        let name = names.find(by_name).ok_or(Reason::NotAllowed)?;
        self.check_answer(address, own).map(|()| Some(name))
    }

    /// Refuse more rules than there may be.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_size(&self) -> Result<(), String> {
        match self.allow.len() {
            ..=MAX_ALLOWED => Ok(()),
            len => Err(format!(
                "{len} destinations, and {MAX_ALLOWED} are the most; *.NAME and ADDR/PREFIX allow several at once"
            )),
        }
    }
}

fn is_private(address: Ipv4Addr, own: &[Ipv4Addr]) -> bool {
    let known = NEVER.iter().chain(&PRIVATE);
    own.contains(&address) || known.into_iter().any(|it| it.contains(address))
}

/// Whether all of a network's addresses are private.
fn is_within(network: Subnet, own: &[Ipv4Addr]) -> bool {
    let mut known = NEVER.iter().chain(&PRIVATE);
    let host = network.prefix == 32 && own.contains(&network.address);
    host || known.any(|it| it.contains(network.address) && it.prefix <= network.prefix)
}

impl Allow {
    fn has_name(&self, name: &str) -> bool {
        match &self.to {
            Target::Addresses(_) => false,
            Target::Name(own) => own == name,
            Target::Below(own) => {
                let rest = name.strip_suffix(own.as_str());
                rest.is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
        }
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            Target::Addresses(to) if to.prefix == 32 => write!(f, "{}", to.address)?,
            Target::Addresses(to) => write!(f, "{}/{}", to.address, to.prefix)?,
            Target::Name(name) => f.write_str(name)?,
            Target::Below(name) => write!(f, "*.{name}")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Allow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |reason: &str| format!("{text:?}: {reason}");
        if text.contains("://") {
            return Err(wrong(
                "write the host alone, such as example.org or example.org:443",
            ));
        }
        if text.matches(':').count() > 1 {
            return Err(wrong(
                "an address of IPv6 cannot be allowed: nothing leaves by IPv6 with --allow",
            ));
        }
        let (host, port) = match text.split_once(':') {
            None => (text, None),
            Some((host, port)) => {
                let number = port.parse().ok().filter(|port| *port > 0);
                let number =
                    number.filter(|_: &u16| port.bytes().all(|byte| byte.is_ascii_digit()));
                let number = number.ok_or_else(|| wrong("a port is from 1 to 65535"))?;
                (host, Some(number))
            }
        };
        let to = target(host).map_err(wrong)?;
        Ok(Self { to, port })
    }
}

fn target(host: &str) -> Result<Target, &'static str> {
    const ADDRESSES: &str =
        "write ADDR or ADDR/PREFIX with a prefix from 0 to 32, such as 10.1.0.0/16";
    let (address, prefix) = match host.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (host, None),
    };
    if let Ok(address) = address.parse::<Ipv4Addr>() {
        let digits = |it: &&str| it.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = match prefix {
            None => 32,
            Some(prefix) => Some(prefix)
                .filter(digits)
                .and_then(|prefix| prefix.parse().ok())
                .filter(|prefix| *prefix <= 32)
                .ok_or(ADDRESSES)?,
        };
        return Ok(Target::Addresses(Subnet { address, prefix }.network()));
    }
    if prefix.is_some() {
        return Err(ADDRESSES);
    }
    if host == "*" {
        return Err("a name has no such part; 0.0.0.0/0 allows all addresses");
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    match name.strip_prefix("*.") {
        Some(above) => check_name(above).map(|()| Target::Below(above.into())),
        None => check_name(&name).map(|()| Target::Name(name)),
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let is_label = |it: &str| (1..=63).contains(&it.len()) && it.bytes().all(known);
    // RFC 1123, 2.1: the last label of a name is no number.
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit());
    match name.len() <= MAX_NAME && name.split('.').all(is_label) && !is_number {
        true => Ok(()),
        false => Err(
            "it is no address and no name of a host; write example.org, *.example.org, 10.1.2.3 or 10.1.0.0/16, and \
             :PORT behind it for one port alone",
        ),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(allow: &[&str], deny_private: bool) -> Policy {
        let allow = allow
            .iter()
            .map(|text| text.parse().expect("a destination"));
        Policy {
            allow: allow.collect(),
            deny_private,
        }
    }

    fn check(
        policy: &Policy,
        to: &str,
        port: Option<u16>,
        name: Option<&str>,
    ) -> Result<(), Reason> {
        let own = [Ipv4Addr::new(203, 0, 113, 5)];
        let to = to.parse().expect("an address");
        policy.check(to, port, name.into_iter(), &own).map(drop)
    }

    #[test]
    fn destinations_are_checked_as_they_are_typed() {
        for (text, shown) in [
            ("Example.ORG.", "example.org"),
            ("*.example.org:443", "*.example.org:443"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3:80", "10.1.2.3"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("localhost", "localhost"),
        ] {
            let allow: Allow = text.parse().expect(text);
            let again: Allow = allow.to_string().parse().expect("the same");
            assert_eq!(allow, again);
            assert!(allow.to_string().starts_with(shown), "{text}: {allow}");
        }
        for (text, part) in [
            ("", "no name of a host"),
            ("https://example.org", "write the host alone"),
            ("example.org:0", "from 1 to 65535"),
            ("example.org:65536", "from 1 to 65535"),
            ("example.org:+1", "from 1 to 65535"),
            ("example.org:", "from 1 to 65535"),
            ("10.0.0.0/33", "prefix from 0 to 32"),
            ("10.0.0.0/", "prefix from 0 to 32"),
            ("10.0.0.0/+8", "prefix from 0 to 32"),
            ("10.0.0/8", "prefix from 0 to 32"),
            ("10.0.0", "no name of a host"),
            ("300.1.2.3", "no name of a host"),
            ("*", "0.0.0.0/0"),
            ("a.*.org", "no name of a host"),
            ("a b", "no name of a host"),
            ("a..b", "no name of a host"),
            ("2001:db8::1", "IPv6"),
            ("[::1]:80", "IPv6"),
        ] {
            let refusal = text.parse::<Allow>().expect_err(text);
            assert!(refusal.contains(part), "{text}: {refusal}");
        }
        let many = Policy {
            allow: vec!["a.org".parse().expect("a name"); MAX_ALLOWED + 1],
            deny_private: false,
        };
        assert!(many.check_size().is_err());
    }

    #[test]
    fn what_is_not_named_does_not_leave() {
        let some = policy(
            &["example.org:443", "*.below.org", "192.0.2.0/24:25"],
            false,
        );
        assert_eq!(
            check(&some, "198.51.100.1", Some(443), Some("example.org")),
            Ok(())
        );
        for (to, port, name) in [
            ("198.51.100.1", Some(80), Some("example.org")),
            ("198.51.100.1", None, Some("example.org")),
            ("198.51.100.1", Some(443), Some("www.example.org")),
            ("198.51.100.1", Some(443), None),
            ("198.51.100.1", Some(443), Some("below.org")),
            ("198.51.100.1", Some(443), Some("notbelow.org")),
            ("192.0.2.9", Some(26), None),
        ] {
            let checked = check(&some, to, port, name);
            assert_eq!(checked, Err(Reason::NotAllowed), "{to} {port:?} {name:?}");
        }
        assert_eq!(check(&some, "192.0.2.9", Some(25), None), Ok(()));
        assert_eq!(
            check(&some, "198.51.100.1", None, Some("a.below.org")),
            Ok(())
        );
        // A name that leads to the host or to the metadata of a cloud does not.
        for to in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1"] {
            let checked = check(&some, to, Some(443), Some("example.org"));
            assert_eq!(checked, Err(Reason::Private), "{to}");
        }
        assert_eq!(
            check(&some, "10.1.2.3", Some(443), Some("example.org")),
            Ok(())
        );
    }

    #[test]
    fn private_addresses_need_a_rule_of_their_own() {
        let all = policy(&[], true);
        let mixed = policy(&["0.0.0.0/0", "10.1.0.0/16", "example.org"], true);
        for to in [
            "10.2.0.1",
            "172.31.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.251",
            "255.255.255.255",
            "203.0.113.5",
        ] {
            for policy in [&all, &mixed] {
                let checked = check(policy, to, Some(80), Some("example.org"));
                assert_eq!(checked, Err(Reason::Private), "{to}");
            }
        }
        for policy in [&all, &mixed] {
            assert_eq!(check(policy, "203.0.113.6", Some(80), None), Ok(()));
            assert_eq!(check(policy, "172.32.0.1", None, None), Ok(()));
        }
        assert_eq!(check(&mixed, "10.1.2.3", Some(80), None), Ok(()));
        assert_eq!(
            check(&policy(&["203.0.113.5"], true), "203.0.113.5", None, None),
            Ok(())
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_destination_or_refused(text in ".{0,40}") {
            if let Ok(allow) = text.parse::<Allow>() {
                prop_assert_eq!(allow.to_string().parse::<Allow>(), Ok(allow));
            }
        }
    }
}
