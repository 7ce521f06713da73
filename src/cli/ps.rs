//! `hull ps`: running machines.

use std::thread;

use super::listed::{Line, line};
use super::machines;
use super::output::{print, print_json, say};
use super::status::Course;
use super::table::Table;
use crate::compose::plan::belongs;
use crate::config::size;
use crate::fleet;
use crate::fleet::kept::Kept;
use crate::sandbox::{Role, spawn_scoped};

/// The state of a machine that waits for its next start.
const RESTARTING: &str = "restarting";

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull ps                                    names, states, memory, uptimes
  hull ps -a                                 also those that have ended
  hull ps --json                             the same for scripts
  hull rm $(hull ps -aq)                     all that have ended

States: running, paused, ready (it waits in a pool), starting, stopped (its hull
is, as by Ctrl-Z), and unresponsive for a hull that has not answered within a
second, exited for one that has ended (hull run -d), restarting for one that waits for its next start. RESIDENT is what the host has in memory of the guest and of its hull.")]
pub struct Ps {
    /// Also those that ran in the background and have ended.
    #[arg(short, long)]
    all: bool,
    /// Print the names alone, a line each.
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
    /// Those of this project of hull up alone.
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
}

impl Ps {
    pub fn execute(self) -> anyhow::Result<()> {
        let found = fleet::list();
        let mut lines: Vec<Line> = thread::scope(|scope| {
            let each: Vec<_> = found
                .iter()
                .map(|machine| spawn_scoped(scope, Role::Client, || line(machine)))
                .collect();
            let lines = each.into_iter().filter_map(|one| one.ok()?.join().ok());
            lines.flatten().collect()
        });
        let there: Vec<String> = lines.iter().map(|line| line.name.clone()).collect();
        let kept = Kept::list().into_iter();
        let kept = kept.filter(|kept| !there.contains(&kept.record.name));
        let ended = kept.filter_map(|kept| Line::ended(Course::of(&kept), kept.record));
        lines.extend(ended.filter(|line| self.all || line.state == RESTARTING));
        if let Some(project) = &self.project {
            lines.retain(|line| belongs(&line.name, project));
        }
        if self.json {
            return print_json(&lines);
        }
        if self.quiet {
            let names: String = lines.iter().map(|line| line.name.clone() + "\n").collect();
            return print(names.as_bytes());
        }
        if lines.is_empty() {
            say(machines::NONE);
            return Ok(());
        }
        print(draw(&lines).as_bytes())
    }
}

fn draw(lines: &[Line]) -> String {
    let mut table = Table::default();
    table.row([
        "NAME", "PID", "STATE", "CPUS", "MEMORY", "RESIDENT", "STATUS",
    ]);
    for line in lines {
        table.row([
            line.name.clone(),
            shown(line, line.pid.to_string()),
            line.state.split(' ').next().unwrap_or_default().into(),
            shown(line, line.cpus.to_string()),
            shown(line, size::show(line.memory_bytes)),
            line.resident_bytes.map_or_else(|| "-".into(), size::show),
            line.course.clone(),
        ]);
    }
    table.draw()
}

/// `text`, if the machine runs.
fn shown(line: &Line, text: String) -> String {
    match line.status {
        None => text,
        Some(_) => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_is_known() {
        let mut line = Line {
            name: "web".into(),
            pid: 4242,
            state: "running".into(),
            cpus: 2,
            memory_bytes: 128 << 20,
            resident_bytes: Some(43 << 20),
            uptime_seconds: 61,
            version: "1".into(),
            status: None,
            course: "Up 1 minute".into(),
            health: None,
            restarts: None,
            limits: None,
        };
        let first = draw(&[line]);
        assert_eq!(
            first,
            "NAME  PID   STATE    CPUS  MEMORY   RESIDENT  STATUS\n\
             web   4242  running  2     128 MiB  43 MiB    Up 1 minute\n"
        );
        line = Line {
            name: "a-longer-name".into(),
            pid: 1,
            state: "unresponsive".into(),
            cpus: 1,
            memory_bytes: 1 << 30,
            resident_bytes: None,
            uptime_seconds: 200_000,
            version: "1".into(),
            status: None,
            course: "Up 2 days".into(),
            health: None,
            restarts: None,
            limits: None,
        };
        let second = draw(&[line]);
        assert!(
            second.ends_with("unresponsive  1     1 GiB   -         Up 2 days\n"),
            "{second}"
        );
    }
}
