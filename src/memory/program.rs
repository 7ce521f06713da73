//! The program's own pages: what starting took lets them go again.
//!
//! The packed guest, the command line's parser, the loaders: megabytes that are mapped from the
//! program's file and not needed while a guest runs.

use std::ffi::{c_int, c_void};

use libc::{PF_W, PT_LOAD, dl_iterate_phdr, dl_phdr_info};
use rustix::mm::{Advice, madvise};

/// Page size of x86_64.
const PAGE: u64 = 4096;

/// Give what the program maps of its own file without writing it back to the page cache; a page
/// comes again when it is touched. Best effort. The same for what was allocated and is free again,
/// such as the buffers that the guest's parts were unpacked in, which glibc keeps for each thread.
pub fn release() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time on any thread; it touches free memory alone.
    unsafe {
        libc::malloc_trim(0)
    };
    // SAFETY: `release_object` keeps to the contract of dl_iterate_phdr(3) and takes no data.
    unsafe { dl_iterate_phdr(Some(release_object), std::ptr::null_mut()) };
}

/// Have all threads allocate from one heap: one of its own for each is megabytes of addresses and
/// dozens of system calls, and what hull allocates is little.
pub fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) may be called at any time; it sets a number.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Of the program, which is the first object, and with a linked-in C library the only one but the
/// vDSO. Its non-zero result ends the iteration.
extern "C" fn release_object(info: *mut dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    // SAFETY: the C library hands over a valid `info`, whose headers are the mapped ones.
    let (base, headers) = unsafe {
        let info = &*info;
        let count = usize::from(info.dlpi_phnum);
        (
            info.dlpi_addr,
            std::slice::from_raw_parts(info.dlpi_phdr, count),
        )
    };
    for header in headers {
        if header.p_type == PT_LOAD && header.p_flags & PF_W == 0 {
            let start = base.wrapping_add(header.p_vaddr) & !(PAGE - 1);
            let end = base
                .wrapping_add(header.p_vaddr)
                .wrapping_add(header.p_memsz);
            let bytes = end.wrapping_sub(start) as usize;
            let start = std::ptr::with_exposed_provenance_mut(start as usize);
            // SAFETY: whole pages that the kernel mapped privately for this segment and that
            // nobody could write: read again, they hold the same bytes of the file.
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
    fn what_was_released_comes_back_and_what_was_written_stays() {
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
