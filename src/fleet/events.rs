//! What happened to machines: lines of JSON in a file that all of this user's hulls append to.
//!
//! ```text
//!  STATE/hull/.events/    lock  locked (flock) while a line is added
//!                         log   the newest events, and the older ones as log.1 (see `log`)
//! ```
//! There is no daemon: who does something to a machine writes it down, its keeper or a verb of hull. Two files
//! of 1 MiB are kept.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::log::{Driver, LogReader, LogWriter, Rotation};
use super::place::place;

/// A machine's name cannot begin so.
const FOLDER: &str = ".events";
const LOCK: &str = "lock";
/// Most characters of an attribute.
const MAX_TEXT: usize = 1024;
const ROTATION: Rotation = Rotation {
    max_size: Some(1 << 20),
    max_file: 2,
};

/// Something that happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it was, as RFC 3339 has it.
    #[serde(default)]
    pub time: String,
    /// What: create, start, attach, exec, kill, stop, pause, unpause, die, restart, rename, destroy or
    /// `health_status: healthy`, as docker names it.
    pub action: String,
    /// The machine's name.
    pub name: String,
    /// More about it, as `exitCode`.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// Write down that `action` happened to the machine `name`. What cannot be written is lost, and the machine goes
/// on.
pub fn record(action: &str, name: &str, attributes: &[(&str, &str)]) {
    let visible = |it: char| if it.is_control() { ' ' } else { it };
    let short = |text: &str| text.chars().take(MAX_TEXT).map(visible).collect();
    let attributes = attributes.iter();
    let event = Event {
        time: String::new(),
        action: action.into(),
        name: name.into(),
        attributes: attributes
            .map(|(key, value)| ((*key).into(), short(value)))
            .collect(),
    };
    let _ = add(&event);
}

fn add(event: &Event) -> io::Result<()> {
    let folder = folder().ok_or(io::ErrorKind::NotFound)?;
    let mut builder = DirBuilder::new();
    builder.mode(0o700).recursive(true).create(&folder)?;
    let lock = File::options()
        .create(true)
        .append(true)
        .open(folder.join(LOCK))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let mut log = LogWriter::open(&folder, FOLDER, Driver::JsonFile, ROTATION)?;
    log.add("event", &serde_json::to_vec(event)?)
}

fn folder() -> Option<PathBuf> {
    Some(place()?.join(FOLDER))
}

/// Reads the events, the oldest first.
pub struct Events(Option<LogReader>);

impl Events {
    /// Those that are kept, and those to come.
    pub fn open() -> Self {
        Self(Self::reader())
    }

    fn reader() -> Option<LogReader> {
        LogReader::open(&folder()?).ok()
    }

    /// The next event; `None` if there is none yet. Lines that are none are left out.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        if self.0.is_none() {
            self.0 = Self::reader();
        }
        let Some(reader) = &mut self.0 else {
            return Ok(None);
        };
        while let Some(line) = reader.next_line()? {
            if let Ok(event) = serde_json::from_str::<Event>(&line.log) {
                let time = line.time;
                return Ok(Some(Event { time, ..event }));
            }
        }
        Ok(None)
    }
}
