//! Exits explained in words: the first few of each kind, with their instruction.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex};

use super::buses::Buses;
use super::events::Events;
use super::outbox::Outbox;
use crate::kvm::code::What;
use crate::kvm::vcpu::Vcpu;
use crate::symbols::{Source, Symbols};
use crate::sync::lock;
use crate::trace::{Exit, Nanoseconds, Reason, Space};

/// Limit of kinds of exits that are explained; a guest can make any number.
const MAX_KINDS: usize = 1024;

/// Reason and address, which are the same for all exits of one kind.
type Kind = (&'static str, u64);

/// Explains the exits of all vCPUs.
pub struct Explain {
    first: u32,
    seen: Mutex<HashMap<Kind, u32>>,
    symbols: Symbols,
    events: Arc<Events>,
    /// Where the text goes. vCPUs wait while it is full, as for a UART.
    pub outbox: Arc<Outbox>,
}

impl Explain {
    /// Explain the `first` exits of each kind, in a kernel with these `symbols`.
    pub fn new(first: u32, symbols: Option<Source>, events: Arc<Events>) -> Self {
        Self {
            first,
            seen: Mutex::default(),
            // Here: the threads of the vCPUs may read no file.
            symbols: symbols.as_ref().map(Source::load).unwrap_or_default(),
            events,
            outbox: Arc::default(),
        }
    }

    /// Explain an exit that was handled, if it is among the first. Returns whether it was.
    pub fn exit(&self, buses: &Buses, (index, vcpu): (usize, &Vcpu), exit: &Exit) -> bool {
        let kind = match exit.reason {
            Reason::Kick | Reason::Debug | Reason::Shutdown | Reason::Failed => return false,
            Reason::Instruction(name) => (name, 0),
            reason => (reason.name(), exit.addr),
        };
        let mut seen = lock(&self.seen);
        if seen.len() == MAX_KINDS && !seen.contains_key(&kind) {
            return false;
        }
        let number = seen.entry(kind).or_default();
        if *number >= self.first {
            return false;
        }
        *number += 1;
        drop(seen);
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.tell(&mut text, buses, (index, vcpu), exit);
        if self.outbox.push(text.as_bytes()) {
            self.events.wake();
        }
        true
    }

    fn tell(
        &self,
        text: &mut String,
        buses: &Buses,
        (index, vcpu): (usize, &Vcpu),
        exit: &Exit,
    ) -> std::fmt::Result {
        let Exit {
            reason,
            addr,
            value,
            size,
            ..
        } = *exit;
        write!(text, "hull: vCPU {index}: ")?;
        let write = reason.is_write();
        let port = addr as u16; // of an IN or OUT, which has no more bits
        let Some(space) = reason.space() else {
            return self.tell_assisted(text, vcpu, exit);
        };
        let place = buses.of(space).name(addr);
        let what = match space {
            Space::Port => What::Port { port, write },
            Space::Memory => What::Memory { gpa: addr, write },
        };
        let where_to = match reason {
            Reason::PortRead => "IN from port",
            Reason::PortWrite => "OUT to port",
            Reason::MmioRead => "load from",
            _ => "store to",
        };
        write!(text, "{where_to} {addr:#x}")?;
        match (place, exit.register) {
            (Some((name, _)), Some(register)) => write!(text, ", {name}'s {register}")?,
            (Some((name, offset)), None) => write!(text, ", {name} + {offset:#x}")?,
            (None, _) => write!(text, ", where no device is")?,
        }
        let arrow = if write { "<-" } else { "->" };
        let s = if size == 1 { "" } else { "s" };
        write!(text, ": {size} byte{s} {arrow} {value:#x}")?;
        let letter = u8::try_from(value).ok().filter(u8::is_ascii_graphic);
        if let (1, Some(letter)) = (size, letter) {
            write!(text, " '{}'", char::from(letter))?;
        }
        match vcpu.instruction(what) {
            (_, Some(found)) => {
                write!(text, "\n      {}  at ", found.text)?;
                self.place(text, found.rip)?;
            }
            (rip, None) => {
                write!(text, "\n      its instruction is not at ")?;
                self.place(text, rip)?;
            }
        }
        cost(text, exit)
    }

    fn tell_assisted(&self, text: &mut String, vcpu: &Vcpu, exit: &Exit) -> std::fmt::Result {
        match exit.reason {
            Reason::Instruction(name) => {
                write!(text, "{name}, which this host's KVM cannot do; hull did it")?;
            }
            _ => write!(
                text,
                "OUT to the bulk-memory port: hull copied or filled memory for the kernel"
            )?,
        }
        write!(text, "\n      before ")?;
        self.place(text, vcpu.rip().unwrap_or_default())?;
        cost(text, exit)
    }

    fn place(&self, text: &mut String, rip: u64) -> std::fmt::Result {
        write!(text, "RIP {rip:#x}")?;
        if let Some((name, offset)) = self.symbols.lookup(rip) {
            write!(text, " ({name}+{offset:#x})")?;
        }
        Ok(())
    }
}

fn cost(text: &mut String, exit: &Exit) -> std::fmt::Result {
    let us = |from: Nanoseconds, to: Nanoseconds| to.saturating_sub(from) as f64 / 1e3;
    let (guest, hull) = (us(exit.entered, exit.left), us(exit.left, exit.handled));
    writeln!(
        text,
        "; {guest:.1} us since its entry, {hull:.1} us in hull"
    )
}
