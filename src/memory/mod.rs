//! Guest memory: where everything lies ([`layout`]) and what backs it ([`backing`]); the files that
//! are loaded into it ([`image`]), the guest that the program carries ([`packed`]), the pages of the
//! program itself ([`program`]), bytes between it and files ([`transfer`], [`ring`]); what of it holds
//! something ([`pages`]), what hull wrote ([`dirty`]), what a snapshot keeps ([`mod@file`]); and the
//! same memory for a crate of another time ([`mirror`]).

pub mod backing;
pub mod bitmap;
pub mod dirty;
pub mod file;
pub mod image;
pub mod layout;
pub mod mirror;
pub mod packed;
pub mod pages;
pub mod program;
pub mod ring;
pub mod transfer;

/// Guest memory as the whole program sees it: private mappings, found by
/// guest-physical address.
pub type GuestMemory = vm_memory::GuestMemoryMmap<bitmap::Dirty>;
