//! A sample of a vCPU, taken on its thread.

use crate::kvm::walk::Paging;

/// The state of a vCPU at a tick.
#[derive(Debug)]
pub struct Sample {
    /// Number of the vCPU.
    pub cpu: usize,
    /// Ticks that it counts for: the vCPU may have missed some outside of the guest.
    pub ticks: u32,
    /// RIP, in the guest's linear addresses.
    pub rip: u64,
    /// RSP, where `stack` begins.
    pub rsp: u64,
    /// RBP, which may be a frame pointer.
    pub rbp: u64,
    /// Whether it was at CPL 3.
    pub user: bool,
    /// The paging, to read the guest's code.
    pub paging: Paging,
    /// The stack from RSP on, as far as it is readable.
    pub stack: Vec<u8>,
}
