//! A window's registers as a page that the guest reads without an exit.
//!
//! KVM maps the page for reading alone (`KVM_MEM_READONLY`, Documentation/virt/kvm/api.rst,
//! KVM_SET_USER_MEMORY_REGION): a read is one of memory, a write leaves the guest as before. So the
//! page holds at all times what a read of each register returns. A driver that reads more than one
//! word of the configuration space while the host changes it is interrupted for the change, and
//! reads again.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use super::register;
use crate::devices::virtio::core::Core;
use crate::devices::virtio::device::Device;
use crate::memory::GuestMemory;

/// Bytes of the configuration space in a page; no device has more.
const CONFIG_BYTES: usize = 128;

/// A page of registers.
#[derive(Clone)]
pub struct Page {
    windows: GuestMemory,
    base: u64,
}

impl Page {
    /// The page at guest-physical address `base` of `windows`.
    pub fn new(windows: GuestMemory, base: u64) -> Self {
        Self { windows, base }
    }

    /// Have the register at `offset` read as `value`.
    pub fn store(&self, offset: u64, value: u32) {
        let at = GuestAddress(self.base + offset);
        // Fails only outside of the page.
        let _ = self.windows.store(value.to_le(), at, Ordering::Release);
    }

    /// What the guest reads at `offset`; `None` outside of the page.
    pub fn load(&self, offset: u64) -> Option<u32> {
        let at = GuestAddress(self.base + offset);
        let value = self.windows.load(at, Ordering::Acquire);
        value.ok().map(u32::from_le)
    }

    /// Show an empty window, or one whose device is hidden.
    pub fn show_none(&self) {
        if self.load(register::DEVICE_ID) != Some(0) {
            let shown = register::CONFIG + CONFIG_BYTES as u64;
            (0..shown).step_by(4).for_each(|at| self.store(at, 0));
        }
        self.show_identity();
    }

    /// Show what all windows have in common.
    fn show_identity(&self) {
        self.store(register::MAGIC_VALUE, register::MAGIC);
        self.store(register::VERSION, register::VERSION_2);
        self.store(register::VENDOR_ID, register::VENDOR);
    }

    /// Show what never changes of a window with this device.
    pub fn show_fixed(&self, core: &Core) {
        self.show_identity();
        self.store(register::DEVICE_ID, core.kind().id);
        // No shared memory (virtio 1.2, 4.2.2).
        for offset in (register::SHM_LEN_LOW..=register::SHM_BASE_HIGH).step_by(4) {
            self.store(offset, u32::MAX);
        }
    }

    /// Show the configuration space.
    pub fn show_config(&self, device: &dyn Device) {
        let mut space = [0; CONFIG_BYTES];
        device.config(0, &mut space);
        let (words, _) = space.as_chunks::<4>();
        for (offset, word) in (register::CONFIG..).step_by(4).zip(words) {
            self.store(offset, u32::from_le_bytes(*word));
        }
    }
}
