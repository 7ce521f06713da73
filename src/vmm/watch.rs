//! Observers of a vCPU's loop: none, or a [`Watched`] that records and explains its exits.
//!
//! The loop is compiled once for each, so that a machine without an observer pays nothing.

use std::cell::Cell;

use super::buses::Buses;
use super::explain::Explain;
use super::shared::Shared;
use crate::kvm::KvmError;
use crate::kvm::vcpu::{Accesses, Exit, Vcpu};
use crate::trace::{self, Nanoseconds, Reason, Space, Track};

/// What a vCPU's loop calls: the devices, and after each exit the observer.
pub trait Watch: Accesses {
    /// An exit of `vcpu` was handled, with the result `exit`.
    fn handled(&self, _vcpu: &Vcpu, _exit: &Result<Exit, KvmError>) {}
}

impl Watch for Buses {}

/// Records and explains the exits of one vCPU.
pub struct Watched<'a> {
    shared: &'a Shared,
    index: usize,
    track: Option<&'a Track>,
    explain: Option<&'a Explain>,
    /// What is known of the current exit.
    exit: Cell<trace::Exit>,
}

impl<'a> Watched<'a> {
    /// For vCPU `index`, if its exits are recorded or explained.
    pub fn new(shared: &'a Shared, index: usize) -> Option<Self> {
        let track = shared.trace.as_ref();
        let track = track.and_then(|trace| trace.vcpu(index));
        let explain = shared.explain.as_ref();
        if track.is_none() && explain.is_none() {
            return None;
        }
        Some(Self {
            shared,
            index,
            track,
            explain,
            exit: Cell::new(trace::Exit {
                entered: 0,
                left: 0,
                handled: 0,
                reason: Reason::Kick,
                addr: 0,
                value: 0,
                size: 0,
                register: None,
            }),
        })
    }

    fn now(&self) -> Nanoseconds {
        trace::nanoseconds(self.shared.events.now())
    }

    fn set(&self, change: impl FnOnce(&mut trace::Exit)) {
        let mut exit = self.exit.get();
        change(&mut exit);
        self.exit.set(exit);
    }

    /// Carry out an access of the guest by `access`, and note it.
    fn access<D: AsRef<[u8]>>(
        &self,
        (reason, addr): (Reason, u64),
        mut data: D,
        access: impl FnOnce(&mut D),
    ) {
        let bus = self.shared.buses.of(reason.space().unwrap_or(Space::Port));
        // Before the access, which may change the register at this address (a UART's DLAB).
        let register = bus.register(addr, reason.is_write());
        access(&mut data);
        let data = data.as_ref();
        let bytes = data.iter().take(8).rev();
        let value = bytes.fold(0, |value, byte| value << 8 | u64::from(*byte));
        self.set(|exit| {
            (exit.reason, exit.addr, exit.value, exit.register) = (reason, addr, value, register);
            exit.size = u16::try_from(data.len()).unwrap_or(u16::MAX);
        });
    }
}

impl Accesses for Watched<'_> {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        let read = |data: &mut &mut [u8]| self.shared.buses.port_read(port, data);
        self.access((Reason::PortRead, port.into()), data, read);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        let write = |data: &mut &[u8]| self.shared.buses.port_write(port, data);
        self.access((Reason::PortWrite, port.into()), data, write);
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        let read = |data: &mut &mut [u8]| self.shared.buses.mmio_read(gpa, data);
        self.access((Reason::MmioRead, gpa), data, read);
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        let write = |data: &mut &[u8]| self.shared.buses.mmio_write(gpa, data);
        self.access((Reason::MmioWrite, gpa), data, write);
    }

    fn entering(&self) {
        self.set(|exit| {
            // The end of the last exit is the entry: this saves reading the clock.
            exit.entered = match exit.handled {
                0 => self.now(),
                handled => handled,
            };
            if let Some(track) = self.track {
                track.entered(exit.entered);
            }
            exit.reason = Reason::Kick;
        });
    }

    fn left(&self) {
        self.set(|exit| exit.left = self.now());
    }

    fn finished(&self, instruction: &'static str) {
        self.set(|exit| exit.reason = Reason::Instruction(instruction));
    }

    fn bulk(&self) {
        self.set(|exit| exit.reason = Reason::Bulk);
    }
}

impl Watch for Watched<'_> {
    fn handled(&self, vcpu: &Vcpu, result: &Result<Exit, KvmError>) {
        self.set(|exit| {
            match result {
                Ok(Exit::Handled | Exit::Interrupted) => {}
                Ok(Exit::Debug(_)) => exit.reason = Reason::Debug,
                Ok(Exit::Shutdown) => exit.reason = Reason::Shutdown,
                Ok(Exit::Failed(_)) | Err(_) => exit.reason = Reason::Failed,
            }
            exit.handled = self.now();
        });
        let exit = self.exit.get();
        if let Some(track) = self.track {
            track.exit(exit);
        }
        if let Some(explain) = self.explain
            && explain.exit(&self.shared.buses, (self.index, vcpu), &exit)
        {
            // The time of explaining belongs to no exit.
            self.set(|exit| exit.handled = 0);
        }
    }
}
