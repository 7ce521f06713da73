//! Every guest-physical address (GPA) and interrupt line (GSI) that hull hands out.
//!
//! ```text
//!  0x0_0000_0000 +---------------------------+
//!                | real-mode IVT, BDA        |
//!         0x0500 | GDT                       |  boot::tables
//!         0x0520 | IDT (empty)               |
//!         0x6000 | PVH hvm_start_info        |  boot::pvh
//!         0x7000 | boot_params ("zero page") |  boot::linux64
//!         0x8000 | flat payload              |  guest/payloads
//!         0x9000 | PML4, PDPT, 4 PDs         |  boot::tables (6 pages: identity map of 4 GiB)
//!      0x2_0000  | kernel command line       |  64 KiB
//!      0x9_fc00  | EBDA: MP floating pointer |  boot::mptable
//!      0xa_0000  | (VGA hole, reserved)      |
//!      0xe_0000  | ACPI: RSDP, XSDT, ...     |  boot::acpi
//!      0xf_f000  | VM generation             |  vmm::generation, found by ACPI
//!     0x10_0000  | kernel (or its p_paddr)   |
//!                | ...                       |
//!                | initrd, below the top of  |
//!                | low RAM                   |
//!   0xc000_0000  +---------------------------+  MMIO hole, 1 GiB
//!   0xc000_0000  | boot timer                |
//!   0xc000_1000  | virtio-mmio slots         |  4 KiB each
//!   0xfec0_0000  | IOAPIC                    |
//!   0xfee0_0000  | local APIC                |
//!   0xfffb_c000  | KVM identity map, TSS     |
//! 0x1_0000_0000  +---------------------------+
//!                | RAM above 4 GiB           |
//!                +---------------------------+
//! ```

/// Size of a page of guest memory in bytes.
pub const PAGE_SIZE: u64 = 0x1000;

/// Global descriptor table used to enter 32- and 64-bit kernels.
pub const GDT: u64 = 0x500;
/// An empty interrupt descriptor table.
pub const IDT: u64 = 0x520;
/// PVH `struct hvm_start_info` and what it points to, up to [`BOOT_PARAMS`].
pub const PVH_START_INFO: u64 = 0x6000;
/// Linux's `struct boot_params` (Documentation/arch/x86/zero-page.rst).
pub const BOOT_PARAMS: u64 = 0x7000;
/// Where a flat payload is loaded and entered.
pub const FLAT_PAYLOAD: u64 = 0x8000;
/// PML4, PDPT and four page directories: an identity map of the first 4 GiB.
pub const PAGE_TABLES: u64 = 0x9000;
/// Bytes of page tables at [`PAGE_TABLES`].
pub const PAGE_TABLES_SIZE: u64 = 6 * PAGE_SIZE;
/// Stack for payloads and 64-bit entries, growing down.
pub const BOOT_STACK_TOP: u64 = 0x1_f000;
/// Kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Bytes reserved for the command line, the NUL included.
pub const CMDLINE_CAPACITY: u64 = 0x1_0000;
/// Extended BIOS data area: the MP floating pointer and table.
pub const EBDA: u64 = 0x9_fc00;
/// End of conventional memory.
pub const CONVENTIONAL_END: u64 = 0xa_0000;
/// ACPI tables, RSDP first, inside the area a BIOS scan covers (ACPI 6.5, 5.2.5.1).
pub const ACPI: u64 = 0xe_0000;
/// 16 bytes that differ in every machine, also in two that are restored from one snapshot ("Virtual
/// Machine Generation ID", Microsoft 2012): a separate page after the tables, reserved as they are.
pub const VM_GENERATION: u64 = ACPI_END - PAGE_SIZE;
/// End of the area for ACPI tables and what they point to.
pub const ACPI_END: u64 = 0x10_0000;
/// Start of extended memory, the lowest address of a kernel.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Start of the hole below 4 GiB in which no RAM is.
pub const MMIO_HOLE: u64 = 0xc000_0000;
/// End of the hole, where RAM continues.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;
/// Firecracker's boot timer: a guest writes the byte 123 here when it has booted.
pub const BOOT_TIMER: u64 = MMIO_HOLE;
/// First virtio-mmio slot; the next one follows after [`VIRTIO_MMIO_SIZE`] bytes.
pub const VIRTIO_MMIO: u64 = MMIO_HOLE + PAGE_SIZE;
/// Size of one virtio-mmio slot in bytes.
pub const VIRTIO_MMIO_SIZE: u64 = PAGE_SIZE;
/// IOAPIC registers (KVM's in-kernel model).
pub const IOAPIC: u64 = 0xfec0_0000;
/// Local APIC registers (KVM's in-kernel model).
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// One page for KVM_SET_IDENTITY_MAP_ADDR.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages for KVM_SET_TSS_ADDR.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// GSI of COM2 (ISA IRQ 3).
pub const COM2_GSI: u32 = 3;
/// GSI of COM1 (ISA IRQ 4).
pub const COM1_GSI: u32 = 4;
/// GSI of the ACPI system control interrupt.
pub const SCI_GSI: u32 = 9;
/// GSI that tells the guest of a new [`VM_GENERATION`]: a PC's mouse has it, which hull does not have.
pub const VM_GENERATION_GSI: u32 = 12;
/// I/O port base of COM1.
pub const COM1_PORT: u16 = 0x3f8;
/// I/O port base of COM2.
pub const COM2_PORT: u16 = 0x2f8;
/// I/O port of the ACPI PM1a event block (4 bytes) (ACPI 6.5, 4.8.3.1).
pub const PM1A_EVENT_PORT: u16 = 0x600;
/// I/O port of the ACPI PM1a control block (2 bytes) (ACPI 6.5, 4.8.3.2).
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// I/O port of the ACPI PM timer (4 bytes).
pub const PM_TIMER_PORT: u16 = 0x608;
/// I/O port of the ACPI reset register; writing [`ACPI_RESET_VALUE`] resets.
pub const ACPI_RESET_PORT: u16 = 0x0cf9;
/// The value for [`ACPI_RESET_PORT`].
pub const ACPI_RESET_VALUE: u8 = 0x06;
/// SLP_TYP of S5, as the DSDT's `_S5` names it.
pub const S5_SLP_TYP: u8 = 5;
/// I/O port of the debug codes (POST codes).
pub const DEBUG_PORT: u16 = 0x80;

/// Most vCPUs that a machine may have.
pub const MAX_CPUS: u8 = 32;

/// I/O port at which hull's own kernel notifies the device of the first virtio-mmio slot; the next one's
/// follows after 4 ports.
pub const VIRTIO_NOTIFY_PORT: u16 = 0x700;
/// Number of these ports.
pub const VIRTIO_NOTIFY_PORTS: u16 = 4 * VIRTIO_GSIS.len() as u16;

/// GSIs for virtio devices, in the order of allocation: free ISA lines first,
/// then the IOAPIC's remaining pins. 0 is the PIT, 1 the i8042, 2 the cascade, 3 and 4
/// the UARTs, 8 the RTC, 9 the SCI, 12 [`VM_GENERATION_GSI`].
pub const VIRTIO_GSIS: [u32; 16] = [5, 6, 7, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

const _: () = {
    assert!(ACPI < VM_GENERATION && VM_GENERATION.is_multiple_of(PAGE_SIZE));
    assert!(IDT + 16 <= PVH_START_INFO);
    assert!(PVH_START_INFO < BOOT_PARAMS && BOOT_PARAMS + PAGE_SIZE <= FLAT_PAYLOAD);
    assert!(PAGE_TABLES + PAGE_TABLES_SIZE <= BOOT_STACK_TOP && BOOT_STACK_TOP < CMDLINE);
    assert!(CMDLINE + CMDLINE_CAPACITY <= EBDA && EBDA < CONVENTIONAL_END);
    assert!(VIRTIO_MMIO + VIRTIO_GSIS.len() as u64 * VIRTIO_MMIO_SIZE <= IOAPIC);
    assert!(KVM_IDENTITY_MAP + PAGE_SIZE == KVM_TSS && KVM_TSS + 3 * PAGE_SIZE <= MMIO_HOLE_END);
};

/// A virtio-mmio slot as boot tables and the command line describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioSlot {
    /// GPA of the first register.
    pub base: u64,
    /// The interrupt line of the device.
    pub gsi: u32,
    /// The port at which hull's own kernel notifies the device.
    pub notify_port: u16,
}

/// The slot of the `index`th virtio device, or `None` when the lines are used up.
pub fn virtio_slot(index: usize) -> Option<MmioSlot> {
    let gsi = *VIRTIO_GSIS.get(index)?;
    Some(MmioSlot {
        base: VIRTIO_MMIO + index as u64 * VIRTIO_MMIO_SIZE,
        notify_port: VIRTIO_NOTIFY_PORT + 4 * index as u16,
        gsi,
    })
}
