//! ACPI tables: CPUs, interrupts, power, and the devices that no bus finds.
//!
//! ```text
//! layout::ACPI  RSDP | FACS | DSDT | FADT | MADT | XSDT      each at a multiple of 64 bytes
//! layout::VM_GENERATION                                      16 bytes that vmm::generation writes
//! ```
//!
//! Distribution kernels find virtio-mmio devices, CPUs and the power button only here.
//! Every interrupt line is edge-triggered and active high, as on ISA, because that is what hull
//! raises. Source: ACPI 6.5; `devices::legacy::power` implements the power hardware.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::{Aml, AmlSink, facs, rsdp, sdt, xsdt};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::entry::Machine;
use super::error::BootError;
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::layout::{
    ACPI, ACPI_RESET_PORT, ACPI_RESET_VALUE, COM1_GSI, COM1_PORT, COM2_GSI, COM2_PORT, IOAPIC,
    LOCAL_APIC, MmioSlot, PM_TIMER_PORT, PM1A_CONTROL_PORT, PM1A_EVENT_PORT, S5_SLP_TYP, SCI_GSI,
    VIRTIO_MMIO_SIZE, VM_GENERATION, VM_GENERATION_GSI,
};

const OEM_ID: [u8; 6] = *b"HULL  ";
const OEM_TABLE_ID: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;
/// Alignment of every table in bytes; only the FACS needs it (5.2.10).
const ALIGNMENT: usize = 64;

/// Fixed PC ports and lines, which the layout does not allocate.
const I8042_DATA_PORT: u16 = 0x60;
const I8042_COMMAND_PORT: u16 = 0x64;
const I8042_GSI: u32 = 1;
const RTC_PORT: u16 = 0x70;
/// Index of the CMOS clock's century byte.
const RTC_CENTURY: u8 = 0x32;

/// Write the tables, the MADT only if `with_madt`, and return the GPA of the root pointer (RSDP).
///
/// # Errors
/// [`BootError::NoRoom`] when they outgrow their area, [`BootError::OutsideMemory`].
pub fn write(memory: &GuestMemory, machine: &Machine, with_madt: bool) -> Result<u64, BootError> {
    let mut area = Area::default();
    let root = area.put(&rsdp::Rsdp::new(OEM_ID, 0)); // its place; its content comes last
    let facs = area.put(&facs::FACS::new());
    let dsdt = area.put(&dsdt(machine));
    let fadt = area.put(&fadt(facs, dsdt));
    let madt = with_madt.then(|| area.put(&madt(machine.cpus)));
    let mut xsdt = xsdt::XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    if let Some(madt) = madt {
        xsdt.add_entry(madt);
    }
    let xsdt = area.put(&xsdt);

    let size = area.0.len() as u64;
    let room = VM_GENERATION - ACPI;
    if size > room {
        return Err(BootError::NoRoom {
            what: "the ACPI tables",
            gpa: ACPI,
            size,
            room,
        });
    }
    ram::write(memory, "the ACPI tables", ACPI, &area.0)?;
    let pointer = rsdp::Rsdp::new(OEM_ID, xsdt);
    ram::write(memory, "the ACPI root pointer", root, pointer.as_bytes())?;
    Ok(root)
}

/// The tables as they will lie from [`ACPI`] on.
#[derive(Default)]
struct Area(Vec<u8>);

impl Area {
    /// Append a table and return its GPA.
    fn put(&mut self, table: &dyn Aml) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        let gpa = ACPI + self.0.len() as u64;
        table.to_aml_bytes(&mut self.0);
        gpa
    }
}

/// Fixed hardware (5.2.9). The tables are below 1 MiB, so 32-bit addresses suffice.
fn fadt(facs: u64, dsdt: u64) -> FADT {
    /// IAPC_BOOT_ARCH (table 5.11): ISA devices, an 8042, no VGA.
    const LEGACY_DEVICES: u16 = 1 << 0;
    const HAS_8042: u16 = 1 << 1;
    const NO_VGA: u16 = 1 << 2;
    /// Latencies in us, one above the limit, which means that the C-state does not exist.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;

    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_32(dsdt as u32)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton) // set: there is none
        .flag(Flags::FixRtc) // set: the clock does not wake the machine
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    // No SMI command: the machine is in ACPI mode from the start.
    fadt.sci_int = (SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = u32::from(PM1A_EVENT_PORT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(PM1A_CONTROL_PORT).into();
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = u32::from(PM_TIMER_PORT).into();
    fadt.pm_tmr_len = 4;
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = RTC_CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | HAS_8042 | NO_VGA).into();
    fadt.reset_reg = GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        ACPI_RESET_PORT.into(),
    );
    fadt.reset_value = ACPI_RESET_VALUE;
    fadt.finalize()
}

/// "Processor Local APIC Structure" (5.2.12.2).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct LocalApic {
    kind: u8,
    length: u8,
    processor_uid: u8,
    apic_id: u8,
    flags: U32,
}

/// "I/O APIC Structure" (5.2.12.3).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct IoApic {
    kind: u8,
    length: u8,
    id: u8,
    reserved: u8,
    address: U32,
    gsi_base: U32,
}

/// "Interrupt Source Override Structure" (5.2.12.5).
#[derive(IntoBytes, Immutable)]
#[repr(C, packed)]
struct SourceOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    gsi: U32,
    flags: U16,
}

/// "Local APIC NMI Structure" (5.2.12.7).
#[derive(IntoBytes, Immutable)]
#[repr(C, packed)]
struct LocalApicNmi {
    kind: u8,
    length: u8,
    processor_uid: u8,
    flags: U16,
    lint: u8,
}

/// Interrupt controllers (5.2.12). ISA interrupt n is GSI n, also the timer's 0: that is KVM's
/// default routing (arch/x86/kvm/irq_comm.c), and the MP table says the same.
fn madt(cpus: u8) -> sdt::Sdt {
    const REVISION: u8 = 6;
    const HEADER_SIZE: u32 = 44;
    /// `flags` bit 0: the machine has two 8259s as well.
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1;
    const ALL_PROCESSORS: u8 = 0xff;
    /// MPS INTI flags (table 5.26): active high, edge. The default for the SCI is level-triggered.
    const HIGH_EDGE: u16 = 0b01 | 0b01 << 2;

    let mut madt = sdt::Sdt::new(
        *b"APIC",
        HEADER_SIZE,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    madt.write_u32(36, LOCAL_APIC as u32);
    madt.write_u32(40, PCAT_COMPAT);
    for id in 0..cpus {
        let local_apic = LocalApic {
            kind: 0,
            length: size_of::<LocalApic>() as u8,
            processor_uid: id,
            apic_id: id,
            flags: U32::new(ENABLED),
        };
        madt.append_slice(local_apic.as_bytes());
    }
    let ioapic = IoApic {
        kind: 1,
        length: size_of::<IoApic>() as u8,
        id: 0, // what KVM's ID register holds
        reserved: 0,
        address: U32::new(IOAPIC as u32),
        gsi_base: U32::ZERO,
    };
    madt.append_slice(ioapic.as_bytes());
    let sci = SourceOverride {
        kind: 2,
        length: size_of::<SourceOverride>() as u8,
        bus: 0, // ISA
        source: SCI_GSI as u8,
        gsi: U32::new(SCI_GSI),
        flags: U16::new(HIGH_EDGE),
    };
    madt.append_slice(sci.as_bytes());
    let nmi = LocalApicNmi {
        kind: 4,
        length: size_of::<LocalApicNmi>() as u8,
        processor_uid: ALL_PROCESSORS,
        flags: U16::ZERO,
        lint: 1,
    };
    madt.append_slice(nmi.as_bytes());
    madt
}

/// The devices (chapter 6) and the value that powers the machine off (7.4.2).
fn dsdt(machine: &Machine) -> sdt::Sdt {
    const REVISION: u8 = 2;
    const HEADER_SIZE: u32 = 36;
    let mut aml = Vec::new();
    // SLP_TYP for PM1a and PM1b, and two reserved bytes.
    let s5 = Package::new(vec![&S5_SLP_TYP, &ZERO, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &s5).to_aml_bytes(&mut aml);

    let cpus = (0..machine.cpus).map(Dsdt::Cpu);
    let com2 = machine.com2.then_some(Dsdt::Uart {
        index: 2,
        port: COM2_PORT,
        gsi: COM2_GSI,
    });
    let com1 = Dsdt::Uart {
        index: 1,
        port: COM1_PORT,
        gsi: COM1_GSI,
    };
    let virtio = machine.virtio.iter().enumerate();
    let virtio = virtio.map(|(index, slot)| Dsdt::Virtio { index, slot: *slot });
    let devices: Vec<Dsdt> = cpus
        .chain([com1])
        .chain(com2)
        .chain([Dsdt::Keyboard, Dsdt::Clock])
        .chain([Dsdt::Generation, Dsdt::Events])
        .chain(virtio)
        .collect();
    let devices = devices.iter().map(|device| device as &dyn Aml).collect();
    Scope::new("_SB_".into(), devices).to_aml_bytes(&mut aml);

    let mut dsdt = sdt::Sdt::new(
        *b"DSDT",
        HEADER_SIZE,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    dsdt.append_slice(&aml);
    dsdt
}

/// A device that the DSDT describes.
enum Dsdt {
    /// A processor, by its UID in the MADT.
    Cpu(u8),
    /// A 16550 with its number from 1.
    Uart { index: u8, port: u16, gsi: u32 },
    /// The 8042 with its keyboard port.
    Keyboard,
    /// The CMOS clock, without its interrupt.
    Clock,
    /// The VM generation ID (Linux drivers/virt/vmgenid.c).
    Generation,
    /// The generic event device (5.6.9), which reports a new generation ID.
    Events,
    /// A virtio-mmio slot (virtio 1.2, 4.2; Linux drivers/virtio/virtio_mmio.c).
    Virtio { index: usize, slot: MmioSlot },
}

impl Aml for Dsdt {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        match self {
            Self::Cpu(id) => device(
                sink,
                &format!("C{id:03X}"),
                vec![&hid(&"ACPI0007"), &uid(id)],
            ),
            Self::Uart { index, port, gsi } => device(
                sink,
                &format!("COM{index}"),
                vec![
                    &hid(&EISAName::new("PNP0501")),
                    &uid(index),
                    &resources(vec![&io(*port, 8), &line(*gsi)]),
                ],
            ),
            Self::Keyboard => device(
                sink,
                "KBD_",
                vec![
                    &hid(&EISAName::new("PNP0303")),
                    &resources(vec![
                        &io(I8042_DATA_PORT, 1),
                        &io(I8042_COMMAND_PORT, 1),
                        &line(I8042_GSI),
                    ]),
                ],
            ),
            Self::Clock => device(
                sink,
                "RTC_",
                vec![
                    &hid(&EISAName::new("PNP0B00")),
                    &resources(vec![&io(RTC_PORT, 2)]),
                ],
            ),
            Self::Generation => generation(sink),
            Self::Events => events(sink),
            Self::Virtio { index, slot } => device(
                sink,
                &format!("V{index:03X}"),
                vec![
                    &hid(&"LNRO0005"),
                    &uid(index),
                    &resources(vec![
                        // Below 4 GiB: layout::VIRTIO_MMIO.
                        &Memory32Fixed::new(true, slot.base as u32, VIRTIO_MMIO_SIZE as u32),
                        &line(slot.gsi),
                    ]),
                ],
            ),
        }
    }
}

fn generation(sink: &mut dyn AmlSink) {
    let name = "VM_Gen_Counter";
    device(
        sink,
        "VGEN",
        vec![
            &hid(&"HULL0001"),
            &Name::new("_CID".into(), &Package::new(vec![&name, &"VMGENCTR"])),
            &Name::new("_DDN".into(), &name),
            // The low and the high 32 bits of its address.
            &Name::new(
                "ADDR".into(),
                &Package::new(vec![&(VM_GENERATION as u32), &ZERO]),
            ),
        ],
    );
}

fn events(sink: &mut dyn AmlSink) {
    /// The notification that the generation has changed; values from 0x80 on are the device's own
    /// (5.6.6).
    const CHANGED: u8 = 0x80;
    let generation = Path::new("\\_SB_.VGEN");
    device(
        sink,
        "EVNT",
        vec![
            &hid(&"ACPI0013"),
            &uid(&ZERO),
            &resources(vec![&line(VM_GENERATION_GSI)]),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&Notify::new(&generation, &CHANGED)],
            ),
        ],
    );
}

fn device(sink: &mut dyn AmlSink, name: &str, children: Vec<&dyn Aml>) {
    Device::new(name.into(), children).to_aml_bytes(sink);
}

fn hid(id: &dyn Aml) -> Name {
    Name::new("_HID".into(), id)
}

fn uid(uid: &dyn Aml) -> Name {
    Name::new("_UID".into(), uid)
}

fn resources(list: Vec<&dyn Aml>) -> Name {
    Name::new("_CRS".into(), &ResourceTemplate::new(list))
}

fn io(port: u16, length: u8) -> IO {
    IO::new(port, port, 1, length)
}

/// An edge-triggered, active-high interrupt that the device does not share.
fn line(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

#[cfg(test)]
mod tests;
