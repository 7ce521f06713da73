//! Where a guest's time goes: samples of its instruction pointers, summed up as call stacks.
//!
//! Whoever runs the vCPUs takes a [`Sample`] at each tick and hands it to [`Profile::add`], which
//! finds the callers (`unwind`) and counts. [`Profile::write`] gives the folded stacks that other
//! tools take (`outer;inner count`) or a flame graph.

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

/// Different stacks that are counted apart; a guest can make any number.
const STACKS_MOST: usize = 1 << 16;
/// Bytes of a stack that a sample has at most: half of a kernel thread's.
pub const STACK_MOST: usize = 8 << 10;

/// How a profile is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An SVG picture.
    FlameGraph,
    /// A line for each stack, outermost function first, and how often it was seen.
    Folded,
}

/// What was sampled so far.
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

/// How many samples there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Ticks that were counted.
    pub ticks: u64,
    /// Ticks whose sample was lost: too many different stacks, or a sampler that fell behind.
    pub lost: u64,
}

/// Stands for all of user space, of which hull has no symbols.
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

    /// Samples a second.
    pub fn hertz(&self) -> u32 {
        self.hertz
    }

    /// Count a sample of a guest with this memory.
    pub fn add(&self, sample: &Sample, memory: &GuestMemory) {
        let mut counts = lock(&self.counts);
        let counts = &mut *counts;
        let load = || Unwinder::new(self.load());
        let unwinder = counts.unwinder.get_or_insert_with(load);
        let stack = match sample.user {
            true => vec![USER_SPACE],
            false => unwinder.functions(sample, memory),
        };
        let ticks = u64::from(sample.ticks);
        let full = counts.stacks.len() >= STACKS_MOST;
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

    /// A sample was taken that could not be kept.
    pub fn lose(&self, ticks: u32) {
        lock(&self.counts).total.lost += u64::from(ticks);
    }

    /// How many samples there were.
    pub fn totals(&self) -> Totals {
        lock(&self.counts).total
    }

    /// Write what was sampled.
    ///
    /// # Errors
    /// `to` takes no more; a flame graph of no samples.
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
        // What separates frames and counts has no place in a name, which may be anything.
        Some((name, _)) => name.replace([';', ' '], "_"),
        None => format!("{address:#x}"),
    }
}

#[cfg(test)]
mod tests;
