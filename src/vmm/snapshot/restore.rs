//! A new machine takes over the state of a snapshot.
//!
//! Chips are loaded after the vCPUs, whose local APICs take what the IOAPIC sends; devices after the
//! chips, since a device with a pending interrupt raises it again.

use std::ops::Range;
use std::time::SystemTime;

use rustix::rand::GetRandomFlags;

use super::saved::{Saved, SavedError};
use crate::agent::Resumed;
use crate::devices::bus::Bus;
use crate::kvm::save::SavedVcpu;
use crate::sync::lock;
use crate::vmm::error::VmmError;
use crate::vmm::machine::Machine;

/// Load `saved` into `machine`, which was built with the same shape.
///
/// # Errors
/// A disk is another than it was, or the host or a device cannot load its state.
pub fn load(saved: &Saved, machine: &mut Machine) -> Result<(), VmmError> {
    for (then, disk) in saved.shape.disks.iter().zip(&machine.devices.disks) {
        let now = disk.identity().map_err(SavedError::Image)?;
        then.check(&now).map_err(|error| SavedError::Disk {
            dir: saved.dir.clone(),
            error,
        })?;
    }
    if saved.shape.revealed {
        machine.devices.slots.reveal();
    }
    // The threads of loaded devices must not serve their queues before everything is loaded.
    let _quiet = machine.devices.quiesce();
    // The vCPUs were saved some moments apart, but share one clock.
    let tsc = saved.vcpus.first().map_or(0, SavedVcpu::tsc);
    for (index, (vcpu, state)) in machine.vcpus.iter_mut().zip(&saved.vcpus).enumerate() {
        let loaded = vcpu.load(state, index, tsc);
        loaded.map_err(|error| saved.host(error))?;
    }
    let loaded = machine.vm.load_chips(&saved.chips);
    loaded.map_err(|error| saved.host(error))?;
    load_devices(saved, &machine.shared.buses.ports, true)?;
    Ok(load_devices(saved, &machine.shared.buses.mmio, false)?)
}

fn load_devices(saved: &Saved, bus: &Bus, port: bool) -> Result<(), SavedError> {
    let of_bus = || saved.devices.iter().filter(|device| device.port == port);
    for (base, _, name, device) in bus.devices() {
        let state = of_bus().find(|device| device.base == base);
        let state = state.map_or(&[][..], |device| &device.state);
        let loaded = lock(device).load(state);
        loaded.map_err(|error| SavedError::Device {
            dir: saved.dir.clone(),
            device: name.into(),
            error,
        })?;
    }
    let there = |base| bus.devices().any(|(at, ..)| at == base);
    match of_bus().find(|device| !there(device.base)) {
        None => Ok(()),
        Some(lost) => Err(saved.wrong(&format!("this machine lacks its device {}", lost.name))),
    }
}

/// What a restored guest is told: everything that two copies of it must not share, and the `slots` of
/// devices that it has not seen yet.
pub fn resumed(slots: Range<usize>) -> Resumed {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let mut entropy = [0; 32];
    // It blocks only until the host's generator is initialized, long before a user can run hull.
    let _ = rustix::rand::getrandom(&mut entropy, GetRandomFlags::empty());
    Resumed {
        unix_ns: since.map_or(0, |time| time.as_nanos() as u64),
        entropy,
        first_slot: slots.start as u8,
        slots: slots.len() as u8,
    }
}
