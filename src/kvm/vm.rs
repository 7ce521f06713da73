//! One virtual machine: memory slots, the in-kernel interrupt controllers, lines and timer.
//!
//! Source: Documentation/virt/kvm/api.rst.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY,
    kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::cpuid::Place;
use super::processor;
use super::vcpu::Vcpu;
use super::{KvmError, access, cpuid, lapic, msrs, refused};
use crate::memory::GuestMemory;
use crate::memory::dirty;
use crate::memory::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use crate::memory::pages::Pages;
use crate::sandbox::outlive;
use crate::sync::lock;

/// Features that a machine lacks on purpose (`vmm::fault`); by default none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MissingFeatures {
    /// Interrupt controllers, local APICs and PIT are missing.
    pub irqchip: bool,
    /// CPUID does not show long mode.
    pub long_mode: bool,
}

/// A virtual machine and the guest memory that its slots point into.
pub struct Vm {
    // Before `memory`: the VM is dropped first, so that no slot ever points to unmapped memory.
    fd: Arc<VmFd>,
    kvm: Kvm,
    memory: GuestMemory,
    windows: Option<GuestMemory>,
    missing: MissingFeatures,
}

/// Open /dev/kvm and check that it is KVM.
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| {
        let error = error.into();
        KvmError::Open {
            remedy: access::remedy(&error),
            source_text: error,
        }
    })?;
    match kvm.get_api_version() {
        12 => Ok(kvm),
        version => Err(KvmError::Version { version }),
    }
}

/// The slot of the registers' windows; those of memory are counted from 0.
const WINDOWS_SLOT: u32 = 16;

/// Create the slot of each region of `memory`, from `first` on, or change its `flags`.
///
/// # Safety
/// `memory` stays mapped as long as `fd` is open.
unsafe fn set_slots(
    fd: &VmFd,
    first: u32,
    memory: &GuestMemory,
    flags: u32,
) -> Result<(), KvmError> {
    for (slot, region) in (first..).zip(memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a whole mapping of `memory`, which stays mapped, as the caller
        // promises; regions of a GuestMemory do not overlap.
        unsafe { fd.set_user_memory_region(slot) }
            .map_err(refused("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

impl Vm {
    /// Leave the machine's end, which takes the host's kernel tens of milliseconds, to a process that
    /// outlives this one. This process must be about to end: what it holds of the machine is never freed.
    ///
    /// # Errors
    /// The process cannot be started; nothing has changed then.
    pub fn end_after_exit(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open as long as `self`.
        outlive(unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) })?;
        std::mem::forget((self.fd.clone(), self.memory.clone(), self.windows.clone()));
        Ok(())
    }

    /// Create the machine with memory, IOAPIC, PICs, local APICs and PIT, without vCPUs.
    pub fn new(kvm: Kvm, memory: GuestMemory) -> Result<Self, KvmError> {
        Self::without(MissingFeatures::default(), kvm, memory, None)
    }

    /// Whether a guest can read memory that it cannot write, as [`Vm::without`] maps `windows`.
    pub fn maps_read_only(kvm: &Kvm) -> bool {
        kvm.check_extension(Cap::ReadonlyMem)
    }

    /// As [`Vm::new`], without the `missing` features. The guest can read `windows` as well; what it
    /// writes there is an exit.
    pub fn without(
        missing: MissingFeatures,
        kvm: Kvm,
        memory: GuestMemory,
        windows: Option<GuestMemory>,
    ) -> Result<Self, KvmError> {
        let fd = kvm.create_vm().map_err(refused("KVM_CREATE_VM"))?;
        // First: KVM waits until the old memory map is unused (SRCU), which takes longest right after
        // the interrupt controllers were put on the machine's buses.
        // SAFETY: the struct below owns both and drops `memory` after the VM's file descriptor.
        unsafe { set_slots(&fd, 0, &memory, 0) }?;
        if let Some(windows) = &windows {
            // SAFETY: as before.
            unsafe { set_slots(&fd, WINDOWS_SLOT, windows, KVM_MEM_READONLY) }?;
        }
        // Intel without unrestricted guests needs both pages; elsewhere they cost nothing.
        fd.set_identity_map_address(KVM_IDENTITY_MAP)
            .map_err(refused("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(KVM_TSS as usize)
            .map_err(refused("KVM_SET_TSS_ADDR"))?;
        // A KVM that cannot report instructions emulates all of them.
        let _ = super::assist::vcpu::enable(&fd);
        if !missing.irqchip {
            fd.create_irq_chip()
                .map_err(refused("KVM_CREATE_IRQCHIP"))?;
            let pit = kvm_pit_config {
                flags: KVM_PIT_SPEAKER_DUMMY,
                ..Default::default()
            };
            fd.create_pit2(pit).map_err(refused("KVM_CREATE_PIT2"))?;
        }
        Ok(Self {
            fd: Arc::new(fd),
            kvm,
            memory,
            windows,
            missing,
        })
    }

    /// The memory behind the windows of devices, if the guest reads them without an exit.
    pub fn windows(&self) -> Option<&GuestMemory> {
        self.windows.as_ref()
    }

    /// The memory of the guest, which the slots point to.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Log from now on which pages change: KVM logs the guest's writes, and hull its own.
    ///
    /// # Errors
    /// An ioctl that KVM refuses, with its errno.
    pub fn track_dirty(&self) -> Result<(), KvmError> {
        dirty::start(&self.memory);
        // SAFETY: this struct owns both and drops `memory` after the VM's file descriptor.
        unsafe { set_slots(&self.fd, 0, &self.memory, KVM_MEM_LOG_DIRTY_PAGES) }
    }

    /// The pages that changed since [`Vm::track_dirty`] or the last call. Exact only while no vCPU
    /// and no device runs.
    ///
    /// # Errors
    /// KVM refuses, for example without [`Vm::track_dirty`].
    pub fn take_dirty(&self) -> Result<Pages, KvmError> {
        let mut maps = Vec::new();
        for (slot, region) in self.memory.iter().enumerate() {
            let map = self.fd.get_dirty_log(slot as u32, region.size());
            maps.push(map.map_err(refused("KVM_GET_DIRTY_LOG"))?);
        }
        let by_guest = Pages::from_bitmaps(&self.memory, &maps);
        Ok(by_guest.union(&dirty::take(&self.memory)))
    }

    /// A shared handle of the machine's descriptor.
    pub(super) fn shared_fd(&self) -> Arc<VmFd> {
        self.fd.clone()
    }

    /// KVM's descriptor of the machine.
    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// The /dev/kvm that it was made by.
    pub(super) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// The CPUID that KVM can show to a guest.
    pub(super) fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        let cpuid = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        cpuid.map_err(refused("KVM_GET_SUPPORTED_CPUID"))
    }

    /// Create the vCPU at `place`, with KVM's CPUID, this machine's topology, and the MSRs that
    /// firmware would set.
    pub fn create_vcpu(&self, place: &Place) -> Result<Vcpu, KvmError> {
        let fd = self
            .fd
            .create_vcpu(place.id.into())
            .map_err(refused("KVM_CREATE_VCPU"))?;
        let mut cpuid = cpuid::describe(&self.supported_cpuid()?, place, processor::cpuid)?;
        if self.missing.long_mode {
            cpuid::hide_long_mode(&mut cpuid);
        }
        fd.set_cpuid2(&cpuid).map_err(refused("KVM_SET_CPUID2"))?;
        msrs::set(&fd)?;
        // Without an irqchip KVM has no local APIC to set up.
        if !self.missing.irqchip {
            lapic::set(&fd)?;
        }
        Ok(Vcpu::new(fd, self.memory.clone()))
    }

    /// Create vCPU `id` with nothing set, for [`Vcpu::load`].
    ///
    /// # Errors
    /// An ioctl that KVM refuses, with its errno.
    pub fn create_empty_vcpu(&self, id: u8) -> Result<Vcpu, KvmError> {
        let fd = self.fd.create_vcpu(id.into());
        let fd = fd.map_err(refused("KVM_CREATE_VCPU"))?;
        Ok(Vcpu::new(fd, self.memory.clone()))
    }

    /// A handle to have KVM take writes.
    pub fn io_events(&self) -> IoEvents {
        IoEvents(self.fd.clone())
    }

    /// The interrupt line `gsi`; `None` without an interrupt controller.
    pub fn line(&self, gsi: u32) -> Option<Line> {
        (!self.missing.irqchip).then(|| Line {
            vm: self.fd.clone(),
            gsi,
            pulse: Mutex::new(()),
        })
    }
}

/// Writes that KVM takes.
#[derive(Clone)]
pub struct IoEvents(Arc<VmFd>);

impl IoEvents {
    /// Have KVM signal `event` for a write of `value` (4 bytes) at `place`, without an exit to hull.
    ///
    /// # Errors
    /// An ioctl that KVM refuses, with its errno.
    pub fn register(
        &self,
        event: BorrowedFd<'_>,
        place: &IoEventAddress,
        value: u32,
    ) -> Result<(), KvmError> {
        // SAFETY: the descriptor is open, and ManuallyDrop keeps this second owner from closing it.
        let event = ManuallyDrop::new(unsafe { EventFd::from_raw_fd(event.as_raw_fd()) });
        self.0
            .register_ioevent(&event, place, value)
            .map_err(refused("KVM_IOEVENTFD"))
    }
}

/// An interrupt line, raised on the device's own thread. With an irqfd, KVM would raise a line of the
/// IOAPIC from a thread of the kernel, one more context switch for each interrupt (irqfd_wakeup in
/// virt/kvm/eventfd.c).
pub struct Line {
    vm: Arc<VmFd>,
    gsi: u32,
    /// Keeps two pulses apart, which would be one edge if they overlapped.
    pulse: Mutex<()>,
}

impl Line {
    /// Raise the line and lower it again.
    ///
    /// # Errors
    /// An ioctl that KVM refuses, with its errno.
    pub fn pulse(&self) -> io::Result<()> {
        let _pulse = lock(&self.pulse);
        for level in [true, false] {
            let set = self.vm.set_irq_line(self.gsi, level);
            set.map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::VcpuExit;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::backing;

    #[test]
    fn writes_of_guest_and_hull_are_dirty_once() {
        if std::fs::File::open("/dev/kvm").is_err() {
            eprintln!("skipped: /dev/kvm does not open");
            return;
        }
        let memory = backing::allocate(0x20_0000).expect("memory");
        // Real mode: mov [0x5000], al; mov [0x7fff], ax; out 0x80, al; jmp back.
        let code = b"\xa2\x00\x50\xa3\xff\x7f\xe6\x80\xeb\xf6";
        memory
            .write_slice(code, GuestAddress(0x1000))
            .expect("code");
        let vm = Vm::new(open().expect("KVM"), memory.clone()).expect("a VM");
        let mut vcpu = vm.create_vcpu(&Place::ALONE).expect("a vCPU");
        let fd = vcpu.fd();
        let mut sregs = fd.get_sregs().expect("sregs");
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        fd.set_sregs(&sregs).expect("real mode");
        let mut regs = fd.get_regs().expect("regs");
        (regs.rip, regs.rflags) = (0x1000, 2);
        fd.set_regs(&regs).expect("regs");
        let mut turn = || {
            let exit = fd.run().expect("it runs");
            assert!(matches!(exit, VcpuExit::IoOut(0x80, _)), "{exit:?}");
        };
        turn();
        assert!(vm.take_dirty().is_err(), "not tracked");
        vm.track_dirty().expect("tracked");
        for _ in 0..2 {
            memory
                .write_obj(1u8, GuestAddress(0x1_0000))
                .expect("written");
            turn();
            let dirty = vm.take_dirty().expect("a log");
            let expected = [0x5000..0x6000, 0x7000..0x9000, 0x1_0000..0x1_1000];
            assert_eq!(dirty.ranges(), expected);
        }
        assert!(vm.take_dirty().expect("a log").is_empty());
    }
}
