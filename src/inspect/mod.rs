//! The state of a machine at one moment, as plain data: what `hull inspect` shows.
//!
//! [`cpu`] decodes vCPUs, [`tables`] their GDT and IDT, [`pages`] a page walk, [`map`] the memory
//! map, [`chips`] the interrupt controllers, [`lockdown`] what hull itself may still do; devices and
//! queues describe themselves. `vmm` gathers the raw state while the vCPUs are paused and decodes it
//! here when they run again, `cli` formats it. Nothing that is read from guest memory is trusted.

#![forbid(unsafe_code)]

pub mod chips;
pub mod cpu;
pub mod lockdown;
pub mod map;
pub mod pages;
mod symbol;
pub mod tables;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::config::file::Written;
pub use crate::devices::register::{Hex, Register};
use crate::devices::virtio::QueueCounters;
pub use crate::devices::virtio::queue::view::{ChainView, DescriptorView, QueueView, Rings};

/// Which part of the state to show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// Everything but a page walk.
    All,
    /// Registers, descriptor tables and pending events of the vCPUs.
    Registers,
    /// What lies where in guest-physical memory.
    Memory,
    /// The page walk to one address.
    PageTables {
        /// In hexadecimal, or a symbol with or without an offset (`start_kernel+0x10`).
        address: String,
    },
    /// Devices on the buses, with their registers.
    Devices,
    /// Rings and descriptors of the virtqueues.
    Queues,
    /// PICs, IOAPIC, local APICs and PIT.
    Interrupts,
    /// The machine's configuration; no part of [`Topic::All`].
    Config,
    /// What hull has given up; no part of [`Topic::All`].
    Lockdown,
}

/// The state that was asked for; other fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inspection {
    /// The vCPUs, by index.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vcpus: Vec<cpu::Cpu>,
    /// Everything that lies in guest-physical memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<map::Memory>,
    /// The page walk to the address that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub walk: Option<pages::Walk>,
    /// Devices on the buses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Virtio devices with their queues.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<Queues>,
    /// PICs, IOAPIC, local APICs and PIT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interrupts: Option<chips::Interrupts>,
    /// The machine's configuration, as `hull run --config` reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Written>,
    /// What hull has given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lockdown: Option<lockdown::Lockdown>,
}

/// A device on a bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name in messages and traces.
    pub name: String,
    /// The bus that it is on: `ports` or `memory`.
    pub bus: String,
    /// The first port or guest-physical address.
    pub base: Hex,
    /// Number of ports, or bytes of addresses.
    pub len: u64,
    /// Its interrupt line, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gsi: Option<u32>,
    /// Its registers, by offset, with their values.
    pub registers: Vec<Register>,
    /// What passed through its queues, of a virtio device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<QueueCounters>,
}

/// The queues of a virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queues {
    /// The device's name in messages and traces.
    pub device: String,
    /// Its queues, by index, with their rings.
    pub queues: Vec<QueueView>,
}
