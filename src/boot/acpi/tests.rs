use super::super::ram::tests::{memory, read};
use super::*;
use crate::memory::layout::{ACPI_END, MAX_CPUS, VIRTIO_GSIS, virtio_slot};

fn slots() -> Vec<MmioSlot> {
    (0..VIRTIO_GSIS.len()).filter_map(virtio_slot).collect()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A table by its GPA, its checksum checked.
fn table(memory: &GuestMemory, gpa: u64) -> Vec<u8> {
    let length = u32_at(&read(memory, gpa, 8), 4) as usize;
    let table = read(memory, gpa, length);
    assert_eq!(sum(&table), 0, "{:?}", &table[..4]);
    table
}

/// The tables as a kernel finds them from the root pointer: FADT, MADT, DSDT.
fn walk(machine: &Machine) -> [Vec<u8>; 3] {
    let memory = memory(1);
    let root = write(&memory, machine, true).unwrap();
    let pointer = read(&memory, root, 36);
    assert_eq!(&pointer[..8], b"RSD PTR ");
    assert_eq!((sum(&pointer[..20]), sum(&pointer)), (0, 0));
    let xsdt = table(&memory, u64_at(&pointer, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let [fadt, madt] = [36, 44].map(|at| table(&memory, u64_at(&xsdt, at)));
    let dsdt = table(&memory, u32_at(&fadt, 40).into());
    let facs = u64::from(u32_at(&fadt, 36));
    assert_eq!(read(&memory, facs, 4), b"FACS");
    assert_eq!(facs % 64, 0);
    [fadt, madt, dsdt]
}

fn machine(cpus: u8, com2: bool, virtio: &[MmioSlot]) -> Machine<'_> {
    Machine { cpus, com2, virtio }
}

#[test]
fn the_fadt_names_the_power_hardware() {
    let [fadt, ..] = walk(&machine(1, false, &[]));
    assert_eq!((&fadt[..4], fadt.len()), (b"FACP".as_slice(), 276));
    let u16_at = |at: usize| u16::from_le_bytes([fadt[at], fadt[at + 1]]);
    assert_eq!(u16_at(46), 9, "SCI_INT");
    assert_eq!(u32_at(&fadt, 48), 0, "no SMI command");
    assert_eq!(u32_at(&fadt, 56), u32::from(PM1A_EVENT_PORT));
    assert_eq!(u32_at(&fadt, 64), u32::from(PM1A_CONTROL_PORT));
    assert_eq!(u32_at(&fadt, 76), u32::from(PM_TIMER_PORT));
    assert_eq!([fadt[88], fadt[89], fadt[91]], [4, 2, 4], "lengths");
    let flags = u32_at(&fadt, 112);
    assert_eq!(flags & 1 << 4, 0, "a fixed power button");
    assert_eq!(flags & 1 << 20, 0, "not hardware-reduced");
    assert_ne!(flags & 1 << 10, 0, "a reset register");
    assert_eq!(
        (fadt[116], u64_at(&fadt, 120), fadt[128]),
        (1, ACPI_RESET_PORT.into(), ACPI_RESET_VALUE)
    );
}

#[test]
fn the_madt_lists_every_cpu_and_an_edge_for_the_sci() {
    for cpus in [1, 3, MAX_CPUS] {
        let [_, madt, _] = walk(&machine(cpus, false, &[]));
        assert_eq!(u32_at(&madt, 36), LOCAL_APIC as u32);
        assert_eq!(u32_at(&madt, 40), 1, "there are 8259s too");
        let mut rest = &madt[44..];
        let mut apics = Vec::new();
        let mut others = Vec::new();
        while let [kind, length, ..] = *rest {
            let (entry, after) = rest.split_at(length.into());
            match kind {
                0 => apics.push((entry[2], entry[3], u32_at(entry, 4))),
                _ => others.push(entry.to_vec()),
            }
            rest = after;
        }
        let expected: Vec<_> = (0..cpus).map(|id| (id, id, 1)).collect();
        assert_eq!(apics, expected);
        let [ioapic, sci, nmi] = others.try_into().unwrap();
        assert_eq!((u32_at(&ioapic, 4), u32_at(&ioapic, 8)), (IOAPIC as u32, 0));
        assert_eq!(sci, [2, 10, 0, 9, 9, 0, 0, 0, 0b0101, 0]);
        assert_eq!(nmi, [4, 6, 0xff, 0, 0, 1]);
    }
}

fn count(dsdt: &[u8], pattern: &[u8]) -> usize {
    dsdt.windows(pattern.len())
        .filter(|window| *window == pattern)
        .count()
}

#[test]
fn the_dsdt_has_a_device_for_each_cpu_uart_and_virtio_slot() {
    let slots = slots();
    let [.., dsdt] = walk(&machine(4, true, &slots[..3]));
    assert_eq!(count(&dsdt, b"ACPI0007\0"), 4);
    assert_eq!(count(&dsdt, b"LNRO0005\0"), 3);
    for slot in &slots[..3] {
        // Memory32Fixed, read and write; then an interrupt: consumer, edge, high, exclusive.
        let mut resources = vec![0x86, 9, 0, 1];
        resources.extend((slot.base as u32).to_le_bytes());
        resources.extend((VIRTIO_MMIO_SIZE as u32).to_le_bytes());
        resources.extend([0x89, 6, 0, 0b0011, 1]);
        resources.extend(slot.gsi.to_le_bytes());
        assert_eq!(count(&dsdt, &resources), 1, "{slot:?}");
    }
    let port = |port: u16| [&[0x47, 1], port.to_le_bytes().as_slice()].concat();
    assert_eq!(count(&dsdt, &port(COM1_PORT)), 1);
    assert_eq!(count(&dsdt, &port(COM2_PORT)), 1);
    let [.., dsdt] = walk(&machine(1, false, &[]));
    assert_eq!(count(&dsdt, &port(COM2_PORT)), 0);
    assert_eq!(count(&dsdt, b"LNRO0005"), 0);
}

#[test]
fn s5_is_the_sleep_type_of_the_power_hardware() {
    let [.., dsdt] = walk(&machine(1, false, &[]));
    // Name (_S5, Package (4) {5, 0, 0, 0})
    assert_eq!(
        count(&dsdt, b"\x08_S5_\x12\x07\x04\x0a\x05\0\0\0"),
        1,
        "{dsdt:x?}"
    );
}

#[test]
fn the_generation_id_has_an_address_and_an_event() {
    let [.., dsdt] = walk(&machine(1, false, &[]));
    // Name (ADDR, Package (2) {VM_GENERATION, 0})
    let mut address = b"\x08ADDR\x12\x08\x02\x0c".to_vec();
    address.extend((VM_GENERATION as u32).to_le_bytes());
    address.push(0);
    assert_eq!(count(&dsdt, &address), 1, "{dsdt:x?}");
    assert_eq!(count(&dsdt, b"VM_Gen_Counter\0"), 2, "_CID and _DDN");
    // Method (_EVT, 1, Serialized) {Notify (\_SB.VGEN, 0x80)}
    let event = b"_EVT\x09\x86\\\x2e_SB_VGEN\x0a\x80";
    assert_eq!(count(&dsdt, event), 1, "{dsdt:x?}");
    let line = [0x89, 6, 0, 0b0011, 1, 12, 0, 0, 0];
    assert_eq!(count(&dsdt, &line), 1, "an edge, not shared");
    const { assert!(VM_GENERATION + 16 <= ACPI_END) };
}

#[test]
fn the_largest_machine_fits_the_area() {
    let slots = slots();
    let [.., dsdt] = walk(&machine(MAX_CPUS, true, &slots));
    assert!(dsdt.len() as u64 + 0x1000 < VM_GENERATION - ACPI);
}
