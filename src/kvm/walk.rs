//! The page walk: from a guest linear address to a guest-physical one, as the processor does it.
//!
//! [`Paging`] is what CR0, CR3, CR4 and EFER say; [`Paging::translate`] reads the tables from
//! guest memory, checks rights, sets accessed and dirty bits and reports the #PF error code the
//! processor would (Intel SDM 3A chapter 4; AMD APM 2 chapter 5). Protection keys and
//! shadow-stack pages are not looked at. Tables are the guest's and may say anything: a walk
//! reads at most five entries, and tries again a few times when another vCPU changes one.

pub mod steps;

use std::sync::atomic::Ordering;

use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileMemory};

use crate::memory::GuestMemory;
use crate::memory::dirty;

/// CR0.PE: protected mode is on.
pub const CR0_PE: u64 = 1;
/// CR0.WP: supervisor writes respect read-only pages.
pub const CR0_WP: u64 = 1 << 16;
/// CR0.PG: paging is on.
pub const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
/// EFER.LMA: long mode is active.
pub const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51:12 of an entry: the address of the next table or of the page.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const ERROR_PRESENT: u32 = 1;
const ERROR_WRITE: u32 = 1 << 1;
const ERROR_USER: u32 = 1 << 2;
const ERROR_RESERVED: u32 = 1 << 3;
const ERROR_FETCH: u32 = 1 << 4;

/// How often a walk starts again because an entry changed under it, before it gives up on
/// setting that accessed or dirty bit (the next access tries again).
const RETRIES: u32 = 8;

/// The paging mode (Intel SDM 3A, 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CR0.PG = 0: linear addresses are physical.
    Off,
    /// 32-bit paging; with CR4.PSE 4 MiB pages.
    Legacy {
        /// CR4.PSE: entries of the page directory may map 4 MiB.
        large_pages: bool,
    },
    /// PAE paging, 32-bit addresses. The page-directory-pointer entries are read from memory,
    /// not from the processor's copy of them.
    Pae,
    /// 4-level paging of long mode.
    Four,
    /// 5-level paging of long mode.
    Five,
}

/// The kind of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read of data.
    Read,
    /// A write of data, or a read that is followed by a write.
    Write,
    /// A fetch of an instruction.
    Fetch,
    /// An access from outside of the machine, as by a debugger: it may read and write all that is
    /// mapped, and sets no accessed or dirty bits.
    Look,
}

/// An access from outside of the machine.
pub const LOOK: Access = Access {
    kind: Kind::Look,
    user: false,
    alignment_check: false,
};

/// An access, as the rights are checked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Read, write or fetch.
    pub kind: Kind,
    /// From CPL 3, and not one the processor makes for itself (descriptor tables).
    pub user: bool,
    /// RFLAGS.AC: with SMAP, supervisor code may touch user pages.
    pub alignment_check: bool,
}

/// The result of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address of the byte asked for.
    pub gpa: u64,
    /// Bytes from there to the end of its page.
    pub run: u64,
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The upper bits are not copies of the highest translated one: #GP or #SS.
    NonCanonical,
    /// #PF with this error code; CR2 is the address asked for.
    Page {
        /// As pushed on the stack (Intel SDM 3A, figure 4-12).
        error_code: u32,
    },
    /// A paging structure is not in RAM.
    TableNotRam {
        /// GPA of the entry.
        gpa: u64,
    },
}

/// Everything a walk depends on besides memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// The paging mode in use.
    pub mode: Mode,
    /// CR3, the address of the highest table.
    pub cr3: u64,
    /// CR0.WP: supervisor writes respect read-only pages.
    pub write_protect: bool,
    /// EFER.NXE: bit 63 of an entry forbids fetches.
    pub no_execute: bool,
    /// CR4.SMEP: the supervisor may not fetch from user pages.
    pub smep: bool,
    /// CR4.SMAP: the supervisor may not access user pages.
    pub smap: bool,
}

/// A level of the tables: how wide its index is and where an entry's index bits start.
#[derive(Clone, Copy)]
struct Level {
    shift: u32,
    large: bool,
    /// PAE's first level has no rights and no accessed bit.
    rights: bool,
}

const fn level(shift: u32, large: bool) -> Level {
    Level {
        shift,
        large,
        rights: true,
    }
}

const LONG: [Level; 5] = [
    level(48, false),
    level(39, false),
    level(30, true),
    level(21, true),
    level(12, false),
];
const PAE: [Level; 3] = [
    Level {
        shift: 30,
        large: false,
        rights: false,
    },
    level(21, true),
    level(12, false),
];
const LEGACY: [Level; 2] = [level(22, true), level(12, false)];
const LEGACY_SMALL: [Level; 2] = [level(22, false), level(12, false)];

impl Paging {
    /// The paging that these registers set up.
    pub fn new(sregs: &kvm_sregs) -> Self {
        let mode = if sregs.cr0 & CR0_PG == 0 {
            Mode::Off
        } else if sregs.efer & EFER_LMA != 0 {
            if sregs.cr4 & CR4_LA57 != 0 {
                Mode::Five
            } else {
                Mode::Four
            }
        } else if sregs.cr4 & CR4_PAE != 0 {
            Mode::Pae
        } else {
            Mode::Legacy {
                large_pages: sregs.cr4 & CR4_PSE != 0,
            }
        };
        Paging {
            mode,
            cr3: sregs.cr3,
            write_protect: sregs.cr0 & CR0_WP != 0,
            // 32-bit paging has no bit 63, whatever EFER says.
            no_execute: sregs.efer & EFER_NXE != 0 && !matches!(mode, Mode::Legacy { .. }),
            smep: sregs.cr4 & CR4_SMEP != 0,
            smap: sregs.cr4 & CR4_SMAP != 0,
        }
    }

    /// Translates one address and, but for [`Kind::Look`], sets the accessed and dirty bits on the
    /// way.
    ///
    /// The page found need not be RAM; the caller learns that when it touches it.
    pub fn translate(
        &self,
        memory: &GuestMemory,
        linear: u64,
        access: Access,
    ) -> Result<Translation, Fault> {
        let retries = match access.kind {
            Kind::Look => 0,
            _ => RETRIES,
        };
        for _ in 0..retries {
            if let Some(translation) = self.walk(memory, linear, access, true)? {
                return Ok(translation);
            }
        }
        self.walk(memory, linear, access, false)?
            .ok_or(Fault::TableNotRam { gpa: self.cr3 })
    }

    /// The levels, the highest first, and the address of its table; none when paging is off.
    fn levels(&self) -> (&'static [Level], u64) {
        match self.mode {
            Mode::Off => (&[], 0),
            Mode::Legacy { large_pages: true } => (&LEGACY[..], self.cr3 & 0xffff_f000),
            Mode::Legacy { large_pages: false } => (&LEGACY_SMALL[..], self.cr3 & 0xffff_f000),
            Mode::Pae => (&PAE[..], self.cr3 & 0xffff_ffe0),
            Mode::Four => (&LONG[1..], self.cr3 & ADDRESS),
            Mode::Five => (&LONG[..], self.cr3 & ADDRESS),
        }
    }

    /// Read from `linear` on as an access from outside, up to the first byte that is not mapped to RAM,
    /// and return the number of bytes read.
    pub fn look(&self, memory: &GuestMemory, linear: u64, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = linear.wrapping_add(done as u64);
            let Ok(Translation { gpa, run }) = self.translate(memory, at, LOOK) else {
                break;
            };
            let len = rest.len().min(usize::try_from(run).unwrap_or(usize::MAX));
            let part = rest.get_mut(..len).unwrap_or_default();
            if memory.read_slice(part, GuestAddress(gpa)).is_err() {
                break;
            }
            done += len;
        }
        done
    }

    /// One walk; `None` if an entry changed before its accessed or dirty bit was set.
    fn walk(
        &self,
        memory: &GuestMemory,
        linear: u64,
        access: Access,
        mark: bool,
    ) -> Result<Option<Translation>, Fault> {
        if self.mode == Mode::Off {
            let gpa = linear & 0xffff_ffff;
            let run = 0x1000 - (gpa & 0xfff);
            return Ok(Some(Translation { gpa, run }));
        }
        if !self.is_canonical(linear) {
            return Err(Fault::NonCanonical);
        }
        let linear = match self.mode {
            Mode::Four | Mode::Five => linear,
            _ => linear & 0xffff_ffff,
        };
        let (levels, mut table) = self.levels();
        let mut rights = Rights::ALL;
        let mut seen = [(0u64, 0u64); LONG.len()];
        for (depth, (level, seen_here)) in levels.iter().zip(seen.iter_mut()).enumerate() {
            let gpa = self.entry_address(table, linear, *level);
            let entry = self.load(memory, gpa)?;
            if entry & PRESENT == 0 {
                return Err(self.page_fault(access, 0));
            }
            let last = depth + 1 == levels.len();
            let leaf = last || (level.large && entry & LARGE != 0);
            if self.reserved(entry, *level, leaf) {
                return Err(self.page_fault(access, ERROR_PRESENT | ERROR_RESERVED));
            }
            *seen_here = (gpa, entry);
            if level.rights {
                rights = rights.under(entry);
            }
            if leaf {
                if !self.allowed(rights, access) {
                    return Err(self.page_fault(access, ERROR_PRESENT));
                }
                let used = seen.get(..=depth).unwrap_or_default();
                if mark && !self.mark(memory, levels, used, access.kind == Kind::Write)? {
                    return Ok(None);
                }
                return Ok(Some(self.leaf(entry, linear, *level)));
            }
            table = entry & ADDRESS;
        }
        // The last level is always a leaf.
        Err(Fault::TableNotRam { gpa: table })
    }

    /// Whether the upper bits are copies of the highest one translated; outside long mode they
    /// do not count.
    pub fn is_canonical(&self, linear: u64) -> bool {
        let unused = match self.mode {
            Mode::Off | Mode::Legacy { .. } | Mode::Pae => return true,
            Mode::Four => 16,
            Mode::Five => 7,
        };
        ((linear << unused) as i64 >> unused) as u64 == linear
    }

    fn entry_size(&self) -> u64 {
        if matches!(self.mode, Mode::Legacy { .. }) {
            4
        } else {
            8
        }
    }

    fn entry_address(&self, table: u64, linear: u64, level: Level) -> u64 {
        let indexes = 0x1000 / self.entry_size();
        table + ((linear >> level.shift) & (indexes - 1)) * self.entry_size()
    }

    fn load(&self, memory: &GuestMemory, gpa: u64) -> Result<u64, Fault> {
        let address = GuestAddress(gpa);
        if self.entry_size() == 4 {
            memory
                .load::<u32>(address, Ordering::Acquire)
                .map(u64::from)
        } else {
            memory.load::<u64>(address, Ordering::Acquire)
        }
        .map_err(|_| Fault::TableNotRam { gpa })
    }

    /// Reserved bits that are set (Intel SDM 3A, tables 4-8 to 4-20). Bits above the guest's
    /// physical-address width count as address: such an address is not RAM.
    fn reserved(&self, entry: u64, level: Level, leaf: bool) -> bool {
        if let Mode::Legacy { .. } = self.mode {
            // 4 MiB pages: bits 20:13 are address bits 39:32 (PSE-36), bit 21 is reserved.
            return leaf && level.shift == 22 && entry & (1 << 21) != 0;
        }
        let mut reserved = if self.no_execute { 0 } else { NO_EXECUTE };
        if self.mode == Mode::Pae {
            reserved |= 0x7ff0_0000_0000_0000;
            if !level.rights {
                reserved |= NO_EXECUTE | 0x1e6;
            }
        }
        if leaf && level.shift > 12 {
            reserved |= (1 << level.shift) - 0x2000;
        }
        if !leaf && level.rights && !level.large {
            reserved |= LARGE;
        }
        entry & reserved != 0
    }

    fn allowed(&self, rights: Rights, access: Access) -> bool {
        if access.kind == Kind::Look {
            return true;
        }
        let fetch = access.kind == Kind::Fetch;
        if fetch && rights.no_execute && self.no_execute {
            return false;
        }
        if access.user {
            return rights.user && (rights.writable || access.kind != Kind::Write);
        }
        if rights.user && fetch && self.smep {
            return false;
        }
        if rights.user && !fetch && self.smap && !access.alignment_check {
            return false;
        }
        access.kind != Kind::Write || rights.writable || !self.write_protect
    }

    fn page_fault(&self, access: Access, cause: u32) -> Fault {
        let mut error_code = cause;
        if access.kind == Kind::Write {
            error_code |= ERROR_WRITE;
        }
        if access.user {
            error_code |= ERROR_USER;
        }
        if access.kind == Kind::Fetch && (self.no_execute || self.smep) {
            error_code |= ERROR_FETCH;
        }
        Fault::Page { error_code }
    }

    /// Sets accessed bits, and the dirty bit of the last entry for a write; false if an entry
    /// is no longer what the walk read.
    fn mark(
        &self,
        memory: &GuestMemory,
        levels: &[Level],
        used: &[(u64, u64)],
        write: bool,
    ) -> Result<bool, Fault> {
        for (index, (&(gpa, entry), level)) in used.iter().zip(levels).enumerate() {
            if !level.rights {
                continue;
            }
            let dirty = if write && index + 1 == used.len() {
                DIRTY
            } else {
                0
            };
            let marked = entry | ACCESSED | dirty;
            if marked != entry && !self.exchange(memory, gpa, entry, marked)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn exchange(&self, memory: &GuestMemory, gpa: u64, old: u64, new: u64) -> Result<bool, Fault> {
        let not_ram = Fault::TableNotRam { gpa };
        let (region, offset) = memory.to_region_addr(GuestAddress(gpa)).ok_or(not_ram)?;
        let size = self.entry_size() as usize;
        let slice = region.get_slice(offset, size).map_err(|_| not_ram)?;
        // vm-memory does not mark accesses through an atomic.
        dirty::mark(memory, GuestAddress(gpa), size);
        let ordering = (Ordering::AcqRel, Ordering::Relaxed);
        if size == 4 {
            let word = slice
                .get_atomic_ref::<std::sync::atomic::AtomicU32>(0)
                .map_err(|_| not_ram)?;
            Ok(word
                .compare_exchange(old as u32, new as u32, ordering.0, ordering.1)
                .is_ok())
        } else {
            let word = slice
                .get_atomic_ref::<std::sync::atomic::AtomicU64>(0)
                .map_err(|_| not_ram)?;
            Ok(word
                .compare_exchange(old, new, ordering.0, ordering.1)
                .is_ok())
        }
    }

    fn leaf(&self, entry: u64, linear: u64, level: Level) -> Translation {
        let size = 1u64 << level.shift;
        let mut base = entry & ADDRESS & !(size - 1);
        if matches!(self.mode, Mode::Legacy { .. }) && level.shift == 22 {
            base = (entry & 0xffc0_0000) | ((entry >> 13) & 0xff) << 32;
        }
        let offset = linear & (size - 1);
        Translation {
            gpa: base | offset,
            run: size - offset,
        }
    }
}

#[derive(Clone, Copy)]
struct Rights {
    writable: bool,
    user: bool,
    no_execute: bool,
}

impl Rights {
    const ALL: Self = Self {
        writable: true,
        user: true,
        no_execute: false,
    };

    /// The rights that remain below `entry`.
    fn under(self, entry: u64) -> Self {
        Self {
            writable: self.writable && entry & WRITABLE != 0,
            user: self.user && entry & USER != 0,
            no_execute: self.no_execute || entry & NO_EXECUTE != 0,
        }
    }
}

#[cfg(test)]
mod tests;
