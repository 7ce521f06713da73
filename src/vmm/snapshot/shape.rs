//! What a snapshot holds beside the memory: its sections, as plain data.

use serde::{Deserialize, Serialize};

use crate::agent::{MAX_COMMAND, SavedSession};
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

/// Longest section of this tag, in bytes. It is checked before the section is decoded, which takes up to
/// some thirty times as much memory.
pub fn max_bytes(tag: [u8; 4]) -> usize {
    match tag {
        SHAPE => MAX_COMMAND + (1 << 20),
        // Twice the command in a session that has not begun, and what waits for the guest.
        AGENT => 2 * MAX_COMMAND + (1 << 20),
        // 32 vCPUs take half of it.
        _ => 1 << 20,
    }
}

/// A machine, and its facts at the time when it was saved.
#[derive(Debug, Serialize, Deserialize)]
pub struct Shape {
    /// The version of hull that saved it.
    pub version: String,
    /// The machine, with the addresses that its networks had; of a template only what
    /// [`Machine::before_command`] leaves.
    pub machine: Machine,
    /// [`late_devices`](crate::vmm::Config::late_devices) of its configuration.
    pub late_devices: bool,
    /// Whether the hidden devices were revealed to the guest.
    pub revealed: bool,
    /// The identity of each disk, in order.
    pub disks: Vec<Identity>,
    /// What hull loaded into memory before the first instruction.
    pub loaded: Option<Loaded>,
    /// Words that hull added to the kernel command line for the host.
    pub added_words: Vec<String>,
    /// The host processor's features, where KVM emulates the guest's kernel and so does not hide them.
    pub processor: Option<Features>,
}

/// The state of a device on a bus.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedDevice {
    /// Whether it is at a port.
    pub port: bool,
    /// Its first port or guest-physical address.
    pub base: u64,
    /// Its name in messages.
    pub name: String,
    /// Its state, for [`crate::devices::bus::BusDevice::load`].
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
