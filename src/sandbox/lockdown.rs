//! The lock-down: what the calling thread, and every thread that it starts, gives up for good before a
//! guest runs.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// Whether KSM merges all of the process's memory with other processes' (prctl(2), since Linux 6.4).
const PR_SET_MEMORY_MERGE: libc::c_int = 67;
const PR_GET_MEMORY_MERGE: libc::c_int = 68;

/// Give up all rights that are not needed while a guest runs.
///
/// The thread and those that it starts from now on have no capability and get none by executing a
/// program (capabilities(7), PR_SET_NO_NEW_PRIVS); the process leaves no core dump, and only root may
/// trace it or read its memory (PR_SET_DUMPABLE in prctl(2)).
///
/// # Errors
/// The kernel refuses, which it does for none of these since Linux 4.3.
pub fn lock_down() -> io::Result<()> {
    set_no_new_privs(true)?;
    drop_capabilities(CapabilitySet::empty())?;
    hide_memory()
}

/// Have this process leave no core dump, and its memory be neither read by another one nor merged.
pub(super) fn hide_memory() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // Inherited, if the starter has it for all of its memory.
    // SAFETY: it changes which physical pages are behind the memory, and never what is in it.
    let merged = unsafe { libc::prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) };
    if merged > 0 {
        // SAFETY: as before.
        unsafe { libc::prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0) };
    }
    Ok(())
}

/// Drop all capabilities but `kept` from this thread's bounding set, which takes CAP_SETPCAP.
pub(super) fn drop_bounding(kept: CapabilitySet) -> io::Result<()> {
    let bits = (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
    for one in bits.filter(|one| !kept.contains(*one)) {
        match remove_capability_from_bounding_set(one) {
            Err(rustix::io::Errno::INVAL) => break, // there are no more
            dropped => dropped?,
        }
    }
    Ok(())
}

/// Drop all capabilities but `kept` from all sets of this thread (capabilities(7)).
pub(super) fn drop_capabilities(kept: CapabilitySet) -> io::Result<()> {
    let now = rustix::thread::capabilities(None)?;
    // Who has no right to it cannot get a capability back by executing a program either.
    if now.effective.contains(CapabilitySet::SETPCAP) {
        drop_bounding(kept)?;
    }
    let sets = CapabilitySets {
        effective: now.effective & kept,
        permitted: now.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    if now.permitted != sets.permitted || now.inheritable != sets.inheritable {
        clear_ambient_capability_set()?;
        set_capabilities(None, sets)?;
    }
    Ok(())
}
