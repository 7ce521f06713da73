//! The flags of `hull run` for networks that machines of images share, with docker's meaning.

use anyhow::bail;

use super::headings::IMAGE;
use crate::net::config::{alias, shared};

#[derive(clap::Args)]
#[command(next_help_heading = IMAGE)]
pub struct NetworkFlags {
    /// A network of hull network create, in which machines find each other by their names; or none. May be repeated;
    /// with further names of the machine there: name=NAME,alias=NAME. Without it, as --net user.
    #[arg(
        long = "network",
        value_name = "NAME|none",
        value_parser = parse,
        requires = "image"
    )]
    networks: Vec<Wanted>,
    /// A further name of the machine in its networks. May be repeated.
    #[arg(long, value_name = "NAME", value_parser = alias, requires = "networks")]
    network_alias: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    None,
    Shared(String, Vec<String>),
}

impl NetworkFlags {
    /// Whether the machine has no network.
    ///
    /// # Errors
    /// It is to have one, too.
    pub fn alone(&self) -> anyhow::Result<bool> {
        let alone = self.networks.contains(&Wanted::None);
        if alone && (self.networks.len() > 1 || !self.network_alias.is_empty()) {
            bail!("--network none: a machine with another network has one; leave none out");
        }
        Ok(alone)
    }

    /// The networks, each with the machine's further names.
    pub fn shared(&self) -> Vec<(String, Vec<String>)> {
        let shared = self.networks.iter().filter_map(|wanted| match wanted {
            Wanted::None => None,
            Wanted::Shared(name, own) => {
                Some((name.clone(), [own.as_slice(), &self.network_alias].concat()))
            }
        });
        shared.collect()
    }
}

fn parse(text: &str) -> Result<Wanted, String> {
    if text == "none" {
        return Ok(Wanted::None);
    }
    let (mut name, mut aliases) = (None, Vec::new());
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("name", value)) => name = Some(value),
            Some(("alias", value)) => aliases.push(alias(value)?),
            None if part == text => name = Some(part),
            _ => return Err("write NAME, name=NAME,alias=NAME or none".into()),
        }
    }
    let name = name.ok_or("write name=NAME")?;
    Ok(Wanted::Shared(shared(name)?, aliases))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_written_as_docker_has_it() {
        let wanted = |name: &str, aliases: &[&str]| {
            let aliases = aliases.iter().map(ToString::to_string);
            Ok(Wanted::Shared(name.into(), aliases.collect()))
        };
        assert_eq!(parse("none"), Ok(Wanted::None));
        assert_eq!(parse("web"), wanted("web", &[]));
        assert_eq!(
            parse("name=web,alias=a,alias=b"),
            wanted("web", &["a", "b"])
        );
        for bad in [
            "",
            "host",
            "web,alias=a",
            "alias=a",
            "name=web,x=1",
            "name=web,alias=",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
