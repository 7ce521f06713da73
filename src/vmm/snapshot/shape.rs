//! What a snapshot holds beside the memory: its sections, as plain data.

use serde::{Deserialize, Serialize};

use crate::agent::SavedSession;
use crate::boot::Loaded;
use crate::disk::{self, Identity};
use crate::kvm::features::Features;
use crate::vmm::config::{Balloon, Terminal};
use crate::vmm::devices::vsock;
use crate::{net, share};

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

/// What a machine is made of.
#[derive(Debug, Serialize, Deserialize)]
pub struct Shape {
    /// hull's version that made it.
    pub version: String,
    /// vCPUs.
    pub cpus: u8,
    /// Guest memory.
    pub memory_bytes: u64,
    /// What the kernel's terminal is on.
    pub terminal: Terminal,
    /// Whether hull's init runs a command.
    pub agent: bool,
    /// Whether that command has a terminal.
    pub terminal_wanted: bool,
    /// As in [`Config`](crate::vmm::Config).
    pub late_devices: bool,
    /// Whether the guest has learnt of all devices.
    pub revealed: bool,
    /// As in [`Config`](crate::vmm::Config).
    pub rng: bool,
    /// As in [`Config`](crate::vmm::Config).
    pub balloon: Option<Balloon>,
    /// As in [`Config`](crate::vmm::Config), with what each was.
    pub disks: Vec<(disk::Config, Identity)>,
    /// As in [`Config`](crate::vmm::Config).
    pub nets: Vec<net::Config>,
    /// As in [`Config`](crate::vmm::Config).
    pub shares: Vec<share::Config>,
    /// As in [`Config`](crate::vmm::Config).
    pub vsock: Option<vsock::Config>,
    /// What was put into memory before the first instruction.
    pub loaded: Option<Loaded>,
    /// Words that hull added to the command line for its host.
    pub added_words: Vec<String>,
    /// What the guest sees of the processor past KVM, where KVM emulates its kernel.
    pub processor: Option<Features>,
}

/// A device on a bus.
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

/// The way to hull's init.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedLink {
    /// The protocol; none of a template, whose guest waits for its first command.
    pub session: Option<SavedSession>,
    /// Which pipe it goes over.
    pub pipe: usize,
}
