//! Releases pages used only during start-up.
//!
//! The packed guest, the parser of the command line, the loaders: megabytes that are mapped from the
//! program's file and not needed while a guest runs.

use std::ffi::{c_int, c_void};

use libc::{PF_W, PT_LOAD, PT_NOTE, dl_iterate_phdr, dl_phdr_info};
use rustix::mm::{Advice, madvise};

use super::layout::PAGE_SIZE;

/// A hash of the program's content, which the linker puts into it (ld(1), --build-id); every copy has
/// the same. Empty if there is none.
pub fn build_id() -> Vec<u8> {
    let mut id = Vec::new();
    let data = (&raw mut id).cast();
    // SAFETY: `find_id` keeps to the contract of dl_iterate_phdr(3), and takes `data` for the vector
    // that it is.
    unsafe { dl_iterate_phdr(Some(find_id), data) };
    id
}

/// Callback that finds the build id of the first object, as in [`release_object`].
extern "C" fn find_id(info: *mut dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: the C library hands over a valid `info`, whose headers are the mapped ones, and the
    // vector that `build_id` has given it and does not touch meanwhile.
    let (base, headers, id) = unsafe {
        let info = &*info;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        (info.dlpi_addr, headers, &mut *data.cast::<Vec<u8>>())
    };
    for header in headers.iter().filter(|header| header.p_type == PT_NOTE) {
        let start = base.wrapping_add(header.p_vaddr) as usize;
        // SAFETY: the segment is mapped and readable, and never written.
        let notes = unsafe {
            let start = std::ptr::with_exposed_provenance(start);
            std::slice::from_raw_parts(start, header.p_memsz as usize)
        };
        id.extend_from_slice(id_among(notes).unwrap_or_default());
    }
    1
}

/// The GNU build id among ELF notes. Each note has the lengths of its name and its descriptor, its
/// type, and then both, at multiples of 4 bytes (ELF, "Note Section").
fn id_among(mut notes: &[u8]) -> Option<&[u8]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    loop {
        let (head, rest) = notes.split_first_chunk::<12>()?;
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (name, rest) = rest.split_at_checked((word(0) as usize).next_multiple_of(4))?;
        let id = rest.get(..word(4) as usize)?;
        if name == b"GNU\0" && word(8) == NT_GNU_BUILD_ID {
            return Some(id);
        }
        notes = rest.get(id.len().next_multiple_of(4)..)?;
    }
}

/// Release the read-only pages of the program's own file, which the host maps again when they are
/// touched, and freed heap memory, such as the buffers that the guest was unpacked in, which glibc
/// keeps for each thread. Best effort.
pub fn release() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time on any thread; it touches free memory alone.
    unsafe {
        libc::malloc_trim(0)
    };
    // SAFETY: `release_object` keeps to the contract of dl_iterate_phdr(3) and takes no data.
    unsafe { dl_iterate_phdr(Some(release_object), std::ptr::null_mut()) };
}

/// Make all threads allocate from one heap. A heap for each takes megabytes of addresses and dozens of
/// system calls, and hull allocates little.
pub fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) may be called at any time; it sets a number.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Callback for the program itself, which is the first object, and with a static C library the only
/// one besides the vDSO. Its non-zero result ends the iteration.
extern "C" fn release_object(info: *mut dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    // SAFETY: the C library hands over a valid `info`, whose headers are the mapped ones.
    let (base, headers) = unsafe {
        let info = &*info;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        (info.dlpi_addr, headers)
    };
    for header in headers {
        if header.p_type == PT_LOAD && header.p_flags & PF_W == 0 {
            let start = base.wrapping_add(header.p_vaddr) & !(PAGE_SIZE - 1);
            let end = base
                .wrapping_add(header.p_vaddr)
                .wrapping_add(header.p_memsz);
            let bytes = end.wrapping_sub(start) as usize;
            let start = std::ptr::with_exposed_provenance_mut(start as usize);
            // SAFETY: whole pages that the kernel mapped privately and read-only for this segment:
            // read again, they hold the same bytes of the file.
            let _ = unsafe { madvise(start, bytes, Advice::LinuxDontNeed) };
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

    use super::*;

    #[test]
    fn the_id_is_found_among_other_notes() {
        let note = |name: &[u8; 4], kind: u8, says: &[u8]| {
            let head = [4, 0, 0, 0, says.len() as u8, 0, 0, 0, kind, 0, 0, 0];
            let mut note = [&head[..], name, says].concat();
            note.resize(note.len().next_multiple_of(4), 0);
            note
        };
        let other = note(b"GNU\0", 1, &[1; 5]);
        let id = note(b"GNU\0", 3, &[7; 20]);
        assert_eq!(id_among(&[other.clone(), id].concat()), Some(&[7; 20][..]));
        assert_eq!(id_among(&other), None);
        for cut in 0..other.len() {
            assert_eq!(id_among(&other[..cut]), None);
        }
        assert_eq!(build_id(), build_id());
    }

    #[test]
    fn released_pages_are_mapped_again_and_written_ones_stay() {
        static CONSTANT: &[u8] = include_bytes!("../../Cargo.lock");
        static VARIABLE: [AtomicU8; 9000] = [const { AtomicU8::new(1) }; 9000];
        let before = CONSTANT.to_vec();
        VARIABLE[4500].store(7, Relaxed);
        release();
        assert_eq!(CONSTANT, before);
        let after = [4499, 4500, 4501].map(|at| VARIABLE[at].load(Relaxed));
        assert_eq!(after, [1, 7, 1]);
    }
}
