//! What a snapshot holds beside the memory: its sections, as plain data.

use serde::{Deserialize, Serialize};

use crate::agent::SavedSession;
use crate::boot::Loaded;
use crate::config::Machine;
use crate::disk::Identity;
use crate::kvm::features::Features;

/// The section of a [`Shape`].
pub const SHAPE: [u8; 4] = *b"SHAP";
/// The section of all [`SavedVcpu`](crate::kvm::save::SavedVcpu)s.
pub const VCPUS: [u8; 4] = *b"VCPU";
/// The section of a [`SavedChips`](crate::kvm::save::SavedChips).
pub const CHIPS: [u8; 4] = *b"CHIP";
/// The section of all [`SavedDevice`]s.
pub const DEVICES: [u8; 4] = *b"DEVS";
/// The section of a [`SavedLink`], if there is one.
pub const AGENT: [u8; 4] = *b"AGNT";

/// A machine, and what was true of it when it was saved.
#[derive(Debug, Serialize, Deserialize)]
pub struct Shape {
    /// hull's version that made it.
    pub version: String,
    /// The machine, with the addresses that its networks had; of a template only what
    /// [`Machine::before_command`] leaves.
    pub machine: Machine,
    /// As in [`Config`](crate::vmm::Config).
    pub late_devices: bool,
    /// Whether the guest has learnt of all devices.
    pub revealed: bool,
    /// What each of the machine's disks was, in their order.
    pub disks: Vec<Identity>,
    /// What was put into memory before the first instruction.
    pub loaded: Option<Loaded>,
    /// Words that hull added to the command line for its host.
    pub added_words: Vec<String>,
    /// What the guest sees of the processor past KVM, where KVM emulates its kernel.
    pub processor: Option<Features>,
}

/// The state of a device on a bus.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedDevice {
    /// Whether it is at a port.
    pub port: bool,
    /// Its first address.
    pub base: u64,
    /// What messages call it.
    pub name: String,
    /// What [`crate::devices::bus::BusDevice::load`] takes.
    pub state: Vec<u8>,
}

/// The state of the link to hull's init.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedLink {
    /// The session; `None` in a template, whose guest waits for its first command.
    pub session: Option<SavedSession>,
    /// Index of the pipe that it uses.
    pub pipe: usize,
}
