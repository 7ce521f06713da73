//! Statistics of a trace file that [`super::perfetto`] has written.
//!
//! The file is read event by event, and only durations are kept. A file that is not a trace of hull's
//! is an error that says where.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 30;

/// Why a file is not a trace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// The file is too large for a trace.
    #[error("larger than 1 GiB, which is more than hull writes")]
    TooLarge,
    /// It is not JSON, or an event has wrong members.
    #[error("it is not a trace that hull can read: {0}")]
    Json(serde_json::Error),
    /// It is JSON, but not a trace of hull's.
    #[error(
        "it is not a trace of hull's: the member {0} is missing; `hull run --trace FILE` writes one"
    )]
    Foreign(&'static str),
}

/// The statistics of one file.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// The version of hull that wrote the file.
    pub hull: String,
    /// Number of events that were dropped, the oldest ones.
    pub dropped: u64,
    /// Exits by reason and device, sorted by total time, the longest first.
    pub exits: Vec<Exits>,
    /// The time of each vCPU.
    pub vcpus: Vec<Vcpu>,
    /// The virtio queues in use.
    pub queues: Vec<Queue>,
    /// Number of interrupts by device.
    pub interrupts: BTreeMap<String, u64>,
    /// hull's own phases, in order.
    pub phases: Vec<Phase>,
    /// Number of lines on the guest's console.
    pub console_lines: u64,
}

/// Exits with the same reason and device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exits {
    /// Name of the exit reason.
    pub reason: String,
    /// Name of the device, or a placeholder.
    pub device: String,
    /// The distribution of hull's time in them.
    #[serde(flatten)]
    pub times: Times,
    /// Their share of the time in all exits, 0 to 1.
    pub share: f64,
}

/// The distribution of durations, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Times {
    /// The number of durations.
    pub count: u64,
    /// The sum of all durations.
    pub total_us: f64,
    /// The median of the durations.
    pub p50_us: f64,
    /// The 90th percentile of them.
    pub p90_us: f64,
    /// The 99th percentile of them.
    pub p99_us: f64,
    /// The longest of the durations.
    pub max_us: f64,
}

/// The time of one vCPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Vcpu {
    /// Name of the track in the file.
    pub name: String,
    /// The number of exits.
    pub exits: u64,
    /// Time in KVM_RUN: in the guest, halted, or in KVM.
    pub guest_us: f64,
    /// Time in hull to handle exits.
    pub hull_us: f64,
}

/// The activity of a virtio queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Queue {
    /// Name of the track in the file.
    pub name: String,
    /// Number of times that it was processed.
    pub notifications: u64,
    /// Number of descriptor chains returned.
    pub chains: u64,
    /// Number of batches after which the driver asked for an interrupt.
    pub interrupts: u64,
    /// Time from a notification to the return of the next batch.
    #[serde(flatten)]
    pub batches: Times,
}

/// A phase of hull.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// Name of the phase.
    pub name: String,
    /// Time at which it began, on the machine's clock.
    pub at_us: f64,
    /// Its duration in microseconds.
    pub us: f64,
}

/// The sums of the file `path`.
///
/// # Errors
/// It cannot be read, or is no trace of hull's.
pub fn read(path: &Path) -> Result<Summary, Error> {
    let mut content = Vec::new();
    let mut file = fs::File::open(path)?.take(MAX_FILE + 1);
    file.read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE {
        return Err(Error::TooLarge);
    }
    of(&content)
}

/// The statistics of the file with this content.
///
/// # Errors
/// It is not a trace of hull's.
pub fn of(file: &[u8]) -> Result<Summary, Error> {
    let mut sums = Sums::default();
    let mut json = serde_json::Deserializer::from_slice(file);
    let head = File(&mut sums)
        .deserialize(&mut json)
        .map_err(Error::Json)?;
    json.end().map_err(Error::Json)?;
    sums.finish(head)
}

/// The members outside of the events; only files of hull's have `hull`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    hull: Option<String>,
    dropped: u64,
}

/// The members of an event that are used here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Event {
    ph: String,
    cat: String,
    name: String,
    tid: u64,
    ts: f64,
    dur: f64,
    args: EventArguments,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct EventArguments {
    reason: String,
    name: String,
    chains: u64,
    interrupt: bool,
}

#[derive(Default)]
struct Sums {
    /// hull's time in each exit, in nanoseconds, by reason and device.
    exits: BTreeMap<(String, String), Vec<u64>>,
    vcpus: BTreeMap<u64, Vcpu>,
    queues: BTreeMap<u64, (Queue, Vec<u64>)>,
    interrupts: BTreeMap<String, u64>,
    phases: Vec<Phase>,
    console_lines: u64,
    tracks: BTreeMap<u64, String>,
    events: bool,
}

impl Sums {
    fn add(&mut self, event: Event) {
        let Event { name, tid, dur, .. } = event;
        match (event.ph.as_str(), event.cat.as_str()) {
            ("M", _) if name == "thread_name" => {
                self.tracks.insert(tid, event.args.name);
            }
            ("X", "guest") => self.vcpus.entry(tid).or_default().guest_us += dur,
            ("X", "exit") => {
                let vcpu = self.vcpus.entry(tid).or_default();
                vcpu.exits += 1;
                vcpu.hull_us += dur;
                let kind = (event.args.reason, name);
                self.exits.entry(kind).or_default().push(nanoseconds(dur));
            }
            ("i", "notification") => self.queues.entry(tid).or_default().0.notifications += 1,
            ("X", "completion") => {
                let (queue, times) = self.queues.entry(tid).or_default();
                queue.chains = queue.chains.saturating_add(event.args.chains);
                queue.interrupts += u64::from(event.args.interrupt);
                times.push(nanoseconds(dur));
            }
            ("i", "interrupt") => *self.interrupts.entry(name).or_default() += 1,
            ("i", "console") => self.console_lines += 1,
            ("X", "phase") => self.phases.push(Phase {
                name,
                at_us: event.ts,
                us: dur,
            }),
            _ => {}
        }
    }

    fn finish(self, head: Head) -> Result<Summary, Error> {
        let hull = head.hull.ok_or(Error::Foreign("otherData.hull"))?;
        if !self.events {
            return Err(Error::Foreign("traceEvents"));
        }
        let all: u128 = self
            .exits
            .values()
            .flatten()
            .map(|&ns| u128::from(ns))
            .sum();
        let kind = |((reason, device), times): ((String, String), Vec<u64>)| {
            let times = Times::of(times);
            let share = times.total_us * 1e3 / (all.max(1) as f64);
            Exits {
                reason,
                device,
                times,
                share,
            }
        };
        let mut exits: Vec<_> = self.exits.into_iter().map(kind).collect();
        exits.sort_by(|a, b| b.times.total_us.total_cmp(&a.times.total_us));
        let name = |track: u64| match self.tracks.get(&track) {
            Some(name) => name.clone(),
            None => format!("track {track}"),
        };
        let vcpus = self.vcpus.into_iter().map(|(track, vcpu)| Vcpu {
            name: name(track),
            ..vcpu
        });
        let queues = self
            .queues
            .into_iter()
            .map(|(track, (queue, times))| Queue {
                name: name(track),
                batches: Times::of(times),
                ..queue
            });
        Ok(Summary {
            hull,
            dropped: head.dropped,
            exits,
            vcpus: vcpus.collect(),
            queues: queues.collect(),
            interrupts: self.interrupts,
            phases: self.phases,
            console_lines: self.console_lines,
        })
    }
}

impl Times {
    /// The distribution of `times`, in nanoseconds.
    fn of(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        // The percentile by nearest rank.
        let rank = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100);
            times.get(rank.saturating_sub(1)).copied().unwrap_or(0) as f64 / 1e3
        };
        Self {
            count: times.len() as u64,
            total_us: times.iter().map(|&ns| u128::from(ns)).sum::<u128>() as f64 / 1e3,
            p50_us: rank(50),
            p90_us: rank(90),
            p99_us: rank(99),
            max_us: rank(100),
        }
    }
}

/// Microseconds of a file in nanoseconds; 0 for an invalid duration.
fn nanoseconds(us: f64) -> u64 {
    (us * 1e3).round() as u64
}

/// The whole file: an object, of which two members are used.
struct File<'a>(&'a mut Sums);

impl<'de> DeserializeSeed<'de> for File<'_> {
    type Value = Head;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for File<'_> {
    type Value = Head;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object with the member traceEvents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut head = Head::default();
        while let Some(member) = members.next_key::<String>()? {
            match member.as_str() {
                "otherData" => head = members.next_value()?,
                "traceEvents" => members.next_value_seed(Events(&mut *self.0))?,
                _ => drop(members.next_value::<serde::de::IgnoredAny>()?),
            }
        }
        Ok(head)
    }
}

/// The events, each of which is counted as it is read.
struct Events<'a>(&'a mut Sums);

impl<'de> DeserializeSeed<'de> for Events<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Events<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array of events")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut events: A) -> Result<(), A::Error> {
        let sums = self.0;
        sums.events = true;
        while let Some(event) = events.next_element::<Event>()? {
            let sane = |us: f64| (0.0..=1e15).contains(&us);
            if !sane(event.ts) || !sane(event.dur) {
                return Err(A::Error::custom(
                    "an event with an invalid time or duration",
                ));
            }
            sums.add(event);
        }
        Ok(())
    }
}
