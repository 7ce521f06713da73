//! Guest memory: where everything lies ([`layout`]) and what backs it ([`backing`]).

pub mod backing;
pub mod layout;

/// Guest memory as the whole program sees it: anonymous private mappings, found by
/// guest-physical address.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
