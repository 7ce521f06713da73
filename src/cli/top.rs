//! `hull top`: the processes of a guest.

use super::output::{print, print_json};
use super::table::Table;
use crate::config::size;
use crate::fleet;
use crate::launch::guest_report::{self, GuestProcess};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull top web                               what runs in machine web

It is what the guest says, which needs no program for it. Left out are init and
the kernel's threads.")]
pub struct Top {
    /// The machine: its --name, or the process id of its hull.
    #[arg(value_name = "NAME|PID")]
    machine: String,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

impl Top {
    /// Prints the processes.
    pub fn execute(self) -> anyhow::Result<()> {
        let report = guest_report::ask(&fleet::find(&self.machine)?)?;
        if self.json {
            return print_json(&report.processes);
        }
        print(draw(&report.processes).as_bytes())
    }
}

fn draw(processes: &[GuestProcess]) -> String {
    let mut table = Table::default();
    table.row(["UID", "PID", "PPID", "STATE", "MEMORY", "TIME", "CMD"]);
    for process in processes {
        let seconds = process.cpu_seconds;
        table.row([
            process.uid.to_string(),
            process.pid.to_string(),
            process.ppid.to_string(),
            process.state.to_string(),
            size::show(process.resident_bytes),
            format!("{}:{:02}", seconds / 60, seconds % 60),
            process.command.clone(),
        ]);
    }
    table.draw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_a_line() {
        let shell = GuestProcess {
            uid: 1000,
            pid: 45,
            ppid: 1,
            state: 'S',
            resident_bytes: 512 << 10,
            cpu_seconds: 75,
            command: "sh -c true".into(),
        };
        assert_eq!(
            draw(&[shell]),
            "UID   PID  PPID  STATE  MEMORY   TIME  CMD\n\
             1000  45   1     S      512 KiB  1:15  sh -c true\n"
        );
    }
}
