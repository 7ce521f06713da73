//! More flags of `hull run` for an image: rights, name servers and exposed ports, with docker's meaning.

use std::net::IpAddr;

use super::headings::IMAGE;
use crate::launch::capabilities::{self, Capabilities};
use crate::launch::image::Wishes;
use crate::launch::publish::AnyPort;

/// Most name servers that a resolver asks (MAXNS of resolv.conf(5)).
const MAX_SERVERS: usize = 3;

#[derive(clap::Args)]
#[command(next_help_heading = IMAGE)]
pub struct More {
    /// A capability more for CMD as root, or ALL. May be repeated. Example: --cap-add NET_ADMIN
    #[arg(long, value_name = "NAME", value_parser = capabilities::parse, requires = "image")]
    cap_add: Vec<u64>,
    /// A capability less, or ALL. May be repeated.
    #[arg(long, value_name = "NAME", value_parser = capabilities::parse, requires = "image")]
    cap_drop: Vec<u64>,
    /// A group more for CMD, by a name of the image's /etc/group or a number. May be repeated.
    #[arg(long, value_name = "GROUP", value_parser = parse_group, requires = "image")]
    group_add: Vec<String>,
    /// A name server in place of the network's. May be repeated.
    #[arg(long, value_name = "ADDR", requires = "image")]
    dns: Vec<IpAddr>,
    /// A domain in which names are looked up; . for none. May be repeated.
    #[arg(long, value_name = "DOMAIN", value_parser = parse_word, requires = "image")]
    dns_search: Vec<String>,
    /// An option of resolv.conf. May be repeated. Example: --dns-option ndots:2
    #[arg(long, value_name = "OPTION", value_parser = parse_word, requires = "image")]
    dns_option: Vec<String>,
    /// Ports that -P publishes, beside those that the image exposes. May be repeated.
    #[arg(long, value_name = "PORT[-PORT][/udp]", value_parser = parse_exposed, requires = "image")]
    expose: Vec<Exposed>,
    /// Publish all exposed ports, each on a free port of the host: hull port lists them.
    #[arg(short = 'P', long, requires = "image")]
    publish_all: bool,
}

/// The ports of a flag.
#[derive(Clone)]
struct Exposed(Vec<AnyPort>);

impl More {
    /// `wishes` with what the flags say.
    pub fn add_to(&self, mut wishes: Wishes) -> Wishes {
        let all = |bits: &[u64]| bits.iter().fold(0, |all, bit| all | bit);
        wishes.capabilities = Capabilities {
            add: all(&self.cap_add),
            drop: all(&self.cap_drop),
        };
        wishes.groups.clone_from(&self.group_add);
        wishes.resolver = self.resolver();
        wishes.publish_all = self.publish_all;
        if self.publish_all {
            let exposed = self.expose.iter().flat_map(|Exposed(ports)| ports);
            wishes.any_ports.extend(exposed);
        }
        wishes
    }

    fn resolver(&self) -> String {
        let servers = self.dns.iter().take(MAX_SERVERS);
        let mut text: String = servers
            .map(|server| format!("nameserver {server}\n"))
            .collect();
        let domains: Vec<_> = self
            .dns_search
            .iter()
            .filter(|it| *it != ".")
            .cloned()
            .collect();
        if !domains.is_empty() {
            text += &format!("search {}\n", domains.join(" "));
        }
        if !self.dns_option.is_empty() {
            text += &format!("options {}\n", self.dns_option.join(" "));
        }
        text
    }
}

fn parse_group(text: &str) -> Result<String, String> {
    match text.is_empty() || text.contains([',', ':', '\n', '\0']) {
        false => Ok(text.into()),
        true => Err("write the name of a group or its number".into()),
    }
}

fn parse_word(text: &str) -> Result<String, String> {
    let plain = |it: char| !it.is_whitespace() && !it.is_control();
    match (1..=255).contains(&text.len()) && text.chars().all(plain) {
        true => Ok(text.into()),
        false => Err("it is one word of 1 to 255 bytes".into()),
    }
}

fn parse_exposed(text: &str) -> Result<Exposed, String> {
    AnyPort::parse_exposed(text).map(Exposed)
}
