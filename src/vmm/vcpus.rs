//! The vCPU threads: one KVM_RUN loop each, until the machine stops.
//!
//! ```text
//!            spawn              events.stopping()
//!  (created) -----> (running) -------------------> (stopped, the Vcpu comes back)
//!                     |   ^
//!                exit |   | handled by the buses, throttled by a full outbox
//!                     v   |
//!                   (outside)
//! ```

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::events::{Events, GuestEnd};
use super::outbox::Outbox;
use crate::devices::bus::Bus;
use crate::kvm::vcpu::{Accesses, Exit, Kicker, Vcpu};
use crate::memory::STACK;

/// What every vCPU thread shares.
pub struct Shared {
    /// I/O ports.
    pub ports: Bus,
    /// Guest-physical addresses without RAM.
    pub mmio: Bus,
    /// Where ends and marks go.
    pub events: Arc<Events>,
    /// Outputs that a vCPU must not overfill.
    pub outboxes: Vec<Arc<Outbox>>,
    /// When the first vCPU entered the guest, on the machine's clock.
    pub first_entry: OnceLock<Duration>,
}

/// The threads.
pub struct Running(Vec<(Kicker, JoinHandle<Vcpu>)>);

/// Start a thread for each vCPU.
///
/// # Errors
/// No thread could be had; those that started are stopped again.
pub fn start(vcpus: Vec<Vcpu>, shared: &Arc<Shared>) -> io::Result<Running> {
    let mut running = Running(Vec::with_capacity(vcpus.len()));
    for (number, vcpu) in vcpus.into_iter().enumerate() {
        let (kicker, shared) = (vcpu.kicker(), shared.clone());
        let thread = thread::Builder::new()
            .name(format!("vcpu{number}"))
            .stack_size(STACK)
            .spawn(move || run(vcpu, &shared));
        match thread {
            Ok(thread) => running.0.push((kicker, thread)),
            Err(error) => {
                running.stop();
                return Err(error);
            }
        }
    }
    Ok(running)
}

impl Running {
    /// Bring the vCPUs back. The machine must have been told to stop ([`Events::stop`]).
    pub fn stop(self) -> Vec<Vcpu> {
        for (kicker, thread) in &self.0 {
            kicker.kick(thread);
        }
        let threads = self.0.into_iter();
        threads
            .filter_map(|(_, thread)| thread.join().ok())
            .collect()
    }
}

fn run(mut vcpu: Vcpu, shared: &Shared) -> Vcpu {
    let events = &shared.events;
    let _ended = EndOnPanic(events);
    shared.first_entry.get_or_init(|| events.now());
    while !events.stopping() {
        let failed = match vcpu.run(shared) {
            Ok(Exit::Handled | Exit::Interrupted) => {
                shared
                    .outboxes
                    .iter()
                    .for_each(|outbox| outbox.throttle(events));
                continue;
            }
            Ok(Exit::Shutdown) => GuestEnd::TripleFault { rip: rip(&vcpu) },
            Ok(Exit::Failed(reason)) => GuestEnd::Failed {
                rip: rip(&vcpu),
                reason,
            },
            Err(error) => GuestEnd::Failed {
                rip: rip(&vcpu),
                reason: error.to_string(),
            },
        };
        events.finish(failed);
    }
    vcpu
}

/// Ends the machine when a vCPU's thread does by a panic, which nobody would notice otherwise.
struct EndOnPanic<'a>(&'a Events);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.finish(GuestEnd::Failed {
                rip: 0,
                reason: "hull itself failed in a vCPU's thread, as said above".into(),
            });
        }
    }
}

fn rip(vcpu: &Vcpu) -> u64 {
    vcpu.rip().unwrap_or_default()
}

impl Accesses for Shared {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port.into(), data);
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        self.ports.write(port.into(), data);
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        self.mmio.read(gpa, data);
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.mmio.write(gpa, data);
    }
}
