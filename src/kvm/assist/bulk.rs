//! The bulk-memory port: a guest kernel's `rep movsb` and `rep stosb` done by the host.
//!
//! On a KVM that emulates kernel code, copying a page costs the guest milliseconds and a port
//! write ten microseconds. A kernel that knows of the port writes AL = A4H (copy RCX bytes from
//! RSI to RDI) or AL = AAH (fill RCX bytes at RDI with AH) to it and then runs the string
//! instruction itself on whatever RCX says is left. So nothing here ever faults: the first byte
//! that cannot be reached ends the work, and the guest's own instruction meets it next.
//!
//! KVM does not see these writes: they are in no dirty log, and a KVM that shadows page tables
//! is not told of them. A kernel must not build page tables in use with the port (clearing or
//! filling a page before it becomes a table is fine).

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::cpu::Cpu;
use crate::kvm::walk::{Access, Kind, Paging};
use crate::memory::GuestMemory;
use crate::memory::dirty;

/// The I/O port, written with one byte.
pub const PORT: u16 = 0xb8;
/// AL: copy, as `rep movsb` (its opcode).
pub const COPY: u8 = 0xa4;
/// AL: fill with AH, as `rep stosb` (its opcode).
pub const FILL: u8 = 0xaa;
/// Most bytes done in one exit; the guest repeats the request or copies the rest itself.
pub const LIMIT: u64 = 64 << 20;

const DIRECTION: u64 = 1 << 10;

/// Does what AL asks for as far as it can, and moves RSI, RDI and RCX on; returns the bytes done.
///
/// Only in 64-bit mode with RFLAGS.DF clear; otherwise, and for any other AL, nothing happens.
pub fn bulk(cpu: &mut dyn Cpu) -> u64 {
    let regs = *cpu.regs();
    if cpu.bitness() != 64 || regs.rflags & DIRECTION != 0 {
        return 0;
    }
    let wanted = regs.rcx.min(LIMIT);
    let reach = Reach {
        memory: cpu.memory(),
        paging: Paging::new(cpu.sregs()),
        access: cpu.access(Kind::Read),
    };
    let done = match regs.rax as u8 {
        COPY => copy(&reach, regs.rsi, regs.rdi, wanted),
        FILL => fill(&reach, regs.rdi, (regs.rax >> 8) as u8, wanted),
        _ => return 0,
    };
    let regs = cpu.regs_mut();
    regs.rcx -= done;
    regs.rdi = regs.rdi.wrapping_add(done);
    if regs.rax as u8 == COPY {
        regs.rsi = regs.rsi.wrapping_add(done);
    }
    done
}

fn copy(reach: &Reach, source: u64, target: u64, wanted: u64) -> u64 {
    let (mut from, mut to) = (Run::NONE, Run::NONE);
    let mut done = 0;
    while done < wanted {
        if !reach.fill_in(&mut from, source.wrapping_add(done), Kind::Read)
            || !reach.fill_in(&mut to, target.wrapping_add(done), Kind::Write)
        {
            break;
        }
        let len = from.len.min(to.len).min((wanted - done) as usize);
        // SAFETY: both runs are `len` live bytes of the guest's mapping.
        unsafe { copy_forward(from.host, to.host, len) };
        reach.wrote(&to, len);
        from.advance(len);
        to.advance(len);
        done += len as u64;
    }
    done
}

fn fill(reach: &Reach, target: u64, byte: u8, wanted: u64) -> u64 {
    let mut to = Run::NONE;
    let mut done = 0;
    while done < wanted && reach.fill_in(&mut to, target.wrapping_add(done), Kind::Write) {
        let len = to.len.min((wanted - done) as usize);
        // SAFETY: the run is `len` live bytes of the guest's mapping, which is bytes of any value.
        unsafe { to.host.write_bytes(byte, len) };
        reach.wrote(&to, len);
        to.advance(len);
        done += len as u64;
    }
    done
}

/// Copies one byte after the other: a target that overlaps its source from above repeats it.
///
/// # Safety
/// `from` and `to` are each valid for `len` bytes.
unsafe fn copy_forward(from: *const u8, to: *mut u8, len: usize) {
    let period = (to as usize).wrapping_sub(from as usize);
    if period == 0 || period >= len {
        // SAFETY: the caller's promise; apart, or overlapping from below, where the order of
        // a memmove and of single bytes give the same.
        unsafe { std::ptr::copy(from, to, len) };
        return;
    }
    // The bytes before `to + done` repeat with the period, so ever longer pieces can be taken
    // from the start; a piece never reaches into its own target.
    let mut done = 0;
    while done < len {
        let piece = (period + done).min(len - done);
        // SAFETY: `from + piece` is at most `to + done`, and `done + piece` at most `len`.
        unsafe { std::ptr::copy_nonoverlapping(from, to.add(done), piece) };
        done += piece;
    }
}

/// Host memory of consecutive linear addresses, to the end of a page.
struct Run {
    host: *mut u8,
    gpa: u64,
    len: usize,
}

impl Run {
    const NONE: Run = Run {
        host: std::ptr::null_mut(),
        gpa: 0,
        len: 0,
    };

    fn advance(&mut self, by: usize) {
        self.host = self.host.wrapping_add(by);
        self.gpa = self.gpa.wrapping_add(by as u64);
        self.len -= by;
    }
}

/// How the guest's addresses are reached.
struct Reach<'a> {
    memory: &'a GuestMemory,
    paging: Paging,
    access: Access,
}

impl Reach<'_> {
    /// Looks up `linear` if the run is used up; false if it is not there for that kind of access.
    fn fill_in(&self, run: &mut Run, linear: u64, kind: Kind) -> bool {
        if run.len == 0 {
            *run = self.find(linear, kind).unwrap_or(Run::NONE);
        }
        run.len > 0
    }

    fn find(&self, linear: u64, kind: Kind) -> Option<Run> {
        let access = Access {
            kind,
            ..self.access
        };
        let found = self.paging.translate(self.memory, linear, access).ok()?;
        let (region, offset) = self.memory.to_region_addr(GuestAddress(found.gpa))?;
        let len = found.run.min(region.len() - offset.0) as usize;
        let slice = region.get_slice(offset, len).ok()?;
        Some(Run {
            host: slice.ptr_guard_mut().as_ptr(),
            gpa: found.gpa,
            len,
        })
    }

    /// The first `len` bytes of `run` were written, past vm-memory, which would mark them.
    fn wrote(&self, run: &Run, len: usize) {
        dirty::mark(self.memory, GuestAddress(run.gpa), len);
    }
}
