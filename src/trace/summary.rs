//! The sums of a trace file that [`super::perfetto`] wrote.
//!
//! The file is read event by event, so that only durations are kept. It may be anything: what is
//! no trace of hull's is an error that says where it stops being one.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// Largest file that is read.
pub const FILE_MOST: u64 = 1 << 30;

/// The file is no trace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no JSON, or has members that an event has not.
    #[error("it is no trace that hull can read: {0}")]
    Json(serde_json::Error),
    /// It is JSON, of another program's.
    #[error(
        "it is no trace of hull's: the member {0} is missing; `hull run --trace FILE` writes one"
    )]
    Foreign(&'static str),
}

/// The sums.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// The version of hull that wrote the file.
    pub hull: String,
    /// Events that are missing, the oldest.
    pub dropped: u64,
    /// Exits by reason and device, those that took longest in all first.
    pub exits: Vec<Exits>,
    /// The vCPUs' time.
    pub vcpus: Vec<Vcpu>,
    /// The virtio queues.
    pub queues: Vec<Queue>,
    /// Interrupts by device.
    pub interrupts: BTreeMap<String, u64>,
    /// hull's own phases, in their order.
    pub phases: Vec<Phase>,
    /// Lines on the guest's console.
    pub console_lines: u64,
}

/// Exits of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exits {
    /// Why the guest was left.
    pub reason: String,
    /// The device, or what stands for it.
    pub device: String,
    /// How hull's part in them was spread.
    #[serde(flatten)]
    pub times: Times,
    /// Their part of all time in exits, 0 to 1.
    pub share: f64,
}

/// How durations were spread, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Times {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub total_us: f64,
    /// The middle one.
    pub p50_us: f64,
    /// 90 of 100 were at most this.
    pub p90_us: f64,
    /// 99 of 100 were at most this.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
}

/// One vCPU's time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Vcpu {
    /// Its track's name.
    pub name: String,
    /// Exits.
    pub exits: u64,
    /// In KVM_RUN: in the guest, halted or in the kernel's part of KVM.
    pub guest_us: f64,
    /// In hull, for an exit.
    pub hull_us: f64,
}

/// What passed through a virtio queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Queue {
    /// Its track's name.
    pub name: String,
    /// Times that it was processed.
    pub notifications: u64,
    /// Descriptor chains given back.
    pub chains: u64,
    /// Batches after which the driver wanted an interrupt.
    pub interrupts: u64,
    /// From a notification to the batch given back after it.
    #[serde(flatten)]
    pub batches: Times,
}

/// A phase of hull's own.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// What hull did.
    pub name: String,
    /// When it began, on the machine's clock.
    pub at_us: f64,
    /// How long it took.
    pub us: f64,
}

/// Sum up the file with this content.
///
/// # Errors
/// It is no trace of hull's.
pub fn of(file: &[u8]) -> Result<Summary, Error> {
    let mut sums = Sums::default();
    let mut json = serde_json::Deserializer::from_slice(file);
    let head = File(&mut sums)
        .deserialize(&mut json)
        .map_err(Error::Json)?;
    json.end().map_err(Error::Json)?;
    sums.finish(head)
}

/// What stands outside of the events; `hull` is in no other program's files.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    hull: Option<String>,
    dropped: u64,
}

/// An event, as far as sums need it.
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
    /// By reason and device: hull's time in them, in nanoseconds.
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
    /// Of durations in nanoseconds.
    fn of(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        // The least that so many of 100 are not above (nearest rank).
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

/// A file's microseconds, as they were recorded. What is no duration counts as none.
fn nanoseconds(us: f64) -> u64 {
    (us * 1e3).round() as u64
}

/// The whole file: an object, of whose members only two are looked at.
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

/// The events, each summed up as it is read.
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
                return Err(A::Error::custom("an event at no time, or that lasts none"));
            }
            sums.add(event);
        }
        Ok(())
    }
}
