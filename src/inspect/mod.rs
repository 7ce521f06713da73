//! What a machine holds at one moment, as plain data: what `hull inspect` shows.
//!
//! [`cpu`] decodes vCPUs, [`tables`] their GDT and IDT, [`pages`] a page walk, [`map`] the memory
//! map, [`chips`] the interrupt controllers; devices and queues tell of themselves. `vmm` gathers
//! the raw state while the vCPUs stand still and has it decoded here when they run again, `cli`
//! draws it. All that is read from guest memory is the guest's and may be anything.

#![forbid(unsafe_code)]

pub mod chips;
pub mod cpu;
pub mod map;
pub mod pages;
pub mod tables;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use crate::devices::register::{Hex, Register};
use crate::devices::virtio::QueueCounters;
pub use crate::devices::virtio::queue::view::{ChainView, DescriptorView, QueueView, Rings};
use crate::symbols::Symbols;

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// Everything but a page walk.
    All,
    /// vCPUs.
    Registers,
    /// The memory map.
    Memory,
    /// The walk to one address.
    PageTables {
        /// In hexadecimal, or a symbol with or without an offset (`start_kernel+0x10`).
        address: String,
    },
    /// Devices.
    Devices,
    /// Virtqueues.
    Queues,
    /// Interrupt controllers.
    Interrupts,
}

/// What was seen; what was not asked for is not there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inspection {
    /// vCPUs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vcpus: Vec<cpu::Cpu>,
    /// The memory map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<map::Memory>,
    /// The walk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub walk: Option<pages::Walk>,
    /// Devices on the buses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Virtio devices with their queues.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<Queues>,
    /// Interrupt controllers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interrupts: Option<chips::Interrupts>,
}

/// A device on a bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// What messages call it.
    pub name: String,
    /// `ports` or `memory`.
    pub bus: String,
    /// Its first port or GPA.
    pub base: Hex,
    /// How many.
    pub len: u64,
    /// Its interrupt line, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gsi: Option<u32>,
    /// Its registers.
    pub registers: Vec<Register>,
    /// What passed through its queues, of a virtio device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<QueueCounters>,
}

/// The queues of a virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queues {
    /// What messages call the device.
    pub device: String,
    /// Its queues.
    pub queues: Vec<QueueView>,
}

/// How far behind a symbol an address still has its name: no kernel's function is larger.
const SYMBOL_REACH: u64 = 1 << 20;

/// `name+0x10`, if there is a symbol not far below.
pub fn symbol(symbols: &Symbols, address: u64) -> Option<String> {
    let (name, offset) = symbols.lookup(address)?;
    match offset {
        0 => Some(name.into()),
        1..SYMBOL_REACH => Some(format!("{name}+{offset:#x}")),
        _ => None,
    }
}
