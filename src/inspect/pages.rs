//! The page walk from a linear address, decoded.

use serde::{Deserialize, Serialize};

use super::map::Memory;
use super::symbol::symbol;
use crate::devices::register::Hex;
use crate::kvm::walk::steps::{Allowed, End, Step};
use crate::kvm::walk::{Mode, Paging};
use crate::memory::GuestMemory;
use crate::symbols::Symbols;

/// The page walk to one linear address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walk {
    /// The vCPU whose tables these are.
    pub vcpu: usize,
    /// The linear address that was translated.
    pub address: Hex,
    /// The symbol at or below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// The paging mode in words.
    pub mode: String,
    /// CR3, where the walk starts.
    pub cr3: Hex,
    /// The entries on the way, from the highest level.
    pub levels: Vec<Level>,
    /// Its guest-physical address; `None` if it is not mapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpa: Option<Hex>,
    /// Size of its page in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_size: Option<u64>,
    /// What lies at that guest-physical address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
    /// The rights of the page, or why the address is not mapped.
    pub end: String,
}

/// One entry of a paging structure on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// PML5, PML4, PDPT, PD or PT.
    pub table: String,
    /// Index in the table.
    pub index: u64,
    /// GPA of the entry.
    pub gpa: Hex,
    /// The raw value of the entry.
    pub entry: Hex,
    /// The flags that are set in it.
    pub flags: String,
    /// GPA of the next table or of the page.
    pub target: Hex,
}

/// The walk to `address` with the tables of `vcpu`.
pub fn walk(
    vcpu: usize,
    paging: &Paging,
    guest: &GuestMemory,
    address: u64,
    symbols: &Symbols,
    memory: &Memory,
) -> Walk {
    let told = paging.steps(guest, address);
    let (gpa, page_size) = match told.end {
        End::Page { gpa, size } => (Some(gpa), Some(size)),
        End::Off => (Some(address & 0xffff_ffff), None),
        _ => (None, None),
    };
    let last = told.steps.last().map_or("", |step| step.table);
    Walk {
        vcpu,
        address: Hex(address),
        symbol: symbol(symbols, address),
        mode: mode(paging).into(),
        cr3: Hex(paging.cr3),
        levels: told.steps.iter().map(level).collect(),
        gpa: gpa.map(Hex),
        page_size,
        what: gpa.map(|gpa| memory.what(gpa)),
        end: match told.end {
            End::Page { .. } => told.rights.as_ref().map(rights).unwrap_or_default(),
            End::Off => "paging is off: a linear address is the physical one".into(),
            End::NotPresent => format!("not mapped: the entry of the {last} is not present"),
            End::Reserved => format!("not mapped: the entry of the {last} has reserved bits set"),
            End::NonCanonical => "not mapped: the address is not canonical".into(),
            End::NotRam { gpa } => format!("not mapped: the table entry at {gpa:#x} is not in RAM"),
        },
    }
}

fn level(step: &Step) -> Level {
    Level {
        table: step.table.into(),
        index: step.index,
        gpa: Hex(step.gpa),
        entry: Hex(step.entry),
        flags: step.flags.clone(),
        target: Hex(step.target),
    }
}

fn rights(allowed: &Allowed) -> String {
    format!(
        "{}, {}, {}",
        if allowed.user { "user" } else { "supervisor" },
        if allowed.write {
            "read and write"
        } else {
            "read only"
        },
        if allowed.execute {
            "executable"
        } else {
            "not executable"
        },
    )
}

/// The paging mode in words (Intel SDM 3A, 4.1.1).
pub fn mode(paging: &Paging) -> &'static str {
    match paging.mode {
        Mode::Off => "paging off",
        Mode::Legacy { .. } => "32-bit paging",
        Mode::Pae => "PAE paging",
        Mode::Four => "4-level paging",
        Mode::Five => "5-level paging",
    }
}
