//! `hull stats`: what machines use.

use std::io::{self, IsTerminal};

use super::machines;
use super::output::{print, say};
use super::table::Table;
use super::usage::{Usage, measure};
use crate::config::size;
use crate::fleet::{self, Found};

/// Erases a terminal (ECMA-48, ED and CUP).
const ERASE: &str = "\x1b[2J\x1b[H";

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull stats                                 all machines, every second
  hull stats --no-stream web                 one, once

CPU is that of hull with its guest on the host, 100 % for each of the host's CPUs.
HOST is what they have there in memory: PSS, which divides what several share, or
RSS where only root may read that. GUEST is what the guest says of its own memory.
NETWORK and DISKS are bytes that passed through the devices, in both directions.
PROCESSES are those of the guest without init and the kernel's threads. What is
not known is -.")]
pub struct Stats {
    /// The machines: each its --name, or the process id of its hull; all that run when left out.
    #[arg(value_name = "NAME|PID")]
    machines: Vec<String>,
    /// Print it once.
    #[arg(long)]
    no_stream: bool,
    /// Print it as JSON, a line each time.
    #[arg(long)]
    json: bool,
}

impl Stats {
    /// Prints what machines use, until none of them runs.
    pub fn execute(self) -> anyhow::Result<()> {
        let mut first = true;
        loop {
            let found = self.find(first)?;
            if found.is_empty() {
                if first && !self.json {
                    say(machines::NONE);
                }
                return Ok(());
            }
            first = false;
            let lines = measure(&found);
            if self.json {
                print((serde_json::to_string(&lines)? + "\n").as_bytes())?;
            } else {
                let erase = !self.no_stream && io::stdout().is_terminal();
                let erase = if erase { ERASE } else { "" };
                print((erase.to_string() + &draw(&lines)).as_bytes())?;
            }
            if self.no_stream {
                return Ok(());
            }
        }
    }

    /// The machines; those that are named must run the `first` time.
    fn find(&self, first: bool) -> anyhow::Result<Vec<Found>> {
        if self.machines.is_empty() {
            return Ok(fleet::list());
        }
        let mut found = Vec::new();
        for name in &self.machines {
            match fleet::find(name) {
                Ok(machine) => found.push(machine),
                Err(error) if first => return Err(error.into()),
                Err(_) => {}
            }
        }
        Ok(found)
    }
}

fn draw(lines: &[Usage]) -> String {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".into(), size::show);
    let mut table = Table::default();
    table.row([
        "NAME",
        "CPU",
        "HOST",
        "GUEST",
        "NETWORK",
        "DISKS",
        "PROCESSES",
    ]);
    for line in lines {
        let guest = match (line.guest_memory_used_bytes, line.guest_memory_bytes) {
            (None, None) => "-".into(),
            (used, all) => format!("{} / {}", size(used), size(all)),
        };
        table.row([
            line.name.clone(),
            format!("{:.1} %", line.cpu_percent),
            size(line.host_memory_bytes),
            guest,
            size(line.network_bytes),
            size(line.disk_bytes),
            line.processes
                .map_or_else(|| "-".into(), |count| count.to_string()),
        ]);
    }
    table.draw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_is_known() {
        let mut line = Usage {
            name: "web".into(),
            cpu_percent: 12.345,
            host_memory_bytes: Some(43 << 20),
            guest_memory_used_bytes: Some(20 << 20),
            guest_memory_bytes: Some(120 << 20),
            network_bytes: Some(0),
            disk_bytes: Some(3 << 20),
            processes: Some(2),
        };
        assert_eq!(
            draw(&[line.clone()]),
            "NAME  CPU     HOST    GUEST             NETWORK  DISKS  PROCESSES\n\
             web   12.3 %  43 MiB  20 MiB / 120 MiB  0 B      3 MiB  2\n"
        );
        line.guest_memory_used_bytes = None;
        line.guest_memory_bytes = None;
        line.processes = None;
        let unknown = draw(&[line]);
        assert!(unknown.contains("43 MiB  -      0 B"), "{unknown}");
    }
}
