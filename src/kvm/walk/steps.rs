//! The steps of a page walk, for `hull inspect`: each entry on the way, without checking rights or
//! setting bits.

use super::*;

/// One entry that a walk reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The table: PML5, PML4, PDPT, PD or PT.
    pub table: &'static str,
    /// Index of the entry in the table.
    pub index: u64,
    /// GPA at which the entry is.
    pub gpa: u64,
    /// The value of the entry.
    pub entry: u64,
    /// The flags that are set, with the names of the manual.
    pub flags: String,
    /// GPA of the next table or of the page.
    pub target: u64,
}

/// How a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The walk found a page.
    Page {
        /// GPA that the address translates to.
        gpa: u64,
        /// Size of the page in bytes.
        size: u64,
    },
    /// Paging is off: the address is physical.
    Off,
    /// The last entry is not present.
    NotPresent,
    /// The last entry has reserved bits set.
    Reserved,
    /// The address is not canonical.
    NonCanonical,
    /// The next entry is not in RAM.
    NotRam {
        /// Where it should be.
        gpa: u64,
    },
}

/// All steps of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps {
    /// The entries read, the highest first.
    pub steps: Vec<Step>,
    /// How the walk ended.
    pub end: End,
    /// What all entries together allow, if it ended at a page.
    pub rights: Option<Allowed>,
}

/// What a page may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Whether writes are allowed.
    pub write: bool,
    /// Whether CPL 3 has access.
    pub user: bool,
    /// Whether fetches are allowed.
    pub execute: bool,
}

impl Paging {
    /// Tell the walk to `linear`.
    pub fn steps(&self, memory: &GuestMemory, linear: u64) -> Steps {
        let mut steps = Vec::new();
        let mut allowed = Allowed {
            write: true,
            user: true,
            execute: true,
        };
        let end = self.follow(memory, linear, &mut steps, &mut allowed);
        let rights = matches!(end, End::Page { .. }).then_some(allowed);
        Steps { steps, end, rights }
    }

    fn follow(
        &self,
        memory: &GuestMemory,
        linear: u64,
        steps: &mut Vec<Step>,
        allowed: &mut Allowed,
    ) -> End {
        let (levels, mut table) = self.levels();
        if !self.is_canonical(linear) {
            return End::NonCanonical;
        }
        let linear = match self.mode {
            Mode::Four | Mode::Five => linear,
            _ => linear & 0xffff_ffff,
        };
        for (depth, level) in levels.iter().enumerate() {
            let gpa = self.entry_address(table, linear, *level);
            let Ok(entry) = self.load(memory, gpa) else {
                return End::NotRam { gpa };
            };
            let leaf = depth + 1 == levels.len() || (level.large && entry & LARGE != 0);
            let reserved = entry & PRESENT != 0 && self.reserved(entry, *level, leaf);
            let size = 1u64 << level.shift;
            let page = self.leaf(entry, linear, *level).gpa;
            let target = if leaf {
                page & !(size - 1)
            } else {
                entry & self.address_bits()
            };
            steps.push(Step {
                table: self.table_name(*level),
                index: (gpa & 0xfff) / self.entry_size(),
                gpa,
                entry,
                flags: self.flags(entry, *level, leaf, reserved),
                target,
            });
            if entry & PRESENT == 0 {
                return End::NotPresent;
            }
            if reserved {
                return End::Reserved;
            }
            if level.rights {
                allowed.write &= entry & WRITABLE != 0;
                allowed.user &= entry & USER != 0;
                allowed.execute &= !self.no_execute || entry & NO_EXECUTE == 0;
            }
            if leaf {
                return End::Page { gpa: page, size };
            }
            table = target;
        }
        End::Off // it is off where there are no levels
    }

    fn address_bits(&self) -> u64 {
        match self.mode {
            Mode::Legacy { .. } => 0xffff_f000,
            _ => ADDRESS,
        }
    }

    fn table_name(&self, level: Level) -> &'static str {
        match (level.shift, self.mode) {
            (48, _) => "PML5",
            (39, _) => "PML4",
            (30, _) => "PDPT",
            (21, _) | (22, _) => "PD",
            _ => "PT",
        }
    }

    /// Intel SDM 3A, tables 4-5 to 4-20.
    fn flags(&self, entry: u64, level: Level, leaf: bool, reserved: bool) -> String {
        let large = leaf && level.shift > 12;
        let names = [
            (PRESENT, "P", true),
            (WRITABLE, "RW", level.rights),
            (USER, "US", level.rights),
            (1 << 3, "PWT", true),
            (1 << 4, "PCD", true),
            (ACCESSED, "A", level.rights),
            (DIRTY, "D", leaf),
            (LARGE, "PS", large),
            (LARGE, "PAT", leaf && !large),
            (1 << 8, "G", leaf),
            (1 << 12, "PAT", large),
            (NO_EXECUTE, "NX", self.no_execute),
        ];
        let set = names
            .iter()
            .filter(|(bit, _, here)| *here && entry & bit != 0);
        let mut words: Vec<_> = set.map(|(_, name, _)| *name).collect();
        if reserved {
            words.push("reserved");
        }
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::GuestMemoryMmap;

    use super::*;

    const MEMORY: usize = 0x10000;

    fn memory(words: &[(u64, u64)]) -> GuestMemory {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
        for &(gpa, word) in words {
            memory.write_obj(word, GuestAddress(gpa)).expect("RAM");
        }
        memory
    }

    fn four(cr3: u64) -> Paging {
        Paging {
            mode: Mode::Four,
            cr3,
            write_protect: true,
            no_execute: true,
            smep: false,
            smap: false,
        }
    }

    #[test]
    fn a_walk_lists_every_entry_down_to_the_page() {
        let memory = memory(&[
            (0x1000 + 8 * 0x1ff, 0x2000 | 0x23),
            (0x2000 + 8 * 0x1fe, 0x3000 | 0x23),
            (0x3000 + 8 * 8, 0x1e3 | 1 << 24 | 1 << 63),
        ]);
        let told = four(0x1000).steps(&memory, 0xffff_ffff_8101_2345);
        let tables: Vec<_> = told.steps.iter().map(|step| step.table).collect();
        assert_eq!(tables, ["PML4", "PDPT", "PD"]);
        let flags: Vec<_> = told.steps.iter().map(|step| step.flags.as_str()).collect();
        assert_eq!(flags, ["P RW A", "P RW A", "P RW A D PS G NX"]);
        assert_eq!(told.steps[1].index, 0x1fe);
        assert_eq!(
            told.end,
            End::Page {
                gpa: 0x101_2345,
                size: 2 << 20
            }
        );
        let rights = told.rights.expect("a page");
        assert!(rights.write && !rights.user && !rights.execute);
        let nowhere = four(0x1000).steps(&memory, 0x1234);
        assert_eq!((nowhere.steps.len(), nowhere.end), (1, End::NotPresent));
        let odd = four(0x1000).steps(&memory, 1 << 47);
        assert_eq!((odd.steps.len(), odd.end), (0, End::NonCanonical));
        let outside = four(0x5000_0000).steps(&memory, 0);
        assert_eq!(outside.end, End::NotRam { gpa: 0x5000_0000 });
    }

    #[test]
    fn a_table_that_points_to_itself_ends_after_four_levels() {
        let memory = memory(&[(0x1000, 0x1000 | 3)]);
        let told = four(0x1000).steps(&memory, 0x123);
        assert_eq!(told.steps.len(), 4);
        let size = 0x1000;
        assert_eq!(told.end, End::Page { gpa: 0x1123, size });
    }

    proptest! {
        #[test]
        fn listed_walks_agree_with_translations(
            words in prop::collection::vec((0u64..MEMORY as u64 / 8, any::<u64>(), 0u64..16), 64..512),
            mode in 0usize..5,
            linear: u64,
            cr3 in 0u64..0x12000,
        ) {
            let words: Vec<_> = words
                .iter()
                .map(|&(at, word, table)| (at * 8, word & !0x7ff0_ffff_ffff_f000 | table << 12))
                .collect();
            let memory = memory(&words);
            let mode = [
                Mode::Off,
                Mode::Legacy { large_pages: true },
                Mode::Pae,
                Mode::Four,
                Mode::Five,
            ][mode];
            let linear = linear & 0x1ff_ffff_ffff;
            let paging = Paging { mode, ..four(cr3) };
            let told = paging.steps(&memory, linear);
            prop_assert!(told.steps.len() <= 5);
            let found = match told.end {
                End::Page { gpa, .. } => Some(gpa),
                End::Off => Some(linear & 0xffff_ffff),
                _ => None,
            };
            let translated = paging.translate(&memory, linear, LOOK).ok();
            prop_assert_eq!(found, translated.map(|translation| translation.gpa));
        }
    }
}
