//! `hull events`: what happened to machines.

use std::thread;
use std::time::{Duration, SystemTime};

use super::logs::time;
use super::output::print;
use crate::fleet::events::{Event, Events as Reader};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull events                                from now on
  hull events --since 1h --until 0s          of the last hour
  hull events -f name=web -f action=die      when machine web ends

The events of machines in the background are create, start, die with its status
as exitCode, health_status and destroy; and of all machines what verbs of hull did: attach,
exec, kill, stop, pause, unpause, restart and rename. Some 2 MiB of them are kept.")]
pub struct Events {
    /// Begin with what happened since then.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<SystemTime>,
    /// End at that time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<SystemTime>,
    /// Only those of a machine (name=web) or of a kind (action=die). May be repeated: one of each key must fit.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<(Key, String)>,
    /// Print each as a line of JSON.
    #[arg(long)]
    json: bool,
}

/// What a filter looks at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Name,
    Action,
}

fn filter(text: &str) -> Result<(Key, String), String> {
    match text.split_once('=') {
        Some(("name" | "container", name)) => Ok((Key::Name, name.into())),
        Some(("action" | "event", action)) => Ok((Key::Action, action.into())),
        _ => Err("write name=NAME or action=ACTION".into()),
    }
}

impl Events {
    /// Prints the events.
    pub fn execute(self) -> anyhow::Result<()> {
        let since = self.since.unwrap_or_else(SystemTime::now);
        let mut reader = Reader::open();
        loop {
            let over = self.until.is_some_and(|until| until <= SystemTime::now());
            while let Some(event) = reader.next_event()? {
                let at = humantime::parse_rfc3339(&event.time).unwrap_or(SystemTime::UNIX_EPOCH);
                let late = self.until.is_some_and(|until| at > until);
                if at >= since && !late && self.fits(&event) {
                    self.show(&event)?;
                }
            }
            if over {
                return Ok(());
            }
            thread::sleep(LOOK);
        }
    }

    fn fits(&self, event: &Event) -> bool {
        let fits = |key, value: &str| {
            let mut wanted = self.filter.iter().filter(|(of, _)| *of == key).peekable();
            // `health_status` is each of `health_status: healthy` and the like.
            let kind = value.split(": ").next();
            wanted.peek().is_none()
                || wanted.any(|(_, text)| text == value || Some(text.as_str()) == kind)
        };
        fits(Key::Name, &event.name) && fits(Key::Action, &event.action)
    }

    fn show(&self, event: &Event) -> anyhow::Result<()> {
        if self.json {
            return print((serde_json::to_string(event)? + "\n").as_bytes());
        }
        let more = event.attributes.iter();
        let more: Vec<_> = more.map(|(key, value)| format!("{key}={value}")).collect();
        let more = match more.is_empty() {
            true => String::new(),
            false => format!(" ({})", more.join(", ")),
        };
        let Event {
            time, action, name, ..
        } = event;
        print(format!("{time} {action} {name}{more}\n").as_bytes())
    }
}
