//! The parts of a machine that [`super::builder`] has put together.

use std::sync::{Arc, Mutex};

use super::devices::Devices;
use super::own::Own;
use super::pipe::Pipe;
use super::shared::Shared;
use crate::boot::Loaded;
use crate::devices::legacy::power::Power;
use crate::kvm::vcpu::Vcpu;
use crate::kvm::vm::Vm;

/// GSI of the keyboard controller.
pub const KEYBOARD_GSI: u32 = 1;

/// A machine before its first instruction.
pub struct Machine {
    // Before `vm`: vCPUs are dropped before the machine that they are part of.
    /// All vCPUs, by index.
    pub vcpus: Vec<Vcpu>,
    /// KVM's virtual machine, whose memory slots point into guest memory.
    pub vm: Vm,
    /// What the vCPU threads share.
    pub shared: Arc<Shared>,
    pub devices: Devices,
    /// With the power button.
    pub power: Arc<Mutex<Power>>,
    /// What the kernel may print on: COM1 and the virtio console. The first is the one to type on.
    pub consoles: Vec<Pipe>,
    /// What the agent may speak over, the best first; none without an agent.
    pub agent: Vec<Pipe>,
    /// What was put into guest memory before the first instruction.
    pub loaded: Option<Loaded>,
    /// Words that hull added to the kernel's command line for this host.
    pub added_words: Vec<String>,
    /// What the host knows of this process.
    pub own: Arc<Own>,
}
