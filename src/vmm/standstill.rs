//! A machine at a standstill because its user wants it so: `hull pause` and `hull resume`.

use std::sync::{Arc, Mutex};

use super::events::lock;
use super::vcpus::{Pause, Vcpus};

/// Paused by the user, or not. Other pauses, such as for a look at the machine, do not count.
pub struct Standstill {
    vcpus: Arc<Vcpus>,
    pause: Mutex<Option<Pause>>,
}

impl Standstill {
    /// Of these vCPUs, which may not have been started yet.
    pub fn new(vcpus: Arc<Vcpus>) -> Self {
        Self {
            vcpus,
            pause: Mutex::new(None),
        }
    }

    /// Pause all vCPUs and wait until they stand; whether they were not paused already.
    ///
    /// Not to be called on a vCPU's thread.
    pub fn pause(&self) -> bool {
        let mut pause = lock(&self.pause);
        if pause.is_some() {
            return false;
        }
        let held = self.vcpus.pause();
        // Its lock is free when a vCPU stands.
        (0..held.count()).for_each(|index| drop(held.vcpu(index)));
        *pause = Some(held);
        log::info!("paused");
        true
    }

    /// Let them run again; whether they were paused.
    ///
    /// To the guest the time in between is a gap, as after a busy host: its watchdogs are told.
    pub fn resume(&self) -> bool {
        let Some(held) = lock(&self.pause).take() else {
            return false;
        };
        for vcpu in (0..held.count()).filter_map(|index| held.vcpu(index)) {
            vcpu.tell_of_pause();
        }
        log::info!("resumed");
        true
    }

    /// Whether they are.
    pub fn is_paused(&self) -> bool {
        lock(&self.pause).is_some()
    }
}
