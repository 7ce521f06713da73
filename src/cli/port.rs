//! `hull port`: the published ports of a machine.

use anyhow::bail;

use super::output::print;
use crate::control::{self, Action, Answer};
use crate::fleet;
use crate::inspect::Topic;
use crate::net;
use crate::net::Publish;
use crate::net::config::Protocol;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull port web                              all: 80/tcp -> 0.0.0.0:8080
  hull port web 80                           where port 80 of its guest is: 0.0.0.0:8080")]
pub struct Port {
    /// The machine: its --name, or the process id of its hull.
    #[arg(value_name = "NAME|PID")]
    machine: String,
    /// A port of the guest, of TCP unless it says otherwise.
    #[arg(value_name = "PORT[/PROTOCOL]", value_parser = parse)]
    port: Option<(u16, Protocol)>,
}

fn parse(text: &str) -> Result<(u16, Protocol), String> {
    let (port, protocol) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
        Some((port, "udp")) => (port, Protocol::Udp),
        Some(_) => return Err("a protocol is tcp or udp".into()),
    };
    let port = port.parse().ok().filter(|port| *port > 0);
    let port = port.ok_or("write a port from 1 to 65535, as 80 or 53/udp")?;
    Ok((port, protocol))
}

impl Port {
    /// Prints the ports.
    pub fn execute(self) -> anyhow::Result<()> {
        let found = fleet::find(&self.machine)?;
        let action = Action::Inspect {
            topic: Topic::Config,
            vcpu: None,
        };
        let Answer::Inspection(seen) = control::ask(&found, action)? else {
            bail!("unexpected reply from {}", self.machine);
        };
        let Some(written) = seen.config else {
            bail!("machine {} does not tell its configuration", self.machine);
        };
        let networks = written.texts("net").into_iter();
        let networks = networks.filter_map(|text| text.parse::<net::Config>().ok());
        let ports = networks.flat_map(|network| network.kind.publish().to_vec());
        let mut text = String::new();
        for Publish {
            address,
            host,
            guest,
            protocol,
        } in ports
        {
            let named = match protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            match self.port {
                None => text += &format!("{guest}/{named} -> {address}:{host}\n"),
                Some(wanted) if wanted == (guest, protocol) => {
                    text += &format!("{address}:{host}\n");
                }
                Some(_) => {}
            }
        }
        if let (true, Some((port, protocol))) = (text.is_empty(), self.port) {
            let protocol = if protocol == Protocol::Udp {
                "udp"
            } else {
                "tcp"
            };
            bail!(
                "no public port '{port}/{protocol}' published for {}",
                self.machine
            );
        }
        print(text.as_bytes())
    }
}
