//! What a run cost, as plain data.

use std::time::Duration;

use serde::Serialize;

use super::devices::slots::DeviceReport;
use super::event_loop::EventLoop;
use super::machine::Machine;
use super::marks::{self, Mark};
use super::timeline::Span;
use super::vcpus::Vcpus;
use crate::devices::MarkSource;
use crate::devices::virtio::balloon::{self, Balloon};
use crate::sync::lock;

/// What a run cost. Times are in milliseconds since hull's `main`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The first KVM_RUN of a vCPU.
    pub first_instruction_ms: Option<f64>,
    /// The first byte on the console, or the kernel's own mark, whichever came first.
    pub kernel_output_ms: Option<f64>,
    /// The kernel's init calls begin.
    pub initcalls_ms: Option<f64>,
    /// The kernel executes init.
    pub exec_init_ms: Option<f64>,
    /// Init runs its first instructions.
    pub init_ms: Option<f64>,
    /// The guest's init was told the command.
    pub command_ms: Option<f64>,
    /// The guest reported the end of the command.
    pub command_end_ms: Option<f64>,
    /// The end of the run.
    pub end_ms: f64,
    /// hull's own work before the first instruction, sorted by start.
    pub phases: Vec<PhaseReport>,
    /// Points in time that the guest marked, oldest first.
    pub marks: Vec<MarkReport>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Instructions that hull finished on behalf of KVM, by name, most frequent first.
    pub finished_instructions: Vec<(String, u64)>,
    /// Bytes that hull copied or filled on the guest kernel's behalf.
    pub bulk_bytes: u64,
    /// Words that hull added to the command line for this host.
    pub added_words: Vec<String>,
    /// The traffic of each virtio device.
    pub devices: Vec<DeviceReport>,
    /// The state of the guest's balloon, if it has one.
    pub balloon: Option<balloon::State>,
}

/// A stretch of hull's own work.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseReport {
    /// What hull did, such as `boot tables`.
    pub name: &'static str,
    /// Whether it ran in parallel, on a thread of its own.
    pub aside: bool,
    /// Start, since the start of `main`.
    pub start_ms: f64,
    /// End, since the start of `main`.
    pub end_ms: f64,
}

/// A point in time that the guest marked.
#[derive(Clone, Debug, Serialize)]
pub struct MarkReport {
    /// `boot timer` (Firecracker's), or `port 0x80`.
    pub source: &'static str,
    /// The byte that the guest wrote.
    pub code: u8,
    /// The stage that uses codes of this range, as in Cloud Hypervisor's docs/debug-port.md.
    pub stage: &'static str,
    /// Time since the start of `main`.
    pub at_ms: f64,
}

impl MarkReport {
    fn new(mark: &Mark) -> Self {
        let (source, stage) = match (mark.source, mark.code) {
            (MarkSource::BootTimer, _) => ("boot timer", "user space"),
            (_, 0x00..0x20) => ("port 0x80", "firmware"),
            (_, 0x20..0x40) => ("port 0x80", "boot loader"),
            (_, 0x40..0x60) => ("port 0x80", "kernel"),
            (_, 0x60..0x80) => ("port 0x80", "user space"),
            _ => ("port 0x80", "other"),
        };
        Self {
            source,
            code: mark.code,
            stage,
            at_ms: ms(mark.at),
        }
    }
}

impl Report {
    pub(super) fn new(machine: &Machine, vcpus: &Vcpus, event_loop: &EventLoop) -> Self {
        let events = &machine.shared.events;
        let all = events.marks();
        let set = |code: u8| {
            all.iter()
                .find(|mark| mark.source == MarkSource::DebugPort && mark.code == code)
                .map(|mark| mark.at)
        };
        let timer = all.iter().find(|mark| mark.source == MarkSource::BootTimer);
        let output = [event_loop.first_output(), set(marks::START_KERNEL)];
        let (command, command_end) = event_loop.command();
        let phase = |span: &Span| PhaseReport {
            name: span.name,
            aside: span.aside,
            start_ms: ms(span.start),
            end_ms: ms(span.end),
        };
        Self {
            first_instruction_ms: machine.shared.first_entry.get().copied().map(ms),
            kernel_output_ms: output.into_iter().flatten().min().map(ms),
            initcalls_ms: set(marks::INITCALLS).map(ms),
            exec_init_ms: set(marks::EXEC_INIT).map(ms),
            init_ms: set(marks::INIT).or(timer.map(|mark| mark.at)).map(ms),
            command_ms: command.map(ms),
            command_end_ms: command_end.map(ms),
            end_ms: ms(events.now()),
            phases: events.timeline().spans().iter().map(phase).collect(),
            marks: all.iter().map(MarkReport::new).collect(),
            cmdline: machine
                .loaded
                .as_ref()
                .map_or_else(String::new, |loaded| loaded.cmdline.clone()),
            finished_instructions: finished(vcpus),
            bulk_bytes: vcpus.all().map(|vcpu| vcpu.assisted().bulk_bytes).sum(),
            added_words: machine.added_words.clone(),
            devices: machine.devices.slots.traffic(),
            balloon: machine.devices.balloon.as_ref().and_then(|slot| {
                lock(slot).with_device(|balloon: &mut Balloon, _| Ok(balloon.state().clone()))
            }),
        }
    }
}

fn finished(vcpus: &Vcpus) -> Vec<(String, u64)> {
    let mut sums = std::collections::BTreeMap::<&str, u64>::new();
    for vcpu in vcpus.all() {
        for (name, count) in vcpu.assisted().instructions() {
            *sums.entry(name).or_default() += count;
        }
    }
    let mut sums: Vec<_> = sums.into_iter().map(|(name, n)| (name.into(), n)).collect();
    sums.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    sums
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
