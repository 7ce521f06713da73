//! Where a guest spends its time: samples of its instruction pointers, counted as call stacks.
//!
//! `vmm` takes a [`Sample`] of each vCPU at each tick and passes it to [`Profile::add`], which finds the
//! callers (`unwind`) and counts. [`Profile::write`] writes folded stacks for other tools
//! (`outer;inner count`) or a flame graph.

#![forbid(unsafe_code)]

mod sample;
mod unwind;

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Mutex;

use crate::memory::GuestMemory;
use crate::symbols::{Source, Symbols};
use crate::sync::lock;
pub use sample::Sample;
use unwind::Unwinder;

/// Most different stacks that are counted: a guest can make any number.
const MAX_STACKS: usize = 1 << 16;
/// Most bytes of a stack in a sample: half of a kernel thread's stack.
pub const MAX_STACK: usize = 8 << 10;

/// The format in which a profile is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An SVG picture of the stacks.
    FlameGraph,
    /// A line for each stack, outermost function first, with its count.
    Folded,
}

/// The samples counted so far.
#[derive(Debug)]
pub struct Profile {
    hertz: u32,
    symbols: Option<Source>,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    unwinder: Option<Unwinder>,
    stacks: HashMap<(usize, Vec<u64>), u64>,
    total: Totals,
}

/// The numbers of samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Ticks that were counted.
    pub ticks: u64,
    /// Ticks whose sample was lost: too many different stacks, or a sampler that fell behind.
    pub lost: u64,
}

/// Stands for all of user space, for which hull has no symbols.
const USER_SPACE: u64 = u64::MAX;

impl Profile {
    /// An empty profile of a guest with these symbols, to be sampled `hertz` times a second.
    pub fn new(hertz: u32, symbols: Option<Source>) -> Self {
        Self {
            hertz,
            symbols,
            counts: Mutex::default(),
        }
    }

    /// The rate, in samples a second.
    pub fn hertz(&self) -> u32 {
        self.hertz
    }

    /// Count a sample of a guest with this memory.
    pub fn add(&self, sample: &Sample, memory: &GuestMemory) {
        let mut counts = lock(&self.counts);
        let counts = &mut *counts;
        let load = || Unwinder::new(self.load());
        let unwinder = counts.unwinder.get_or_insert_with(load);
        let stack = if sample.user {
            vec![USER_SPACE]
        } else {
            unwinder.functions(sample, memory)
        };
        let ticks = u64::from(sample.ticks);
        let full = counts.stacks.len() >= MAX_STACKS;
        match counts.stacks.get_mut(&(sample.cpu, stack.clone())) {
            Some(count) => *count += ticks,
            None if full => {
                counts.total.lost += ticks;
                return;
            }
            None => {
                counts.stacks.insert((sample.cpu, stack), ticks);
            }
        }
        counts.total.ticks += ticks;
    }

    /// Count a sample that could not be kept.
    pub fn lose(&self, ticks: u32) {
        lock(&self.counts).total.lost += u64::from(ticks);
    }

    /// The numbers of samples so far.
    pub fn totals(&self) -> Totals {
        lock(&self.counts).total
    }

    /// Write the profile in this format.
    ///
    /// # Errors
    /// Writing fails, or there are no samples for a flame graph.
    pub fn write(&self, form: Form, mut to: impl Write) -> io::Result<()> {
        let lines = self.folded();
        match form {
            Form::Folded => lines.iter().try_for_each(|line| writeln!(to, "{line}")),
            Form::FlameGraph => {
                let mut options = inferno::flamegraph::Options::default();
                options.title = "Where the guest's time went".into();
                options.subtitle = Some(format!("{} samples a second", self.hertz));
                options.count_name = "samples".into();
                options.min_width = 0.05;
                let lines = lines.iter().map(String::as_str);
                inferno::flamegraph::from_lines(&mut options, lines, to)
            }
        }
    }

    /// The lines of the folded form, sorted.
    fn folded(&self) -> Vec<String> {
        let counts = lock(&self.counts);
        let symbols = self.load();
        let cpus = counts.stacks.keys().map(|(cpu, _)| cpu).max();
        let several = cpus.is_some_and(|last| *last > 0);
        // Several stacks of addresses may have the same names.
        let mut named = std::collections::BTreeMap::<String, u64>::new();
        for ((cpu, stack), count) in &counts.stacks {
            let mut frames: Vec<String> = Vec::new();
            if several {
                frames.push(format!("vCPU {cpu}"));
            }
            frames.extend(stack.iter().rev().map(|address| name(*address, &symbols)));
            *named.entry(frames.join(";")).or_default() += count;
        }
        let lines = named.into_iter();
        lines.map(|(stack, n)| format!("{stack} {n}")).collect()
    }

    fn load(&self) -> Symbols {
        self.symbols.as_ref().map(Source::load).unwrap_or_default()
    }
}

fn name(address: u64, symbols: &Symbols) -> String {
    if address == USER_SPACE {
        return "user space".into();
    }
    match symbols.lookup(address) {
        // A name may be anything, but must not contain the separators of frames and counts.
        Some((name, _)) => name.replace([';', ' '], "_"),
        None => format!("{address:#x}"),
    }
}

#[cfg(test)]
mod tests;
