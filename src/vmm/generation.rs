//! The VM generation id: it changes when a machine is restored, so that the copies of a guest reseed
//! their random number generators.
//!
//! It is at [`VM_GENERATION`], which the DSDT names. A guest without ACPI is told by the agent's
//! `Resumed` through hull's init instead.

use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Bytes, GuestAddress};

use super::error::VmmError;
use crate::boot::BootError;
use crate::devices::bus::Interrupt;
use crate::memory::GuestMemory;
use crate::memory::layout::VM_GENERATION;

const SIZE: usize = 16;

/// Write the first generation id of a machine that boots.
///
/// # Errors
/// Memory ends below it.
pub fn begin(memory: &GuestMemory) -> Result<(), VmmError> {
    let mut id = [0; SIZE];
    // For up to 256 bytes it neither fails nor falls short (getrandom(2)).
    let _ = getrandom(&mut id, GetRandomFlags::empty());
    let outside = BootError::OutsideMemory {
        what: "the VM generation",
        gpa: VM_GENERATION,
        size: SIZE as u64,
    };
    let written = memory.write_slice(&id, GuestAddress(VM_GENERATION));
    Ok(written.map_err(|_| outside)?)
}

/// Write a new id into a restored machine, and raise `line`,
/// [`crate::memory::layout::VM_GENERATION_GSI`]. The interrupt controllers must be restored, and no
/// vCPU may run yet.
///
/// # Errors
/// Memory ends below it, or the line cannot be raised ([`VmmError::EventFd`]).
pub fn renew(memory: &GuestMemory, line: &dyn Interrupt) -> Result<(), VmmError> {
    begin(memory)?;
    line.trigger().map_err(VmmError::EventFd)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counted(AtomicU32);

    impl Interrupt for Counted {
        fn trigger(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    #[test]
    fn every_generation_differs_and_only_a_new_one_raises_the_line() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        let read = || {
            let mut id = [0; SIZE];
            let read = memory.read_slice(&mut id, GuestAddress(VM_GENERATION));
            read.expect("inside");
            id
        };
        let line = Counted::default();
        begin(&memory).expect("inside");
        let first = read();
        assert_eq!(line.0.load(Ordering::Relaxed), 0);
        renew(&memory, &line).expect("inside");
        assert_ne!(read(), first);
        assert_eq!(line.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn too_little_memory_for_the_generation_is_an_error() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 4096)]).expect("memory");
        let error = begin(&memory).expect_err("outside").to_string();
        assert!(error.contains("the VM generation"), "{error}");
    }
}
