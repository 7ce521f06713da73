//! Guest memory: where everything lies ([`layout`]) and what backs it ([`backing`]); the files that
//! are loaded into it ([`image`]), and the guest that the program carries in its own pages
//! ([`packed`]).

pub mod backing;
pub mod image;
pub mod layout;
pub mod packed;

/// Guest memory as the whole program sees it: anonymous private mappings, found by
/// guest-physical address.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
