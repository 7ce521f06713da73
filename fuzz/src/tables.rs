//! The tables that describe a machine to its kernel, read as a kernel reads them: ACPI, MP table,
//! memory map, boot parameters or PVH start info, GDT and page tables.

use std::ops::Range;

use arbitrary::Arbitrary;
use hull::boot::{Machine, Mode, Plan, TableFaults, Via, cmdline, memory_map, place};
use hull::memory::GuestMemory;
use hull::memory::image::Image;
use hull::memory::layout::{
    ACPI, ACPI_END, BOOT_PARAMS, CMDLINE, CONVENTIONAL_END, EBDA, IOAPIC, LOCAL_APIC, MAX_CPUS,
    MmioSlot, VIRTIO_MMIO_SIZE, virtio_slot,
};
use vm_memory::{Bytes, GuestAddress};

use crate::elf::Elf;

const MIB: u64 = 1 << 20;

/// A machine.
#[derive(Arbitrary, Debug)]
pub struct Input {
    cpus: u8,
    com2: bool,
    slots: u8,
    pvh: bool,
    on_cmdline: bool,
    faults: (bool, bool),
    /// Regions of memory above the first: pages between, pages.
    regions: Vec<(u8, u8)>,
    initrd: u16,
}

struct Seen<'a>(&'a GuestMemory);

impl Seen<'_> {
    fn bytes(&self, gpa: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        self.0.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    fn number(&self, gpa: u64, size: usize) -> u64 {
        number(&self.bytes(gpa, size), 0, size)
    }

    /// An ACPI table, its checksum checked.
    fn table(&self, gpa: u64, signature: &[u8; 4]) -> Vec<u8> {
        let len = self.number(gpa + 4, 4);
        assert!((ACPI..ACPI_END).contains(&gpa) && gpa + len <= ACPI_END);
        let table = self.bytes(gpa, len as usize);
        assert_eq!(&table[..4], signature);
        assert_eq!(sum(&table), 0, "{signature:?}");
        table
    }
}

fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    let mut number = [0; 8];
    number[..size].copy_from_slice(&bytes[at..at + size]);
    u64::from_le_bytes(number)
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Write the tables and read them.
pub fn check(input: &Input) {
    let mut ranges = vec![(GuestAddress(0), 4 << 20)];
    let mut end = 4 * MIB;
    for (between, pages) in input.regions.iter().take(200) {
        let start = end + u64::from(*between) * 4096;
        let size = (u64::from(*pages) + 1) * 4096;
        ranges.push((GuestAddress(start), size as usize));
        end = start + size;
    }
    let memory = GuestMemory::from_ranges(&ranges).unwrap();
    let slots: Vec<MmioSlot> = (0..usize::from(input.slots % 17))
        .map_while(virtio_slot)
        .collect();
    let kernel = Image::from(Elf::plain(input.pvh).bytes());
    let initrd = [Image::from(vec![0; input.initrd.into()])];
    let placed = place(&memory, &kernel, Via::Auto, &initrd).unwrap();
    let plan = Plan {
        cmdline: cmdline::new("quiet", &cmdline::DEFAULTS).unwrap(),
        virtio_on_cmdline: input.on_cmdline,
        machine: Machine {
            cpus: input.cpus,
            com2: input.com2,
            virtio: &slots,
        },
        faults: TableFaults {
            no_processors: input.faults.0,
            phantom_ram: input.faults.1,
        },
    };
    let valid = (1..=MAX_CPUS).contains(&input.cpus);
    let Ok(loaded) = placed.finish(&memory, &plan) else {
        assert!(!valid || input.regions.len() > 100);
        return;
    };
    let seen = Seen(&memory);
    let (rsdp, map, initrd) = match loaded.entry.mode {
        Mode::Pvh => pvh(&seen, loaded.entry.params),
        Mode::Linux64 => zero_page(&seen),
        mode => panic!("{mode:?}"),
    };
    let line = seen.bytes(CMDLINE, loaded.cmdline.len() + 1);
    assert_eq!(line, [loaded.cmdline.as_bytes(), b"\0"].concat());
    assert_eq!(initrd, loaded.initrd.filter(|range| !range.is_empty()));
    if !input.faults.1 {
        assert_eq!(map, memory_map(&memory));
    }
    assert!(map.windows(2).all(|pair| pair[0].0.end <= pair[1].0.start));
    acpi(&seen, rsdp, input, &slots);
    if !input.faults.0 {
        mp_table(&seen, input.cpus);
    }
}

/// Root pointer, memory map, initial RAM disk.
type Facts = (u64, Vec<(Range<u64>, bool)>, Option<Range<u64>>);

fn entries(seen: &Seen, at: u64, count: u64, size: u64) -> Vec<(Range<u64>, bool)> {
    let entry = |index| {
        let [start, len] = [0, 8].map(|field| seen.number(at + index * size + field, 8));
        let kind = seen.number(at + index * size + 16, 4);
        (start..start + len, kind == 1)
    };
    (0..count).map(entry).collect()
}

/// Documentation/arch/x86/zero-page.rst.
fn zero_page(seen: &Seen) -> Facts {
    let at = |offset, size| seen.number(BOOT_PARAMS + offset, size);
    assert_eq!(at(0x202, 4), u64::from(u32::from_le_bytes(*b"HdrS")));
    assert_eq!(at(0x228, 4), CMDLINE);
    let map = entries(seen, BOOT_PARAMS + 0x2d0, at(0x1e8, 1), 20);
    let (start, size) = (at(0x218, 4), at(0x21c, 4));
    (at(0x70, 8), map, (size > 0).then_some(start..start + size))
}

/// xen/include/public/arch-x86/hvm/start_info.h.
fn pvh(seen: &Seen, info: u64) -> Facts {
    let at = |offset, size| seen.number(info + offset, size);
    assert_eq!((at(0, 4), at(4, 4)), (0x336e_c578, 1));
    assert_eq!(at(24, 8), CMDLINE);
    let module = |place| {
        let start = seen.number(place, 8);
        start..start + seen.number(place + 8, 8)
    };
    let initrd = (at(12, 4) > 0).then(|| module(at(16, 8)));
    let map = entries(seen, at(40, 8), at(48, 4), 24);
    (at(32, 8), map, initrd.filter(|range| !range.is_empty()))
}

/// ACPI 6.5, 5.2.
fn acpi(seen: &Seen, rsdp: u64, input: &Input, slots: &[MmioSlot]) {
    let root = seen.bytes(rsdp, 36);
    assert_eq!(&root[..8], b"RSD PTR ");
    assert_eq!((sum(&root[..20]), sum(&root)), (0, 0));
    let xsdt = seen.table(number(&root, 24, 8), b"XSDT");
    let tables: Vec<u64> = (36..xsdt.len())
        .step_by(8)
        .map(|at| number(&xsdt, at, 8))
        .collect();
    assert_eq!(tables.len(), if input.faults.0 { 1 } else { 2 });
    let fadt = seen.table(tables[0], b"FACP");
    assert_eq!(seen.bytes(number(&fadt, 36, 4), 4), b"FACS");
    let dsdt = seen.table(number(&fadt, 40, 4), b"DSDT");
    let names = aml(&dsdt[36..]);
    let count = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
    assert_eq!(count("C0"), usize::from(input.cpus), "{names:?}");
    assert_eq!(count("V0"), slots.len(), "{names:?}");
    assert_eq!(count("COM"), 1 + usize::from(input.com2), "{names:?}");
    for (index, slot) in slots.iter().enumerate() {
        // Memory32Fixed (6.4.3.4) and the interrupt (6.4.3.6), which follow each other.
        let mut resource = vec![0x86, 9, 0, 1];
        resource.extend((slot.base as u32).to_le_bytes());
        resource.extend((VIRTIO_MMIO_SIZE as u32).to_le_bytes());
        resource.extend([0x89, 6, 0, 0b0011, 1]);
        resource.extend(slot.gsi.to_le_bytes());
        let there = dsdt
            .windows(resource.len())
            .any(|window| window == resource);
        assert!(there, "the resources of slot {index}");
    }
    if let Some(madt) = tables.get(1) {
        let madt = seen.table(*madt, b"APIC");
        assert_eq!(number(&madt, 36, 4), LOCAL_APIC);
        let mut rest = &madt[44..];
        let mut apics = Vec::new();
        while let [kind, len, ..] = *rest {
            let (entry, after) = rest.split_at(len.into());
            match kind {
                0 => apics.push((entry[3], entry[4])),
                1 => assert_eq!(number(entry, 4, 4), IOAPIC),
                2 | 4 => {}
                kind => panic!("{kind}"),
            }
            rest = after;
        }
        assert!(rest.is_empty());
        let all: Vec<_> = (0..input.cpus).map(|id| (id, 1)).collect();
        assert_eq!(apics, all);
    }
}

/// The names of the devices in a block of AML (ACPI 6.5, chapter 20), all of whose packages must
/// end inside of the package around them.
fn aml(mut block: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while !block.is_empty() {
        let (package, name): (&[u8], bool) = match block {
            [0x08, name @ ..] => {
                // Name: a constant, a package, a buffer or a string.
                let value = &name[4..];
                let len = match value {
                    [0x00 | 0x01 | 0xff, ..] => 1,
                    [0x0a, ..] => 2,
                    [0x0b, ..] => 3,
                    [0x0c, ..] => 5,
                    [0x0e, ..] => 9,
                    [0x0d, text @ ..] => 2 + text.iter().position(|byte| *byte == 0).unwrap(),
                    [0x11 | 0x12, rest @ ..] => 1 + package(rest).0,
                    other => panic!("{:x?}", &other[..other.len().min(8)]),
                };
                block = &value[len..];
                continue;
            }
            [0x10, rest @ ..] => (rest, false),
            [0x14, rest @ ..] => {
                block = &rest[package(rest).0..];
                continue;
            }
            [0x5b, 0x82, rest @ ..] => (rest, true),
            other => panic!("{:x?}", &other[..other.len().min(8)]),
        };
        let (len, header) = self::package(package);
        let (inside, after) = package.split_at(len);
        let inside = &inside[header..];
        let prefix = usize::from(inside.first() == Some(&b'\\'));
        let (own, content) = inside[prefix..].split_at(4);
        if name {
            names.push(String::from_utf8(own.to_vec()).unwrap());
        }
        names.extend(aml(content));
        block = after;
    }
    names
}

/// The length of a package with the bytes that tell it, and their number (20.2.4).
fn package(bytes: &[u8]) -> (usize, usize) {
    let first = bytes[0];
    let more = usize::from(first >> 6);
    if more == 0 {
        return (usize::from(first & 0x3f), 1);
    }
    assert_eq!(first & 0x30, 0);
    let low = usize::from(first & 0xf);
    let high = (0..more).map(|at| usize::from(bytes[1 + at]) << (4 + 8 * at));
    (low + high.sum::<usize>(), 1 + more)
}

/// Intel MultiProcessor Specification 1.4, chapter 4.
fn mp_table(seen: &Seen, cpus: u8) {
    let pointer = seen.bytes(EBDA, 16);
    assert_eq!(&pointer[..4], b"_MP_");
    assert_eq!(sum(&pointer), 0);
    let at = number(&pointer, 4, 4);
    let len = seen.number(at + 4, 2);
    assert!(at + len <= CONVENTIONAL_END);
    let table = seen.bytes(at, len as usize);
    assert_eq!(&table[..4], b"PCMP");
    assert_eq!(sum(&table), 0);
    assert_eq!(number(&table, 36, 4), LOCAL_APIC);
    let (mut rest, mut entries) = (&table[44..], 0);
    let (mut processors, mut lines, mut locals, mut others) = (vec![], vec![], vec![], vec![]);
    while let Some(kind) = rest.first() {
        let (entry, after) = rest.split_at(if *kind == 0 { 20 } else { 8 });
        match kind {
            0 => processors.push((entry[1], entry[3])),
            3 => lines.push((entry[1], entry[4], entry[5], entry[6], entry[7])),
            4 => locals.push((entry[1], entry[6], entry[7])),
            1 => others.push((1, entry[1].into(), 0)),
            kind => others.push((*kind, entry[1].into(), number(entry, 4, 4))),
        }
        rest = after;
        entries += 1;
    }
    assert_eq!(entries, number(&table, 34, 2));
    // The first one boots.
    let all: Vec<_> = (0..cpus)
        .map(|id| (id, if id == 0 { 3 } else { 1 }))
        .collect();
    assert_eq!(processors, all);
    // The bus 0, the IOAPIC with the next id, and a line for each of its pins.
    assert_eq!(others, [(1, 0, 0), (2, u64::from(cpus), IOAPIC)]);
    let all: Vec<_> = (0..24).map(|pin| (0, 0, pin, cpus, pin)).collect();
    assert_eq!(lines, all);
    // External interrupts of the first one, and NMIs of all.
    assert_eq!(locals, [(3, 0, 0), (1, 0xff, 1)]);
}
