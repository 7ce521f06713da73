//! Walks over tables written by hand, each right and each error code in turn.

use vm_memory::Bytes;

use super::*;

const MEMORY_SIZE: usize = 1 << 20;
const TOP: u64 = 0x1000;
const SECOND: u64 = 0x2000;
const THIRD: u64 = 0x3000;
const LAST: u64 = 0x4000;
const ALL: u64 = PRESENT | WRITABLE | USER;
/// Indexes 1, 2, 3 and 4 from the top, offset 567H.
const LINEAR: u64 = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | 0x567;

struct Tables {
    memory: GuestMemory,
    paging: Paging,
}

const READ: Access = Access {
    kind: Kind::Read,
    user: false,
    alignment_check: false,
};
const WRITE: Access = Access {
    kind: Kind::Write,
    ..READ
};
const FETCH: Access = Access {
    kind: Kind::Fetch,
    ..READ
};

fn user(access: Access) -> Access {
    Access {
        user: true,
        ..access
    }
}

impl Tables {
    fn new(mode: Mode) -> Tables {
        let ranges = [(GuestAddress(0), MEMORY_SIZE)];
        Tables {
            memory: GuestMemory::from_ranges(&ranges).expect("guest memory"),
            paging: Paging {
                mode,
                cr3: TOP,
                write_protect: true,
                no_execute: true,
                smep: false,
                smap: false,
            },
        }
    }

    /// Four levels that map LINEAR's page to A_B000H.
    fn four() -> Tables {
        let tables = Tables::new(Mode::Four);
        tables.put(TOP + 8, SECOND | ALL);
        tables.put(SECOND + 2 * 8, THIRD | ALL);
        tables.put(THIRD + 3 * 8, LAST | ALL);
        tables.put(LAST + 4 * 8, 0xa_b000 | ALL);
        tables
    }

    fn put(&self, gpa: u64, entry: u64) {
        self.memory
            .write_obj(entry, GuestAddress(gpa))
            .expect("in RAM");
    }

    fn put_short(&self, gpa: u64, entry: u32) {
        self.memory
            .write_obj(entry, GuestAddress(gpa))
            .expect("in RAM");
    }

    fn entry(&self, gpa: u64) -> u64 {
        self.memory.read_obj(GuestAddress(gpa)).expect("in RAM")
    }

    fn walk(&self, linear: u64, access: Access) -> Result<Translation, Fault> {
        self.paging.translate(&self.memory, linear, access)
    }

    #[track_caller]
    fn leads_to(&self, linear: u64, gpa: u64, run: u64) {
        assert_eq!(self.walk(linear, READ), Ok(Translation { gpa, run }));
    }

    #[track_caller]
    fn faults(&self, access: Access, error_code: u32) {
        assert_eq!(
            self.walk(LINEAR, access),
            Err(Fault::Page { error_code }),
            "{access:?}"
        );
    }
}

#[test]
fn registers_name_the_mode() {
    let mut sregs = kvm_sregs::default();
    let mode = |sregs: &kvm_sregs| Paging::new(sregs).mode;
    assert_eq!(mode(&sregs), Mode::Off);
    sregs.cr0 = CR0_PG | CR0_WP;
    sregs.efer = EFER_NXE;
    assert_eq!(mode(&sregs), Mode::Legacy { large_pages: false });
    assert!(!Paging::new(&sregs).no_execute);
    sregs.cr4 = CR4_PSE | CR4_SMAP | CR4_SMEP;
    assert_eq!(mode(&sregs), Mode::Legacy { large_pages: true });
    sregs.cr4 |= CR4_PAE;
    assert_eq!(mode(&sregs), Mode::Pae);
    sregs.efer |= EFER_LMA;
    assert_eq!(mode(&sregs), Mode::Four);
    sregs.cr4 |= CR4_LA57;
    sregs.cr3 = TOP;
    assert_eq!(
        Paging::new(&sregs),
        Paging {
            mode: Mode::Five,
            cr3: TOP,
            write_protect: true,
            no_execute: true,
            smep: true,
            smap: true,
        }
    );
}

#[test]
fn without_paging_addresses_are_physical_and_32_bits_wide() {
    let tables = Tables::new(Mode::Off);
    tables.leads_to(0x1_2345_6789, 0x2345_6789, 0x877);
}

#[test]
fn four_levels_lead_to_a_small_page() {
    let tables = Tables::four();
    tables.leads_to(LINEAR, 0xa_b567, 0xa99);
    tables.leads_to(LINEAR & !0xfff, 0xa_b000, 0x1000);
}

#[test]
fn five_levels_have_one_more_on_top() {
    let mut tables = Tables::four();
    tables.paging.mode = Mode::Five;
    tables.paging.cr3 = 0x5000;
    tables.put(0x5000 + 8 * 0x1ff, TOP | ALL);
    tables.leads_to(
        0x1ff << 48 | 0xfe00_0000_0000_0000 | LINEAR,
        0xa_b567,
        0xa99,
    );
}

#[test]
fn large_pages_end_the_walk_early() {
    let tables = Tables::four();
    tables.put(THIRD + 3 * 8, 0x4060_0000 | ALL | LARGE);
    tables.leads_to(LINEAR, 0x4060_4567, 0x20_0000 - 0x4567);
    tables.put(SECOND + 2 * 8, 0x1_4000_0000 | ALL | LARGE);
    let offset = LINEAR & 0x3fff_ffff;
    tables.leads_to(LINEAR, 0x1_4000_0000 | offset, 0x4000_0000 - offset);
    // Bit 12 is the PAT bit of a large page, no address.
    tables.put(SECOND + 2 * 8, 0x1_4000_1000 | ALL | LARGE);
    tables.leads_to(LINEAR, 0x1_4000_0000 | offset, 0x4000_0000 - offset);
}

#[test]
fn an_entry_that_is_not_present_is_a_fault_without_the_present_bit() {
    for gpa in [TOP + 8, SECOND + 16, THIRD + 24, LAST + 32] {
        let tables = Tables::four();
        tables.put(gpa, tables.entry(gpa) & !PRESENT);
        tables.faults(READ, 0);
        tables.faults(WRITE, 2);
        tables.faults(user(READ), 4);
        tables.faults(user(FETCH), 0x14);
    }
}

#[test]
fn reserved_bits_are_a_fault_of_their_own() {
    for (gpa, bits) in [
        (TOP + 8, LARGE),
        (SECOND + 16, LARGE | 1 << 13),
        (THIRD + 24, LARGE | 1 << 20),
    ] {
        let tables = Tables::four();
        tables.put(gpa, tables.entry(gpa) | bits);
        tables.faults(user(WRITE), 0xf);
    }
    let mut tables = Tables::four();
    tables.put(LAST + 32, tables.entry(LAST + 32) | NO_EXECUTE);
    assert!(tables.walk(LINEAR, READ).is_ok());
    tables.paging.no_execute = false;
    tables.faults(READ, 9);
}

#[test]
fn rights_are_the_intersection_of_all_levels() {
    for gpa in [TOP + 8, SECOND + 16, THIRD + 24, LAST + 32] {
        let mut tables = Tables::four();
        tables.put(gpa, tables.entry(gpa) & !WRITABLE);
        assert!(tables.walk(LINEAR, user(READ)).is_ok());
        tables.faults(WRITE, 3);
        tables.faults(user(WRITE), 7);
        tables.paging.write_protect = false;
        assert!(tables.walk(LINEAR, WRITE).is_ok());
        tables.faults(user(WRITE), 7);

        let tables = Tables::four();
        tables.put(gpa, tables.entry(gpa) & !USER);
        assert!(tables.walk(LINEAR, WRITE).is_ok());
        tables.faults(user(READ), 5);
        tables.faults(user(FETCH), 0x15);

        let tables = Tables::four();
        tables.put(gpa, tables.entry(gpa) | NO_EXECUTE);
        assert!(tables.walk(LINEAR, user(READ)).is_ok());
        tables.faults(FETCH, 0x11);
    }
}

#[test]
fn smep_keeps_the_supervisor_from_user_code() {
    let mut tables = Tables::four();
    tables.paging.no_execute = false;
    assert!(tables.walk(LINEAR, FETCH).is_ok());
    tables.paging.smep = true;
    tables.faults(FETCH, 0x11);
    assert!(tables.walk(LINEAR, READ).is_ok());
    assert!(tables.walk(LINEAR, user(FETCH)).is_ok());
}

#[test]
fn smap_keeps_the_supervisor_from_user_data_unless_ac_is_set() {
    let mut tables = Tables::four();
    tables.paging.smap = true;
    tables.faults(READ, 1);
    tables.faults(WRITE, 3);
    let allowed = Access {
        alignment_check: true,
        ..WRITE
    };
    assert!(tables.walk(LINEAR, allowed).is_ok());
    assert!(tables.walk(LINEAR, FETCH).is_ok());
    assert!(tables.walk(LINEAR, user(WRITE)).is_ok());
    tables.put(LAST + 32, 0xa_b000 | PRESENT);
    assert!(tables.walk(LINEAR, READ).is_ok());
    tables.faults(allowed, 3);
}

#[test]
fn accessed_and_dirty_bits_are_set_as_the_processor_sets_them() {
    let tables = Tables::four();
    assert!(tables.walk(LINEAR, READ).is_ok());
    for gpa in [TOP + 8, SECOND + 16, THIRD + 24, LAST + 32] {
        assert_eq!(tables.entry(gpa) & (ACCESSED | DIRTY), ACCESSED);
    }
    assert!(tables.walk(LINEAR, WRITE).is_ok());
    assert_eq!(tables.entry(THIRD + 24) & DIRTY, 0);
    assert_eq!(tables.entry(LAST + 32), 0xa_b000 | ALL | ACCESSED | DIRTY);
    // An access that is refused is not recorded as a write.
    let tables = Tables::four();
    tables.put(LAST + 32, 0xa_b000 | PRESENT | USER);
    tables.faults(WRITE, 3);
    assert_eq!(tables.entry(LAST + 32) & DIRTY, 0);
}

#[test]
fn non_canonical_addresses_do_not_page_fault() {
    let mut tables = Tables::four();
    for linear in [1 << 47, 0xffff_7fff_ffff_ffff, 1 << 63] {
        assert_eq!(tables.walk(linear, READ), Err(Fault::NonCanonical));
    }
    assert_eq!(
        tables.walk(0xffff_8000_0000_0000, READ),
        Err(Fault::Page { error_code: 0 })
    );
    tables.paging.mode = Mode::Five;
    assert!(tables.paging.is_canonical(1 << 47));
    assert!(!tables.paging.is_canonical(1 << 56));
}

#[test]
fn a_table_outside_memory_is_named() {
    let mut tables = Tables::four();
    tables.put(THIRD + 24, 0x7f_f000 | ALL);
    assert_eq!(
        tables.walk(LINEAR, READ),
        Err(Fault::TableNotRam { gpa: 0x7f_f020 })
    );
    tables.paging.cr3 = u64::MAX;
    let gpa = ADDRESS + 8;
    assert_eq!(tables.walk(LINEAR, READ), Err(Fault::TableNotRam { gpa }));
}

#[test]
fn a_translation_may_lead_outside_of_memory() {
    let tables = Tables::four();
    tables.put(LAST + 32, 0xf_ffff_ffff_f000 | ALL);
    tables.leads_to(LINEAR, 0xf_ffff_ffff_f567, 0xa99);
}

#[test]
fn a_table_that_points_to_itself_ends() {
    let tables = Tables::new(Mode::Four);
    tables.put(TOP + 0x1ff * 8, TOP | ALL);
    tables.leads_to(0xffff_ffff_ffff_f123, TOP | 0x123, 0xedd);
    assert_eq!(tables.entry(TOP + 0x1ff * 8), TOP | ALL | ACCESSED);
}

#[test]
fn pae_has_four_pointers_without_rights() {
    let mut tables = Tables::new(Mode::Pae);
    tables.paging.cr3 = 0x1020;
    // Linear C0A0_3456H: indexes 3, 5 and 3.
    tables.put(0x1020 + 3 * 8, SECOND | PRESENT);
    tables.put(SECOND + 5 * 8, LAST | ALL);
    tables.put(LAST + 3 * 8, 0xa_b000 | ALL | NO_EXECUTE);
    let linear = 0xc0a0_3456;
    tables.leads_to(linear, 0xa_b456, 0xbaa);
    // Bits 63:32 of the address do not count, and the pointer has no accessed bit.
    tables.leads_to(0xffff_ffff_0000_0000 | linear, 0xa_b456, 0xbaa);
    assert!(tables.walk(linear, user(WRITE)).is_ok());
    assert_eq!(tables.entry(0x1020 + 3 * 8), SECOND | PRESENT);
    assert_eq!(
        tables.walk(linear, FETCH),
        Err(Fault::Page { error_code: 0x11 })
    );
    tables.put(SECOND + 5 * 8, 0x1_2340_0000 | ALL | LARGE);
    tables.leads_to(linear, 0x1_2340_3456, 0x20_0000 - 0x3456);
    tables.put(0x1020 + 3 * 8, SECOND | PRESENT | WRITABLE);
    assert_eq!(
        tables.walk(linear, READ),
        Err(Fault::Page { error_code: 9 })
    );
}

#[test]
fn legacy_paging_has_two_levels_and_4_mib_pages() {
    let mut tables = Tables::new(Mode::Legacy { large_pages: true });
    tables.paging.no_execute = false;
    // Linear 0140_3456H: indexes 5 and 3.
    tables.put_short(TOP + 5 * 4, 0x2007);
    tables.put_short(SECOND + 3 * 4, 0xa_b007);
    let linear = 0x0140_3456;
    tables.leads_to(linear, 0xa_b456, 0xbaa);
    assert!(tables.walk(linear, user(WRITE)).is_ok());
    assert_eq!(tables.entry(SECOND + 3 * 4) as u32, 0xa_b067);
    assert_eq!(tables.entry(TOP + 5 * 4) as u32, 0x2027);
    // The neighbours are as before.
    assert_eq!(tables.entry(TOP + 5 * 4) >> 32, 0);
    // Bits 20:13 are address bits 39:32 (PSE-36).
    tables.put_short(TOP + 5 * 4, 0x00c0_2087);
    tables.leads_to(linear, 0x1_00c0_3456, 0x40_0000 - 0x3456);
    tables.put_short(TOP + 5 * 4, 0x00e0_0087);
    assert_eq!(
        tables.walk(linear, READ),
        Err(Fault::Page { error_code: 9 })
    );
    // Without PSE the bit means nothing.
    tables.paging.mode = Mode::Legacy { large_pages: false };
    tables.put_short(TOP + 5 * 4, 0x2087);
    tables.leads_to(linear, 0xa_b456, 0xbaa);
}

proptest::proptest! {
    #[test]
    fn a_walk_of_any_tables_terminates(
        mode in 0..6,
        words in proptest::collection::vec(proptest::prelude::any::<u64>(), 32),
        cr3: u64,
        linear: u64,
        bits in 0u8..64,
    ) {
        let mode = match mode {
            0 => Mode::Off,
            1 => Mode::Legacy { large_pages: bits & 1 != 0 },
            2 => Mode::Pae,
            3 => Mode::Five,
            _ => Mode::Four,
        };
        let mut tables = Tables::new(mode);
        tables.paging.cr3 = cr3 & 0xf_ffff;
        tables.paging.no_execute = bits & 2 != 0;
        for (index, word) in (0..).zip(words) {
            // Present, and leading into RAM more often than not.
            tables.put(index % 16 * 0x1_0000 + (word >> 40 & 0xff8), word & 0xf_ffff | 7);
        }
        let access = Access {
            kind: [Kind::Read, Kind::Write, Kind::Fetch][usize::from(bits >> 2) % 3],
            user: bits & 16 != 0,
            alignment_check: bits & 32 != 0,
        };
        if let Ok(found) = tables.walk(linear, access) {
            proptest::prop_assert!(found.run >= 1 && found.run <= 1 << 30);
            proptest::prop_assert!(found.gpa < 1 << 52);
        }
    }
}
