//! Page tables of a guest: the walk for an access, and the one that `hull inspect` shows.

use arbitrary::Arbitrary;
use hull::kvm::walk::steps::End;
use hull::kvm::walk::{Access, Fault, Kind, LOOK, Mode, Paging, Translation};
use hull::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

const PAGES: u64 = 16;

/// Memory with entries at any place, and addresses to translate.
#[derive(Arbitrary, Debug)]
pub struct Input {
    mode: u8,
    cr3: Entry,
    bits: [bool; 4],
    entries: Vec<(u16, Entry)>,
    addresses: Vec<(Address, u8)>,
}

#[derive(Arbitrary, Debug)]
enum Entry {
    /// Leads to a page of memory, with these flags.
    Table(u8, u8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Address {
    Low(u16),
    Any(u64),
    /// About the highest or the lowest address with so many bits.
    Border(u8, u16),
}

impl Entry {
    fn value(&self) -> u64 {
        match self {
            Self::Table(page, flags) => (u64::from(*page) % PAGES * 4096) | u64::from(*flags) | 1,
            Self::Any(entry) => *entry,
        }
    }
}

/// Walk.
pub fn check(input: &Input) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), (PAGES * 4096) as usize)]).unwrap();
    for (at, entry) in &input.entries {
        // Mostly the first entries of a table, which low addresses use.
        let at = if at & 0x40 == 0 { at & 0xf01f } else { *at };
        let _ = memory.write_obj(entry.value(), GuestAddress(u64::from(at) & !7));
    }
    let modes = [
        Mode::Off,
        Mode::Legacy { large_pages: false },
        Mode::Legacy { large_pages: true },
        Mode::Pae,
        Mode::Four,
        Mode::Five,
    ];
    let [write_protect, no_execute, smep, smap] = input.bits;
    let mode = modes[usize::from(input.mode) % modes.len()];
    let paging = Paging {
        mode,
        cr3: input.cr3.value(),
        write_protect,
        no_execute: no_execute && !matches!(mode, Mode::Legacy { .. }),
        smep,
        smap,
    };
    for (address, access) in &input.addresses {
        let linear = match address {
            Address::Low(address) => (*address).into(),
            Address::Any(address) => *address,
            Address::Border(bits, more) => {
                let border = (i64::MIN >> (bits % 33)) as u64;
                let border = if bits & 0x80 == 0 {
                    border
                } else {
                    border.wrapping_neg()
                };
                border.wrapping_add((*more).into()).wrapping_sub(0x8000)
            }
        };
        let looked = paging.translate(&memory, linear, LOOK);
        // The bits above the highest one that is translated are copies of it (Intel SDM 1, 3.3.7.1).
        let (upper, all) = match mode {
            Mode::Four => (linear >> 47, 0x1_ffff),
            Mode::Five => (linear >> 56, 0xff),
            _ => (0, 0),
        };
        let canonical = upper == 0 || upper == all;
        assert_eq!(
            looked == Err(Fault::NonCanonical),
            !canonical,
            "{linear:#x}"
        );
        let shown = paging.steps(&memory, linear);
        assert!(shown.steps.len() <= 5);
        match (looked, shown.end) {
            (Ok(found), End::Page { gpa, size }) => {
                assert_eq!(found.gpa, gpa);
                assert!(found.run > 0 && found.run <= size);
            }
            (Ok(Translation { gpa, .. }), End::Off) => assert_eq!(gpa, linear & 0xffff_ffff),
            (Err(Fault::NonCanonical), End::NonCanonical) => {}
            (Err(Fault::Page { error_code }), End::NotPresent) => assert_eq!(error_code & 1, 0),
            (Err(Fault::Page { error_code }), End::Reserved) => assert_eq!(error_code & 9, 9),
            (Err(Fault::TableNotRam { gpa }), End::NotRam { gpa: shown }) => assert_eq!(gpa, shown),
            (looked, shown) => panic!("{looked:x?}, {shown:x?}"),
        }
        let mut bytes = [0; 64];
        assert!(paging.look(&memory, linear, &mut bytes) <= bytes.len());
        let access = Access {
            kind: [Kind::Read, Kind::Write, Kind::Fetch][usize::from(access % 3)],
            user: access & 0x10 != 0,
            alignment_check: access & 0x20 != 0,
        };
        // An access that is allowed finds what one from outside finds. It marks entries as accessed, which
        // changes the next walk where tables lie in one another.
        if let Ok(found) = paging.translate(&memory, linear, access)
            && looked.is_ok()
        {
            assert_eq!(Ok(found), looked);
        }
    }
}
