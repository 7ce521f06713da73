//! The init of the machines whose devices `hull bench` measures (src/bench/machines.rs); build.rs makes
//! it. It connects to the host repeatedly and does what the first byte asks for, over TCP (eth0 has
//! 172.16.77.2) or, with the word `vsock` on the kernel command line, over vsock.
//!
//! `S` sends [`BYTES`]. `R` reads as many and answers. `P` sends each byte back. `L` accepts the next
//! connection from the host on [`LISTEN_PORT`]. On /dev/vda, with O_DIRECT: `w` writes [`BYTES`] from
//! the start, `r` reads them, `y` writes [`RANDOM`] pages at random places, `x` reads them, `d` reads
//! [`RANDOM`] pages, [`DEPTH`] at a time. Each answers when it is done.
//!
//! Static and without a C library, so that it does the same little work under every monitor.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

const AF_INET: usize = 2;
const AF_VSOCK: usize = 40;
const SOCK_STREAM: usize = 1;
const HOST: [u8; 4] = [172, 16, 77, 1];
const GUEST: [u8; 4] = [172, 16, 77, 2];
const MASK: [u8; 4] = [255, 255, 255, 0];
/// VMADDR_CID_HOST and VMADDR_CID_ANY (vsock(7)).
const HOST_CID: u32 = 2;
const ANY_CID: u32 = u32::MAX;

const PORT: u16 = 7077;
const LISTEN_PORT: u32 = 7078;
const BYTES: usize = 64 << 20;
const CHUNK: usize = 64 << 10;
const DISK_BYTES: usize = 128 << 20;
const DISK_CHUNK: usize = 256 << 10;
const PAGE: usize = 4096;
const RANDOM: usize = 3000;
const DEPTH: usize = 16;

const READ: usize = 0;
const WRITE: usize = 1;
const OPEN: usize = 2;
const CLOSE: usize = 3;
const IOCTL: usize = 16;
const PREAD: usize = 17;
const PWRITE: usize = 18;
const SOCKET: usize = 41;
const CONNECT: usize = 42;
const ACCEPT: usize = 43;
const BIND: usize = 49;
const LISTEN: usize = 50;
const SETSOCKOPT: usize = 54;
const MOUNT: usize = 165;
const REBOOT: usize = 169;
const IO_SETUP: usize = 206;
const IO_GETEVENTS: usize = 208;
const IO_SUBMIT: usize = 209;

// The stack starts with argc and argv.
global_asm!(".globl _start", "_start: mov rdi, rsp", "and rsp, -16", "call {main}", "ud2",
            main = sym main);

/// Aligned to a page, as O_DIRECT requires.
#[repr(align(4096))]
struct Buffer([u8; DISK_CHUNK]);

static mut BUFFER: Buffer = Buffer([0; DISK_CHUNK]);

extern "C" fn main(stack: *const usize) -> ! {
    // SAFETY: one thread, and this is called once.
    let buffer = unsafe { &mut (*(&raw mut BUFFER)).0 };
    buffer.fill(b'h');
    let vsock = has_word(stack, b"vsock\0");
    if vsock {
        mount_dev();
    } else {
        set_up_eth0();
    }
    let mut listener = None;
    loop {
        let stream = match (listener.take(), vsock) {
            (Some(listener), _) => {
                let stream = check(call(ACCEPT, listener, 0, 0));
                call(CLOSE, listener, 0, 0);
                stream
            }
            (None, true) => connect(AF_VSOCK, &vsock_address(HOST_CID, PORT.into())),
            (None, false) => {
                let stream = connect(AF_INET, &inet_address());
                // TCP_NODELAY of IPPROTO_TCP.
                let on = 1u32;
                check(call6(SETSOCKOPT, [stream, 6, 1, &raw const on as usize, 4]));
                stream
            }
        };
        let mut request = [0];
        read(stream, &mut request);
        match request[0] {
            b'S' => (0..BYTES / CHUNK).for_each(|_| write(stream, &buffer[..CHUNK])),
            b'R' => {
                let mut left = BYTES;
                while left > 0 {
                    left -= read(stream, &mut buffer[..CHUNK]).min(left);
                }
                write(stream, b"k");
            }
            b'P' => {
                while read(stream, &mut request) > 0 {
                    write(stream, &request);
                }
            }
            b'L' => {
                listener = Some(listen());
                write(stream, b"k");
            }
            request => {
                disk(request, buffer);
                write(stream, b"k");
            }
        }
        call(CLOSE, stream, 0, 0);
    }
}

/// Whether the null-terminated `word` is among the arguments that the kernel passed on.
fn has_word(stack: *const usize, word: &[u8]) -> bool {
    // SAFETY: the kernel has put argc there, followed by as many strings (elf(5)). The comparison
    // stops at the first difference, so it reads nothing behind a string's null.
    unsafe {
        (1..=*stack).any(|n| {
            let argument = *stack.add(n) as *const u8;
            (0..).zip(word).all(|(at, &byte)| *argument.add(at) == byte)
        })
    }
}

/// memset(3), which the compiler calls.
///
/// # Safety
/// `count` bytes from `to` are the caller's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's bytes.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, inout("rcx") count => _, in("al") byte as u8,
             options(nostack, preserves_flags));
    }
    to
}

fn mount_dev() {
    let (kind, path) = (c"devtmpfs".as_ptr() as usize, c"/dev".as_ptr() as usize);
    check(call6(MOUNT, [kind, path, kind, 0, 0]));
}

/// netdevice(7): SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFFLAGS with IFF_UP.
fn set_up_eth0() {
    let socket = check(call(SOCKET, AF_INET, 2, 0));
    let mut request = [0u8; 40];
    request[..4].copy_from_slice(b"eth0");
    for (number, address) in [(0x8916, GUEST), (0x891c, MASK)] {
        request[16] = AF_INET as u8;
        request[20..24].copy_from_slice(&address);
        check(call(IOCTL, socket, number, request.as_ptr() as usize));
    }
    request[16..].fill(0);
    request[16] = 1;
    check(call(IOCTL, socket, 0x8914, request.as_ptr() as usize));
}

/// struct sockaddr_in of the host.
fn inet_address() -> [u8; 16] {
    let mut address = [0; 16];
    address[0] = AF_INET as u8;
    address[2..4].copy_from_slice(&PORT.to_be_bytes());
    address[4..8].copy_from_slice(&HOST);
    address
}

/// struct sockaddr_vm.
fn vsock_address(cid: u32, port: u32) -> [u8; 16] {
    let mut address = [0; 16];
    address[0] = AF_VSOCK as u8;
    address[4..8].copy_from_slice(&port.to_le_bytes());
    address[8..12].copy_from_slice(&cid.to_le_bytes());
    address
}

fn connect(family: usize, address: &[u8; 16]) -> usize {
    let stream = check(call(SOCKET, family, SOCK_STREAM, 0));
    check(call(CONNECT, stream, address.as_ptr() as usize, address.len()));
    stream
}

fn listen() -> usize {
    let listener = check(call(SOCKET, AF_VSOCK, SOCK_STREAM, 0));
    let address = vsock_address(ANY_CID, LISTEN_PORT);
    check(call(BIND, listener, address.as_ptr() as usize, address.len()));
    check(call(LISTEN, listener, 1, 0));
    listener
}

fn disk(request: u8, buffer: &mut [u8; DISK_CHUNK]) {
    // O_RDWR and O_DIRECT.
    let disk = check(call(OPEN, c"/dev/vda".as_ptr() as usize, 0o40002, 0));
    let start = buffer.as_mut_ptr() as usize;
    let mut page = pages();
    let move_bytes = |number, len, at| {
        if check(call6(number, [disk, start, len, at, 0])) != len {
            check(-1);
        }
    };
    match request {
        b'w' | b'r' => {
            let number = if request == b'w' { PWRITE } else { PREAD };
            let chunks = 0..BYTES / DISK_CHUNK;
            chunks.for_each(|chunk| move_bytes(number, DISK_CHUNK, chunk * DISK_CHUNK));
        }
        b'y' | b'x' => {
            let number = if request == b'y' { PWRITE } else { PREAD };
            (0..RANDOM).for_each(|_| move_bytes(number, PAGE, page()));
        }
        b'd' => read_deep(disk, start, page),
        _ => {
            check(-1);
        }
    }
    call(CLOSE, disk, 0, 0);
}

/// Pseudorandom pages of the disk, the same in each run.
fn pages() -> impl FnMut() -> usize {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize % (DISK_BYTES / PAGE) * PAGE
    }
}

/// struct iocb (uapi/linux/aio_abi.h); an opcode of 0 is a read.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

/// struct io_event.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct IoEvent {
    data: u64,
    iocb: u64,
    result: i64,
    result2: i64,
}

fn read_deep(disk: usize, buffer: usize, mut page: impl FnMut() -> usize) {
    let mut context = 0usize;
    check(call(IO_SETUP, DEPTH, &raw mut context as usize, 0));
    let mut requests = [Iocb::default(); DEPTH];
    let mut events = [IoEvent::default(); DEPTH];
    let (mut begun, mut done) = (0, 0);
    let mut free = DEPTH;
    let mut slots: [usize; DEPTH] = core::array::from_fn(|slot| slot);
    while done < RANDOM {
        let now = free.min(RANDOM - begun);
        let mut pointers = [0usize; DEPTH];
        for (pointer, &slot) in pointers.iter_mut().zip(&slots[..now]) {
            requests[slot] = Iocb {
                data: slot as u64,
                fd: disk as u32,
                buffer: (buffer + slot * PAGE) as u64,
                bytes: PAGE as u64,
                offset: page() as i64,
                ..Iocb::default()
            };
            *pointer = &raw const requests[slot] as usize;
        }
        let mut given = 0;
        while given < now {
            let rest = pointers[given..].as_ptr() as usize;
            given += check(call(IO_SUBMIT, context, now - given, rest));
        }
        begun += now;
        let into = events.as_mut_ptr() as usize;
        let count = check(call6(IO_GETEVENTS, [context, 1, DEPTH, into, 0]));
        for (slot, event) in slots.iter_mut().zip(&events[..count]) {
            if event.result != PAGE as i64 {
                check(-1);
            }
            *slot = event.data as usize;
        }
        free = count;
        done += count;
    }
    // The context stays: to destroy it waits for RCU grace periods, which are no part of the reads.
}

fn read(fd: usize, bytes: &mut [u8]) -> usize {
    check(call(READ, fd, bytes.as_mut_ptr() as usize, bytes.len()))
}

fn write(fd: usize, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let len = check(call(WRITE, fd, bytes.as_ptr() as usize, bytes.len()));
        bytes = &bytes[len..];
    }
}

fn check(result: isize) -> usize {
    if result < 0 {
        call(WRITE, 1, c"failed\n".as_ptr() as usize, 7);
        reboot();
    }
    result as usize
}

fn reboot() -> ! {
    call(REBOOT, 0xfee1_dead, 672_274_793, 0x0123_4567);
    loop {}
}

fn call(number: usize, a: usize, b: usize, c: usize) -> isize {
    call6(number, [a, b, c, 0, 0])
}

fn call6(number: usize, [a, b, c, d, e]: [usize; 5]) -> isize {
    let result;
    // SAFETY: pointers come from live references, with their lengths.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result,
             in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    reboot()
}
