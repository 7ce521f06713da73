//! The MP table: CPUs and interrupt lines for kernels without ACPI.
//!
//! ```text
//! layout::EBDA  floating pointer 16 | header 44 | CPU 20 each | bus 8 | IOAPIC 8
//!               | 24 lines, 8 each | LINT0, LINT1, 8 each      = 924 bytes with 32 CPUs
//! ```
//!
//! The EBDA is the last KiB of conventional memory, the first place where a kernel looks.
//! Source: Intel MultiProcessor Specification 1.4, chapter 4.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::error::BootError;
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::layout::{CONVENTIONAL_END, EBDA, IOAPIC, LOCAL_APIC, MAX_CPUS};

/// Pins of KVM's IOAPIC.
pub const IOAPIC_PINS: u8 = 24;

/// `spec_rev`: revision 1.4 of the specification.
const REVISION: u8 = 4;
/// Version register of KVM's local APIC.
const LOCAL_APIC_VERSION: u8 = 0x14;
/// Version register of KVM's IOAPIC.
const IOAPIC_VERSION: u8 = 0x11;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
/// CPUID.1:EAX of a P6 and CPUID.1:EDX with FPU and APIC; kernels read CPUID instead.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201;
const BUS_ISA: u8 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Interrupt types (4.3.4, table 4-10).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

/// "MP Floating Pointer Structure" (4.1).
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct FloatingPointer {
    signature: [u8; 4],
    table: U32,
    length_in_16: u8,
    revision: u8,
    checksum: u8,
    features: [u8; 5],
}

/// "MP Configuration Table Header" (4.2).
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    signature: [u8; 4],
    length: U16,
    revision: u8,
    checksum: u8,
    oem_id: [u8; 8],
    product_id: [u8; 12],
    oem_table: U32,
    oem_table_size: U16,
    entries: U16,
    local_apic: U32,
    extended_length: U16,
    extended_checksum: u8,
    reserved: u8,
}

/// "Processor Entries" (4.3.1), one for each vCPU.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Processor {
    kind: u8,
    apic_id: u8,
    apic_version: u8,
    flags: u8,
    signature: U32,
    features: U32,
    reserved: [U32; 2],
}

/// "Bus Entries" (4.3.2): the ISA bus.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Bus {
    kind: u8,
    id: u8,
    name: [u8; 6],
}

/// "I/O APIC Entries" (4.3.3).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct IoApic {
    kind: u8,
    id: u8,
    version: u8,
    flags: u8,
    address: U32,
}

/// "I/O Interrupt Assignment Entries" (4.3.4) and, with `kind` 4, "Local Interrupt Assignment
/// Entries" (4.3.5). `flags` 0 is the bus's own polarity and trigger: on ISA high, edge.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Assignment {
    kind: u8,
    interrupt: u8,
    flags: U16,
    bus: u8,
    source: u8,
    destination: u8,
    pin: u8,
}

const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

const _: () = {
    let sizes = size_of::<FloatingPointer>()
        + size_of::<Header>()
        + MAX_CPUS as usize * size_of::<Processor>()
        + size_of::<Bus>()
        + size_of::<IoApic>()
        + (IOAPIC_PINS as usize + 2) * size_of::<Assignment>();
    assert!(sizes == 924 && EBDA + sizes as u64 <= CONVENTIONAL_END);
};

/// Write the floating pointer and the table for `cpus` vCPUs, whose APIC IDs are 0 to `cpus` - 1.
/// The IOAPIC's ID is the next one.
///
/// # Errors
/// [`BootError::Cpus`] unless `cpus` is 1 to [`MAX_CPUS`], [`BootError::OutsideMemory`].
pub fn write(memory: &GuestMemory, cpus: u8) -> Result<(), BootError> {
    if !(1..=MAX_CPUS).contains(&cpus) {
        return Err(BootError::Cpus {
            cpus,
            max: MAX_CPUS,
        });
    }
    let entries = entries(cpus);
    let mut header = Header {
        signature: *b"PCMP",
        length: U16::new((size_of::<Header>() + entries.len()) as u16),
        revision: REVISION,
        checksum: 0,
        oem_id: *b"HULL    ",
        product_id: *b"MICROVM     ",
        oem_table: U32::ZERO,
        oem_table_size: U16::ZERO,
        entries: U16::new(u16::from(cpus) + 2 + u16::from(IOAPIC_PINS) + 2),
        local_apic: U32::new(LOCAL_APIC as u32),
        extended_length: U16::ZERO,
        extended_checksum: 0,
        reserved: 0,
    };
    header.checksum = checksum(&[header.as_bytes(), &entries]);
    let mut pointer = FloatingPointer {
        signature: *b"_MP_",
        table: U32::new(EBDA as u32 + size_of::<FloatingPointer>() as u32),
        length_in_16: 1,
        revision: REVISION,
        checksum: 0,
        features: [0; 5],
    };
    pointer.checksum = checksum(&[pointer.as_bytes()]);
    let table = [pointer.as_bytes(), header.as_bytes(), &entries].concat();
    ram::write(memory, "the MP table", EBDA, &table)
}

fn entries(cpus: u8) -> Vec<u8> {
    let ioapic_id = cpus;
    let mut bytes = Vec::new();
    for apic_id in 0..cpus {
        let processor = Processor {
            kind: PROCESSOR,
            apic_id,
            apic_version: LOCAL_APIC_VERSION,
            flags: ENABLED | if apic_id == 0 { BOOT_PROCESSOR } else { 0 },
            signature: U32::new(CPU_SIGNATURE),
            features: U32::new(CPU_FEATURES),
            reserved: [U32::ZERO; 2],
        };
        bytes.extend_from_slice(processor.as_bytes());
    }
    bytes.extend_from_slice(
        Bus {
            kind: BUS,
            id: BUS_ISA,
            name: *b"ISA   ",
        }
        .as_bytes(),
    );
    let ioapic = IoApic {
        kind: IO_APIC,
        id: ioapic_id,
        version: IOAPIC_VERSION,
        flags: ENABLED,
        address: U32::new(IOAPIC as u32),
    };
    bytes.extend_from_slice(ioapic.as_bytes());
    // KVM's default routing wires GSI n to pin n, the PIT's 0 included.
    for pin in 0..IOAPIC_PINS {
        bytes.extend_from_slice(assignment(IO_INTERRUPT, INT, pin, ioapic_id, pin).as_bytes());
    }
    bytes.extend_from_slice(assignment(LOCAL_INTERRUPT, EXT_INT, 0, 0, 0).as_bytes());
    bytes.extend_from_slice(assignment(LOCAL_INTERRUPT, NMI, 0, ALL_LOCAL_APICS, 1).as_bytes());
    bytes
}

fn assignment(kind: u8, interrupt: u8, source: u8, destination: u8, pin: u8) -> Assignment {
    Assignment {
        kind,
        interrupt,
        flags: U16::ZERO,
        bus: BUS_ISA,
        source,
        destination,
        pin,
    }
}

/// The byte that makes the sum of all bytes 0 (modulo 256).
fn checksum(parts: &[&[u8]]) -> u8 {
    parts
        .iter()
        .flat_map(|part| part.iter())
        .fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::super::ram::tests::{memory, read};
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn a_kernel_that_walks_the_table_finds_every_cpu_and_line() {
        for cpus in [1, 2, 32] {
            let memory = memory(1);
            write(&memory, cpus).unwrap();
            let area = read(&memory, EBDA, 1024);
            assert_eq!((&area[..4], sum(&area[..16])), (b"_MP_".as_slice(), 0));
            let length = usize::from(u16::from_le_bytes([area[20], area[21]]));
            let table = &area[16..16 + length];
            assert_eq!((&table[..4], sum(table)), (b"PCMP".as_slice(), 0));

            let count = u16::from_le_bytes([table[34], table[35]]);
            let mut rest = &table[44..];
            let (mut processors, mut lines) = (Vec::new(), Vec::new());
            for _ in 0..count {
                let size = if rest[0] == PROCESSOR { 20 } else { 8 };
                match rest[0] {
                    PROCESSOR => processors.push((rest[1], rest[3])),
                    IO_INTERRUPT => lines.push((rest[5], rest[6], rest[7])),
                    _ => {}
                }
                rest = &rest[size..];
            }
            assert!(rest.is_empty());
            let expected: Vec<_> = (0..cpus)
                .map(|id| (id, if id == 0 { 3 } else { 1 }))
                .collect();
            assert_eq!(processors, expected);
            assert_eq!(
                lines,
                (0..24).map(|pin| (pin, cpus, pin)).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn no_cpu_and_too_many_are_refused() {
        for cpus in [0, 33, 255] {
            assert!(matches!(
                write(&memory(1), cpus),
                Err(BootError::Cpus { .. })
            ));
        }
    }
}
