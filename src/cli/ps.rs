//! `hull ps`: running machines.

use std::thread;
use std::time::Duration;

use serde::Serialize;

use super::machines;
use super::output::{print, print_json, say};
use super::table::{Table, duration};
use crate::compose::plan::belongs;
use crate::config::size;
use crate::control::{self, Action, Answer, ControlError};
use crate::fleet::kept::{Kept, KeptEnd, KeptRecord};
use crate::fleet::{self, Found};
use crate::sandbox::{Role, spawn_scoped};
use crate::supervisor::control_group::Usage;

/// How long a machine may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull ps                                    names, states, memory, uptimes
  hull ps -a                                 also those that have ended
  hull ps --json                             the same for scripts
  hull rm $(hull ps -aq)                     all that have ended

States: running, paused, ready (it waits in a pool), starting, stopped (its hull
is, as by Ctrl-Z), and unresponsive for a hull that has not answered within a
second, exited for one that has ended (hull run -d). RESIDENT is what the host has in memory of the guest and of its hull.")]
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

/// A machine as a line of the table.
#[derive(Serialize)]
struct Line {
    name: String,
    pid: u32,
    state: String,
    cpus: u8,
    memory_bytes: u64,
    /// `None` if the machine does not answer.
    resident_bytes: Option<u64>,
    uptime_seconds: u64,
    version: String,
    /// How it ended, if it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u8>,
    /// What its control group uses and may use, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Usage>,
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
        if self.all {
            let ended = Kept::list().into_iter();
            lines.extend(ended.filter_map(|kept| Some(Line::ended(kept.end()?, kept.record))));
        }
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

impl Line {
    /// The line of a machine that has ended.
    fn ended(end: KeptEnd, record: KeptRecord) -> Self {
        Self {
            name: record.name,
            pid: 0,
            state: format!("exited ({})", end.status),
            cpus: 0,
            memory_bytes: 0,
            resident_bytes: None,
            uptime_seconds: end.finished.saturating_sub(record.created),
            version: String::new(),
            status: Some(end.status),
            limits: None,
        }
    }
}

/// The line of a machine; none if it has ended meanwhile.
fn line(machine: &Found) -> Option<Line> {
    let record = &machine.record;
    let mut line = Line {
        name: record.name.clone(),
        pid: record.pid,
        state: "unresponsive".into(),
        cpus: record.cpus,
        memory_bytes: record.memory_bytes,
        resident_bytes: None,
        uptime_seconds: record.age(),
        version: record.version.clone(),
        status: None,
        limits: Usage::of(&record.groups),
    };
    match control::ask_within(machine, Action::Status, ANSWER_TIMEOUT) {
        Ok(Answer::Status(status)) => {
            line.state = status.state;
            line.resident_bytes = status.resident_bytes;
            line.uptime_seconds = status.uptime_seconds;
        }
        Err(ControlError::Stopped { .. }) => line.state = "stopped".into(),
        Err(ControlError::Lost { .. }) if machine.is_stopped() => line.state = "stopped".into(),
        Err(ControlError::Lost { .. }) => {}
        Err(ControlError::Connect { error, .. })
            if error.kind() == std::io::ErrorKind::WouldBlock => {}
        Err(ControlError::Connect { .. } | ControlError::Ended { .. }) => {
            if machine.is_gone() {
                return None;
            }
            line.state = "starting".into();
        }
        // A machine of another version of hull; it runs all the same.
        Ok(_) | Err(_) => line.state = "unknown".into(),
    }
    Some(line)
}

fn draw(lines: &[Line]) -> String {
    let mut table = Table::default();
    table.row([
        "NAME", "PID", "STATE", "CPUS", "MEMORY", "RESIDENT", "UPTIME",
    ]);
    for line in lines {
        table.row([
            line.name.clone(),
            shown(line, line.pid.to_string()),
            line.state.clone(),
            shown(line, line.cpus.to_string()),
            shown(line, size::show(line.memory_bytes)),
            line.resident_bytes.map_or_else(|| "-".into(), size::show),
            duration(line.uptime_seconds),
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
            limits: None,
        };
        let first = draw(&[line]);
        assert_eq!(
            first,
            "NAME  PID   STATE    CPUS  MEMORY   RESIDENT  UPTIME\n\
             web   4242  running  2     128 MiB  43 MiB    1 minute\n"
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
            limits: None,
        };
        let second = draw(&[line]);
        assert!(
            second.ends_with("unresponsive  1     1 GiB   -         2 days\n"),
            "{second}"
        );
    }
}
