//! What was let out and what was refused, as lines of JSON in a file: each different thing once, and again when it has
//! happened 10, 100, 1000 times and so on. However much a guest tries, the file stays small.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::num::NonZeroUsize;
use std::time::SystemTime;

use lru::LruCache;
use serde::{Deserialize, Serialize};

use super::rules::Reason;

/// Different things that are counted.
const MAX_COUNTED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Lines of either verdict in one run: none of them takes the other's room.
const MAX_LINES: u32 = 2000;
/// Longest name that is told.
const MAX_NAME: usize = 253;

/// What became of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It was let out.
    Allowed,
    /// It was not.
    Refused(Reason),
}

/// Something that a guest tried, of which a line tells.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Told {
    /// `tcp`, `udp`, `icmp`, `dns` for a question for a name, or what it is otherwise.
    pub protocol: String,
    /// Where it was to go; `None` for a question, or where there is no such address.
    pub to: Option<Ipv4Addr>,
    /// To which port.
    pub port: Option<u16>,
    /// The name by which it was allowed, or that was asked for.
    pub name: Option<String>,
    /// What became of it.
    pub verdict: Verdict,
}

/// A line of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When, as RFC 3339 has it.
    pub time: String,
    /// How often until then, since the machine was started.
    pub count: u64,
    /// What.
    #[serde(flatten)]
    pub told: Told,
}

/// Writes lines.
#[derive(Debug)]
pub struct Journal {
    file: File,
    counts: LruCache<Told, u64>,
    /// Lines that may be written: of what was allowed, and of what was refused.
    left: [u32; 2],
}

impl Journal {
    /// Lines are appended to `file`.
    pub fn new(file: File) -> Self {
        Self {
            file,
            counts: LruCache::new(MAX_COUNTED),
            left: [MAX_LINES; 2],
        }
    }

    /// Tell of something.
    pub fn tell(&mut self, mut told: Told) {
        if let Some(name) = &mut told.name {
            // It is the guest's, and is shown on a terminal.
            let plain = |it: char| it.is_ascii_alphanumeric() || "-._".contains(it);
            let shown = name.chars().take(MAX_NAME);
            *name = shown.map(|it| if plain(it) { it } else { '?' }).collect();
        }
        let count = match self.counts.get_mut(&told) {
            Some(count) => {
                *count = count.saturating_add(1);
                *count
            }
            None => {
                self.counts.put(told.clone(), 1);
                1
            }
        };
        let [allowed, refused] = &mut self.left;
        let left = match told.verdict {
            Verdict::Allowed => allowed,
            Verdict::Refused(_) => refused,
        };
        let round = count.checked_ilog10().and_then(|it| 10_u64.checked_pow(it));
        if round != Some(count) || *left == 0 {
            return;
        }
        *left -= 1;
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let line = Line { time, count, told };
        let mut line = serde_json::to_vec(&line).unwrap_or_default();
        line.push(b'\n');
        // One call, so that a line is whole. A disk that is full does not hold the machine up.
        let _ = self.file.write(&line);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn told(port: u16, verdict: Verdict) -> Told {
        Told {
            protocol: "tcp".into(),
            to: Some(Ipv4Addr::new(192, 0, 2, 1)),
            port: Some(port),
            name: Some("a\u{1b}b".into()),
            verdict,
        }
    }

    #[test]
    fn repeated_things_are_counted_and_a_flood_ends() {
        let mut file = tempfile::tempfile().expect("a file");
        let mut journal = Journal::new(file.try_clone().expect("the same file"));
        let refused = Verdict::Refused(Reason::NotAllowed);
        for _ in 0..150 {
            journal.tell(told(1, refused));
        }
        for port in 2..10_000 {
            journal.tell(told(port, refused));
        }
        journal.tell(told(1, Verdict::Allowed));
        let mut text = String::new();
        file.rewind().expect("the beginning");
        file.read_to_string(&mut text).expect("text");
        let lines: Vec<Line> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let counts: Vec<u64> = lines.iter().take(4).map(|it| it.count).collect();
        assert_eq!(counts, [1, 10, 100, 1]);
        assert_eq!(lines[0].told.name.as_deref(), Some("a?b"));
        assert_eq!(lines.len(), MAX_LINES as usize + 1);
        assert_eq!(
            lines.last().map(|it| it.told.verdict),
            Some(Verdict::Allowed)
        );
        assert!(text.len() < 1 << 20);
    }
}
