//! One sample, as it is taken on a vCPU's thread.

use crate::kvm::walk::Paging;

/// What a vCPU was doing at a tick.
#[derive(Debug)]
pub struct Sample {
    /// Which vCPU.
    pub cpu: usize,
    /// Ticks that it stands for: the vCPU may have been busy outside of the guest for some.
    pub ticks: u32,
    /// RIP.
    pub rip: u64,
    /// RSP.
    pub rsp: u64,
    /// RBP.
    pub rbp: u64,
    /// At CPL 3.
    pub user: bool,
    /// How addresses are translated.
    pub paging: Paging,
    /// The stack from RSP on, as far as it could be read.
    pub stack: Vec<u8>,
}
