//! A guest that was saved once and is resumed in new machines.

use std::time::Duration;

use super::error::BenchError;
use super::plan::Bench;
use crate::compare::measure::timed::Running;
use crate::compare::subject::guest;
use crate::compare::subject::monitor::Machine;

pub const SETTLE_TIME: Duration = Duration::from_secs(2);

pub trait SavedGuest {
    /// Boots the guest, lets it become idle, and saves it.
    fn save(&mut self) -> Result<(), BenchError>;

    /// Starts a monitor that restores the guest as the machine `name`, with [`guest::TYPED`] as its input.
    fn restore(&mut self, name: &str) -> Result<ResumedGuest, BenchError>;

    /// Saves the running machine `name` to another place: milliseconds in all, and of the guest's pause.
    fn save_again(&mut self, name: &str) -> Result<[f64; 2], BenchError>;

    /// Ends the machine `name`: milliseconds from exec to its first KVM_RUN, if it reports them.
    fn first_run(&mut self, name: &str, guest: ResumedGuest) -> Result<Option<f64>, BenchError>;
}

/// A guest after its restore. Dropping it ends the monitor.
pub struct ResumedGuest {
    pub running: Running,
    /// When a socket of the monitor had answered, since the start.
    pub answered: Duration,
}

/// The machine of the idle guest, the same under all monitors.
pub fn idle_machine(bench: &Bench) -> Result<Machine, BenchError> {
    let initrd = bench.stage.initrd("initrd.idle", guest::idle)?;
    Ok(Machine::with_bare_init(bench.stage.vmlinux()?, initrd))
}
