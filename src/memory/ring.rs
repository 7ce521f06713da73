//! Parallel reads from a file into guest memory, by io_uring.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, types};
use rustix::event::{Timespec, poll};

use super::transfer::Pieces;

/// Most reads in flight.
const ENTRIES: u32 = 64;

/// Time between two looks for what is in flight when the kernel refuses to wait for it.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// An io_uring that one thread uses. A seccomp filter does not see what a ring is asked for: so it can do
/// nothing but read from open files, for good. (With registered files the kernel would keep them, and their
/// locks, for a while after this process was killed.)
pub struct Ring {
    ring: IoUring,
    broken: bool,
}

impl Ring {
    /// A ring with room for 64 reads.
    ///
    /// # Errors
    /// The kernel has no io_uring, forbids it, or is older than 5.10.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(ENTRIES)?;
        let submitter = ring.submitter();
        submitter.register_restrictions(&mut [Restriction::sqe_op(opcode::Readv::CODE)])?;
        submitter.register_enable_rings()?;
        // `read` requires that the kernel does not access a request's iovecs after its submission.
        if ring.params().is_feature_submit_stable() {
            let broken = false;
            Ok(Self { ring, broken })
        } else {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// Whether the kernel has refused a call: the ring must not be used again.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Read into each of `reads` from its offset in `from`, and return the bytes read by each, in the
    /// same order; an error for those that were not made. Returns when no read is in flight any more.
    pub fn read(&mut self, from: &File, reads: &[(u64, Pieces)]) -> Vec<io::Result<usize>> {
        let mut results = Vec::with_capacity(reads.len());
        for part in reads.chunks(ENTRIES as usize) {
            self.read_part(from, part, &mut results);
        }
        results
    }

    fn read_part(
        &mut self,
        from: &File,
        reads: &[(u64, Pieces)],
        results: &mut Vec<io::Result<usize>>,
    ) {
        let base = results.len();
        results.extend(reads.iter().map(|_| Err(io::ErrorKind::Other.into())));
        let mut on_their_way = 0;
        for (index, (at, pieces)) in reads.iter().enumerate() {
            let (pieces, count) = pieces.raw();
            let read = opcode::Readv::new(types::Fd(from.as_raw_fd()), pieces, count as u32)
                .offset(*at)
                .build()
                .user_data(index as u64);
            // SAFETY: the iovecs live in `reads` until this function returns, which is after their
            // submission; what they point at is guest memory, which stays mapped (`Pieces`).
            on_their_way += usize::from(unsafe { self.ring.submission().push(&read) }.is_ok());
        }
        while on_their_way > 0 {
            if self.broken {
                let _ = poll(&mut [], Some(&PAUSE));
            } else if let Err(error) = self.ring.submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
            {
                // What was not submitted never will be; what was completes without a call.
                self.broken = true;
                on_their_way -= self.ring.submission().len().min(on_their_way);
            }
            for completion in self.ring.completion() {
                on_their_way -= 1;
                let read = completion.result();
                let read = usize::try_from(read).map_err(|_| io::Error::from_raw_os_error(-read));
                if let Some(result) = results.get_mut(base + completion.user_data() as usize) {
                    *result = read;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::mem::ManuallyDrop;
    use std::os::fd::{FromRawFd, OwnedFd};

    use io_uring::squeue::Flags;
    use vm_memory::{Bytes, GuestAddress};

    use super::super::backing;
    use super::super::transfer::Segment;
    use super::*;

    #[test]
    fn every_read_finds_its_bytes_and_the_end_of_the_file() {
        let memory = backing::allocate(2 << 20).expect("memory");
        let mut file = tempfile::tempfile().expect("a file");
        let data: Vec<u8> = (0..150u32 * 4096).map(|n| (n / 7 % 253) as u8).collect();
        file.write_all(&data).expect("written");
        let Ok(mut ring) = Ring::new() else {
            return; // a kernel without io_uring: nothing reads with it
        };
        let read = |index: u64| {
            let addr = GuestAddress(index * 4096);
            let pieces = Pieces::new(&memory, &[Segment { addr, len: 4096 }]);
            ((149 - index) * 4096 + 5, pieces.expect("pieces"))
        };
        let reads: Vec<_> = (0..150).map(read).collect();
        let results = ring.read(&file, &reads);
        let mut back = vec![0; 4096];
        for (index, result) in results.into_iter().enumerate() {
            let at = (149 - index) * 4096 + 5;
            let there = data.len().min(at + 4096) - at;
            assert_eq!(result.expect("read"), there);
            memory
                .read_slice(&mut back, GuestAddress(index as u64 * 4096))
                .expect("out");
            assert_eq!(back[..there], data[at..at + there]);
        }
    }

    #[test]
    fn a_ring_that_the_kernel_refuses_is_given_up() {
        let null = File::open("/dev/null").expect("there");
        let Ok(mut ring) = Ring::new() else {
            return;
        };
        // SAFETY: the descriptor stays the ring's, which closes it; it only becomes another file.
        let fd = unsafe { OwnedFd::from_raw_fd(ring.ring.as_raw_fd()) };
        let mut fd = ManuallyDrop::new(fd);
        rustix::io::dup2(&null, &mut fd).expect("replaced");
        let memory = backing::allocate(1 << 20).expect("memory");
        let addr = GuestAddress(0);
        let pieces = Pieces::new(&memory, &[Segment { addr, len: 512 }]);
        let results = ring.read(&null, &[(0, pieces.expect("pieces"))]);
        assert!(results.iter().all(Result::is_err));
        assert!(ring.is_broken());
    }

    #[test]
    fn a_ring_does_nothing_but_read() {
        let Ok(Ring { mut ring, .. }) = Ring::new() else {
            return; // a kernel without io_uring
        };
        let file = tempfile::tempfile().expect("a file");
        let own = types::Fd(file.as_raw_fd());
        let here = types::Fd(libc::AT_FDCWD);
        let path = c"/etc/passwd".as_ptr();
        let mut byte = [0u8];
        let fixed = Flags::FIXED_FILE;
        let asked = [
            opcode::OpenAt::new(here, path).build(),
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
            opcode::Connect::new(own, std::ptr::null(), 0).build(),
            opcode::Read::new(own, byte.as_mut_ptr(), 1).build(),
            opcode::Readv::new(own, std::ptr::null(), 0)
                .build()
                .flags(fixed),
            opcode::Writev::new(own, std::ptr::null(), 0).build(),
            opcode::Nop::new().build(),
        ];
        for (index, asked) in asked.into_iter().enumerate() {
            // SAFETY: the path and the byte outlive the completion, which is waited for.
            unsafe { ring.submission().push(&asked) }.expect("room");
            ring.submit_and_wait(1).expect("an answer");
            let completion = ring.completion().next().expect("an answer");
            assert_eq!(completion.result(), -libc::EACCES, "request {index}");
        }
        let more = ring.submitter().register_files(&[file.as_raw_fd()]);
        assert!(more.is_err());
    }
}
