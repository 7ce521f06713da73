use kvm_bindings::{kvm_dtable, kvm_sregs, kvm_vcpu_events};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::kvm::walk::Paging;
use crate::memory::GuestMemory;
use crate::symbols::Symbols;
use map::{Kind, Memory};

const SIZE: u64 = 0x2_0000;

fn memory() -> GuestMemory {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE as usize)]).expect("memory")
}

/// Registers with paging off, in the mode of `cr0` and `efer`, and a table at `base`.
fn sregs(cr0: u64, efer: u64, base: u64, limit: u16) -> kvm_sregs {
    let table = kvm_dtable {
        base,
        limit,
        ..Default::default()
    };
    kvm_sregs {
        cr0,
        efer,
        gdt: table,
        idt: table,
        ..Default::default()
    }
}

fn symbols() -> Symbols {
    Symbols::from_system_map(b"0000000000001000 T stubs\n0000000000002000 T other\n")
}

#[test]
fn descriptors_are_told_with_both_halves_of_a_tss() {
    let memory = memory();
    let words: [u64; 6] = [
        0,
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0xff00_8b12_3456_0067,
        0xffff_8000,
    ];
    for (index, word) in words.iter().enumerate() {
        let at = GuestAddress(0x500 + 8 * index as u64);
        memory.write_obj(*word, at).expect("RAM");
    }
    let sregs = sregs(1, 1 << 10, 0x500, 47);
    // Long mode without paging is not a mode, but it reads the tables where they are.
    let table = tables::gdt(&sregs, &Paging::new(&sregs), &memory);
    let told: Vec<_> = table
        .entries
        .iter()
        .map(|entry| {
            (
                entry.selector.0,
                entry.base.0,
                entry.limit.0,
                entry.kind.as_str(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (
                0x10,
                0,
                0xffff_ffff,
                "64-bit code, execute/read, accessed, DPL 0"
            ),
            (0x18, 0, 0xffff_ffff, "data, read/write, accessed, DPL 0"),
            (0x20, 0xffff_8000_ff12_3456, 0x67, "TSS, busy, DPL 0"),
        ]
    );
}

#[test]
fn gates_that_follow_one_another_are_one_run() {
    let memory = memory();
    let gate = |vector: u64, offset: u64, attributes: u64| {
        let low = offset & 0xffff | 0x10 << 16 | attributes << 40 | (offset >> 16 & 0xffff) << 48;
        let at = GuestAddress(0x4000 + 16 * vector);
        memory.write_obj([low, offset >> 32], at).expect("RAM");
    };
    for vector in 0..8 {
        gate(vector, 0x1000 + 8 * vector, 0x8e);
    }
    gate(8, 0x2004, 0x8e);
    gate(9, 0x2004, 0xee);
    gate(11, 0x2004, 0xef);
    gate(12, 0x2004, 0x0e); // not present
    let sregs = sregs(1, 1 << 10, 0x4000, 0xfff);
    let table = tables::idt(&sregs, &Paging::new(&sregs), &memory, &symbols());
    let told: Vec<_> = table
        .entries
        .iter()
        .map(|run| {
            let symbol = run.symbol.as_deref().unwrap_or("");
            (
                run.first,
                run.last,
                run.step,
                symbol,
                run.kind.as_str(),
                run.dpl,
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (0, 7, 8, "stubs", "interrupt", 0),
            (8, 8, 0, "other+0x4", "interrupt", 0),
            (9, 9, 0, "other+0x4", "interrupt", 3),
            (11, 11, 0, "other+0x4", "trap", 3),
        ]
    );
}

#[test]
fn the_map_has_one_thing_at_each_address() {
    let known = [
        (0x1000..0x2000, Kind::Loaded, "table".to_string()),
        (0x1800..0x3000, Kind::Loaded, "overlapping".to_string()),
        (0x9000..0x9000, Kind::Loaded, "empty".to_string()),
        (0xc000..0xd000, Kind::Device, "device".to_string()),
    ];
    let map = Memory::new(
        &[0..0x8000, 0x1_0000..0x1_8000],
        &known,
        |r| r.end - r.start,
        0x1_0000,
    );
    let told: Vec<_> = map
        .areas
        .iter()
        .map(|area| (area.start.0, area.end.0, area.what.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (0, 0x1000, "RAM"),
            (0x1000, 0x2000, "table"),
            (0x2000, 0x3000, "overlapping"),
            (0x3000, 0x8000, "RAM"),
            (0x8000, 0xc000, "nothing"),
            (0xc000, 0xd000, "device"),
            (0xd000, 0x1_0000, "nothing"),
        ]
    );
    assert_eq!((map.bytes, map.resident), (0x1_0000, 0x8000));
    assert_eq!(map.what(0x1fff), "table");
    assert_eq!(map.what(u64::MAX), "nothing");
}

#[test]
fn nothing_pending_is_nothing_told() {
    assert!(chips::pending(&kvm_vcpu_events::default()).is_empty());
    let mut events = kvm_vcpu_events::default();
    events.exception.injected = 1;
    events.exception.nr = 14;
    events.exception.has_error_code = 1;
    events.exception.error_code = 2;
    events.interrupt.injected = 1;
    events.interrupt.nr = 0x20;
    assert_eq!(
        chips::pending(&events),
        ["exception 14, error code 0x2", "interrupt 0x20"]
    );
}

proptest! {
    #[test]
    fn tables_anywhere_with_anything_in_them_are_told_in_bounds(
        bytes in prop::collection::vec(any::<u8>(), 0x2000),
        base in prop_oneof![0u64..SIZE, any::<u64>()],
        limit: u16,
        cr0 in 0u64..2,
        long: bool,
    ) {
        let memory = memory();
        memory.write_slice(&bytes, GuestAddress(base % SIZE / 2)).expect("RAM");
        let sregs = sregs(cr0, u64::from(long) << 10, base, limit);
        let paging = Paging::new(&sregs);
        let gdt = tables::gdt(&sregs, &paging, &memory);
        prop_assert!(gdt.entries.len() <= 64);
        let idt = tables::idt(&sregs, &paging, &memory, &symbols());
        prop_assert!(idt.entries.len() <= 256);
        let walk = pages::walk(0, &paging, &memory, base, &symbols(), &Memory::default());
        prop_assert!(walk.levels.is_empty());
    }
}
