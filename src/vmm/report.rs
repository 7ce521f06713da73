//! What a run cost, as plain data, and how places in the guest are named.

use std::time::Duration;

use serde::Serialize;

use super::events::lock;
use super::machine::Machine;
use super::vcpus::Vcpus;
use crate::devices::MarkSource;
use crate::devices::virtio::QueueCounters;
use crate::devices::virtio::balloon::{self, Balloon};
use crate::symbols;

/// Codes that hull's kernel and init write to the debug port (guest/kernel/patches, guest/init).
pub(super) const MARK_START_KERNEL: u8 = 0x40;
pub(super) const MARK_INITCALLS: u8 = 0x41;
pub(super) const MARK_EXEC_INIT: u8 = 0x42;
pub(super) const MARK_INIT: u8 = 0x60;

/// What a run cost. Times are in milliseconds since hull's `main`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The first KVM_RUN.
    pub first_instruction_ms: Option<f64>,
    /// The first byte on the console, or the kernel's own mark, whichever came first.
    pub kernel_output_ms: Option<f64>,
    /// The kernel's init calls begin.
    pub initcalls_ms: Option<f64>,
    /// The kernel executes init.
    pub exec_init_ms: Option<f64>,
    /// Init's first instructions.
    pub init_ms: Option<f64>,
    /// The end of the run.
    pub end_ms: f64,
    /// The kernel's command line.
    pub cmdline: String,
    /// Instructions that hull finished on behalf of KVM, by name, most frequent first.
    pub finished_instructions: Vec<(String, u64)>,
    /// Bytes that hull copied or filled on the guest kernel's behalf.
    pub bulk_bytes: u64,
    /// Words that hull added to the command line for this host.
    pub added_words: Vec<String>,
    /// The virtio devices.
    pub devices: Vec<DeviceReport>,
    /// What the guest's balloon said, if it has one.
    pub balloon: Option<balloon::State>,
}

/// A virtio device and what passed through its queues.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceReport {
    /// What messages call it.
    pub name: String,
    /// All of its queues.
    #[serde(flatten)]
    pub traffic: QueueCounters,
}

impl Report {
    pub(super) fn new(machine: &Machine, vcpus: &Vcpus, first_output: Option<Duration>) -> Self {
        let events = &machine.shared.events;
        let marks = events.marks();
        let mark = |code: u8| {
            marks
                .iter()
                .find(|mark| mark.source == MarkSource::DebugPort && mark.code == code)
                .map(|mark| mark.at)
        };
        let timer = marks
            .iter()
            .find(|mark| mark.source == MarkSource::BootTimer);
        let output = [first_output, mark(MARK_START_KERNEL)];
        Self {
            first_instruction_ms: machine.shared.first_entry.get().copied().map(ms),
            kernel_output_ms: output.into_iter().flatten().min().map(ms),
            initcalls_ms: mark(MARK_INITCALLS).map(ms),
            exec_init_ms: mark(MARK_EXEC_INIT).map(ms),
            init_ms: mark(MARK_INIT).or(timer.map(|mark| mark.at)).map(ms),
            end_ms: ms(events.now()),
            cmdline: machine.cmdline.clone(),
            finished_instructions: finished(vcpus),
            bulk_bytes: vcpus.all().map(|vcpu| vcpu.assisted().bulk_bytes).sum(),
            added_words: machine.added_words.iter().map(|w| w.to_string()).collect(),
            devices: machine.devices.windows.traffic(),
            balloon: machine.devices.balloon.as_ref().and_then(|window| {
                lock(window).with_device(|balloon: &mut Balloon, _| Ok(balloon.state().clone()))
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

/// `RIP 0x1000 (symbol+0x10)`.
pub fn place(rip: u64, symbols: Option<&symbols::Source>) -> String {
    let symbols = symbols.map(symbols::Source::load).unwrap_or_default();
    match symbols.lookup(rip) {
        Some((name, offset)) => format!("RIP {rip:#x} ({name}+{offset:#x})"),
        None => format!("RIP {rip:#x}"),
    }
}

/// The console's last lines, as the end of a message.
pub fn quote(lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut text = "\n  last lines of the console:".to_string();
    for line in lines {
        text += "\n    ";
        text += line;
    }
    text
}
