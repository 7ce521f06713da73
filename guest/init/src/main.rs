//! PID 1 of a hull guest: mounts, one command or one shell, power-off.
//!
//! Static, without a C library or an allocator. On a software KVM a system call costs milliseconds, so
//! there are few of them, and a new process does not copy this one. [`channel`] finds the host,
//! [`serve`] runs its command, and [`shell`] runs if there is no channel.
//!
//! Started as another process than PID 1, it is only the agent, on the descriptor that its first
//! argument names. Tests run it this way, without a guest.
#![no_std]
#![no_main]

mod channel;
mod copy;
mod disks;
mod mem;
mod network;
mod process;
mod provide;
mod report;
mod resume;
mod root;
mod running;
mod serve;
mod setup;
mod shell;
mod streams;
mod sys;
mod text;
mod user;

use core::cell::UnsafeCell;
use core::ffi::CStr;

use channel::Search;
use serve::Memory;
use sys::{Fd, Reboot};

// The kernel enters with argc, argv, a null, envp, a null on the stack (System V ABI, AMD64
// supplement, 3.4.1).
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym main,
);

struct Global(UnsafeCell<Memory>);

// SAFETY: init has one thread, and `main` borrows the memory once.
unsafe impl Sync for Global {}

static MEMORY: Global = Global(UnsafeCell::new(Memory::new()));

extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: `_start` calls this once.
    let memory = unsafe { &mut *MEMORY.0.get() };
    if sys::pid() == 1 {
        boot(stack, memory);
    }
    // SAFETY: `stack` is what the kernel gave _start.
    let fd = unsafe { strings(stack.add(1)) }.nth(1).and_then(number);
    // SAFETY: as above.
    let mut arguments = unsafe { strings(stack.add(1)) }.skip(1);
    let Some(channel) = fd else {
        let (Some(function), Some(path)) = (arguments.next(), arguments.next()) else {
            let _ = sys::write(2, b"usage: init FD (or as PID 1)\n");
            sys::exit(125);
        };
        sys::exit(match function.to_bytes() {
            b"report" => report::run(),
            _ => copy::run(function, path, memory.scratch()),
        });
    };
    let _ = sys::set_nonblocking(channel);
    sys::block_signals();
    if let Ok(signals) = sys::signal_fd() {
        serve::serve(channel, signals, memory, || resume::Files::NONE);
    }
    sys::exit(0)
}

fn boot(stack: *const usize, memory: &mut Memory) -> ! {
    setup::mark();
    sys::block_signals();
    setup::first();
    setup::modules();
    let reboot = match signal_fd() {
        None => Reboot::PowerOff,
        Some(signals) => match channel::find() {
            Search::Found(channel) => serve::serve(channel, signals, memory, prepare),
            Search::Missing => {
                say(b"hull: the command line names an agent, but no channel to it appeared\n");
                Reboot::PowerOff
            }
            Search::None => {
                setup::second();
                // SAFETY: `stack` is the stack that the kernel gave _start: envp follows argv's null.
                let env = unsafe { strings(stack.add(2 + *stack)) };
                shell::run(signals, &mut memory.pointers, env)
            }
        },
    };
    sys::sync();
    setup::leave_disks();
    sys::reboot(reboot);
    // The kernel cannot: let it panic, which hull detects.
    sys::exit(0)
}

/// Prepare what every command needs.
fn prepare() -> resume::Files {
    setup::second();
    // The command fills or empties a whole pipe then, where init would move every page as it comes.
    sys::yield_to_others();
    resume::Files::open()
}

/// A descriptor for signals, above the standard ones. It occupies free standard descriptors (in a
/// kernel without /dev/console), so that no descriptor of init conflicts with a command's.
fn signal_fd() -> Option<Fd> {
    let mut fd = sys::signal_fd().ok()?;
    while fd <= 2 {
        fd = sys::dup(fd).ok()?;
    }
    Some(fd)
}

fn say(line: &[u8]) {
    if let Ok(console) = sys::open(c"/dev/console", sys::O_RDWR | sys::O_NOCTTY) {
        let _ = sys::write(console, line);
    }
}

/// The strings of a null-terminated list of pointers.
///
/// # Safety
/// `list` is such a list and outlives the result.
unsafe fn strings<'a>(mut list: *const usize) -> impl Iterator<Item = &'a CStr> + Clone {
    core::iter::from_fn(move || {
        // SAFETY: the caller's promise; the null is not passed.
        let string = unsafe { *list } as *const core::ffi::c_char;
        if string.is_null() {
            return None;
        }
        // SAFETY: not the null yet, so one more entry follows, and this one is a string.
        unsafe {
            list = list.add(1);
            Some(CStr::from_ptr(string))
        }
    })
}

fn number(text: &CStr) -> Option<Fd> {
    text.to_str().ok()?.parse().ok()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    let _ = sys::write(2, b"hull-init: panic\n");
    sys::exit(125)
}
