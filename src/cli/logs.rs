//! `hull logs`: what a machine in the background has written.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};

use super::application::follow;
use super::network_log;
use crate::compose::plan::there;
use crate::fleet::kept::Kept;
use crate::fleet::log::{Driver, Line, LogReader};

/// How often a log is looked at that is followed.
const LOOK: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull logs web                              all that it has written
  hull logs -f --tail 10 web                 the last lines, and what follows
  hull logs --since 10m -t web               with the time of each line
  hull logs --network web                    what left it, and what was refused

A time is one of UTC (2026-11-30T07:00:00Z, 2026-11-30T07:00 or 2026-11-30), seconds
since 1970, or how long ago it was (90s, 10m, 2h).")]
pub struct Logs {
    /// The machine.
    #[arg(value_name = "NAME", required_unless_present = "project")]
    machine: Option<String>,
    /// All machines of this project of hull up, each line behind the name of its service.
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with_all = ["machine", "tail", "since", "until", "timestamps"]
    )]
    project: Option<String>,
    /// What left the machine and what was refused, where there are rules on that: the last time, how often, protocol,
    /// destination, name and verdict. A question for a name has the protocol dns.
    #[arg(
        long,
        conflicts_with_all = ["project", "follow", "tail", "since", "until", "timestamps"]
    )]
    network: bool,
    /// Go on with what it writes, until it ends.
    #[arg(short, long)]
    follow: bool,
    /// Begin with the last N lines.
    #[arg(short = 'n', long, value_name = "N|all", default_value = "all", value_parser = lines)]
    tail: Count,
    /// Leave out what is older.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<SystemTime>,
    /// Leave out what is newer.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<SystemTime>,
    /// Print the time of each line before it.
    #[arg(short, long)]
    timestamps: bool,
}

/// How many lines.
#[derive(Clone, Copy)]
struct Count(Option<usize>);

fn lines(text: &str) -> Result<Count, String> {
    match text {
        "all" => Ok(Count(None)),
        text => {
            let count = text
                .parse()
                .map_err(|_| "write a number of lines, or all".to_string());
            count.map(|count| Count(Some(count)))
        }
    }
}

/// Parse a time, or how long ago it was.
pub fn time(text: &str) -> Result<SystemTime, String> {
    for rest in ["", ":00", "T00:00:00"] {
        if let Ok(time) = humantime::parse_rfc3339_weak(&format!("{text}{rest}")) {
            return Ok(time);
        }
    }
    if let Ok(seconds) = text.parse::<f64>()
        && let Ok(since) = Duration::try_from_secs_f64(seconds)
    {
        return Ok(SystemTime::UNIX_EPOCH + since);
    }
    let ago = humantime::parse_duration(text).ok();
    let time = ago.and_then(|ago| SystemTime::now().checked_sub(ago));
    time.ok_or_else(|| "write a time as 2026-11-30T07:00:00Z, seconds since 1970, or 10m".into())
}

impl Logs {
    /// Prints the lines of the log.
    pub fn execute(self) -> anyhow::Result<()> {
        if let Some(project) = &self.project {
            let machines = there(project).into_iter();
            let machines: Vec<_> = machines.map(|it| (it.service, it.machine)).collect();
            return follow(&machines, self.follow).map(drop);
        }
        let kept = Kept::open(self.machine.as_deref().unwrap_or_default())?;
        if self.network {
            return network_log::show(&kept);
        }
        let name = &kept.record.name;
        match kept.record.driver {
            Driver::JsonFile => {}
            Driver::Journald => bail!(
                "machine {name} writes to the system's journal: journalctl CONTAINER_NAME={name} shows it"
            ),
            Driver::None => {
                bail!("machine {name} was started with --log-driver none, and has no log")
            }
        }
        let mut reader = LogReader::open(&kept.here()).context("its log cannot be read")?;
        if let Count(Some(count)) = self.tail {
            for line in reader.last(count)? {
                self.show(&line)?;
            }
        }
        loop {
            // In this order: what it wrote before its end is still shown.
            let over = !self.follow || !kept.runs();
            while let Some(line) = reader.next_line()? {
                self.show(&line)?;
            }
            let late = self.until.is_some_and(|until| until <= SystemTime::now());
            if over || late {
                return Ok(());
            }
            thread::sleep(LOOK);
        }
    }

    fn show(&self, line: &Line) -> anyhow::Result<()> {
        let written = humantime::parse_rfc3339(&line.time).ok();
        let early = self
            .since
            .zip(written)
            .is_some_and(|(since, at)| at < since);
        let late = self
            .until
            .zip(written)
            .is_some_and(|(until, at)| at > until);
        if early || late {
            return Ok(());
        }
        let time = match self.timestamps {
            true => format!("{} ", line.time),
            false => String::new(),
        };
        let text = format!("{time}{}", line.log);
        match line.stream.as_str() {
            "stderr" => io::stderr().lock().write_all(text.as_bytes())?,
            _ => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(text.as_bytes())?;
                stdout.flush()?;
            }
        }
        Ok(())
    }
}
