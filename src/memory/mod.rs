//! Guest memory: its addresses ([`layout`]) and its mappings ([`backing`]); a few bytes of it at once
//! ([`access`]); the files that are loaded into it ([`image`]), the guest inside the program ([`packed`]), the pages of
//! the program itself ([`program`]), reads and writes of files ([`transfer`], [`ring`]); the pages with content
//! ([`pages`]), the pages that hull wrote ([`dirty`], [`bitmap`]), and the file in a snapshot
//! ([`mod@file`]).

pub mod access;
pub mod backing;
pub mod bitmap;
pub mod dirty;
pub mod file;
pub mod image;
pub mod layout;
pub mod packed;
pub mod pages;
pub mod program;
pub mod ring;
pub mod transfer;

/// Guest memory as the whole program sees it: private mappings, found by
/// guest-physical address.
pub type GuestMemory = vm_memory::GuestMemoryMmap<bitmap::Dirty>;
