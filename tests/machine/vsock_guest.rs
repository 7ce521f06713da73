//! The guest's vsock program, as busybox has none: echoes one connection to port 52, then connects to ports
//! 53 and 54 of the host and prints the results. Like guest/init it is static and has no C library: a few KiB,
//! and few instructions to start.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

const AF_VSOCK: usize = 40;
const SOCK_STREAM: usize = 1;
const CID_ANY: u32 = u32::MAX;
const CID_HOST: u32 = 2;
const SHUT_WR: usize = 1;

const READ: usize = 0;
const WRITE: usize = 1;
const SOCKET: usize = 41;
const CONNECT: usize = 42;
const ACCEPT: usize = 43;
const SHUTDOWN: usize = 48;
const BIND: usize = 49;
const LISTEN: usize = 50;
const EXIT: usize = 60;

global_asm!(".globl _start", "_start: and rsp, -16", "call {main}", "ud2", main = sym main);

static mut BUFFER: [u8; 16384] = [0; 16384];

extern "C" fn main() -> ! {
    // SAFETY: there is one thread, and it calls this function once.
    let buffer = unsafe { &mut *(&raw mut BUFFER) };

    let listener = socket();
    check(b"bind", address_call(BIND, listener, CID_ANY, 52));
    check(b"listen", call(LISTEN, listener, 1, 0));
    print(b"listening\n");
    let echo = check(b"accept", call(ACCEPT, listener, 0, 0));
    loop {
        let len = check(b"read", call(READ, echo, buffer.as_mut_ptr() as usize, buffer.len()));
        if len == 0 {
            break;
        }
        write(echo, &buffer[..len]);
    }
    check(b"shutdown", call(SHUTDOWN, echo, SHUT_WR, 0));
    print(b"echoed\n");

    let served = socket();
    check(b"connect", address_call(CONNECT, served, CID_HOST, 53));
    write(served, b"hello from the guest\n");
    check(b"shutdown", call(SHUTDOWN, served, SHUT_WR, 0));
    loop {
        let len = check(b"read", call(READ, served, buffer.as_mut_ptr() as usize, buffer.len()));
        if len == 0 {
            break;
        }
        print(&buffer[..len]);
    }

    // ECONNRESET
    match address_call(CONNECT, socket(), CID_HOST, 54) {
        -104 => print(b"54 is reset\n"),
        other => drop(check(b"not reset", -1 - other.abs())),
    }
    exit(0)
}

fn socket() -> usize {
    check(b"socket", call(SOCKET, AF_VSOCK, SOCK_STREAM, 0))
}

/// bind(2) or connect(2) with a struct sockaddr_vm.
fn address_call(number: usize, fd: usize, cid: u32, port: u32) -> isize {
    let address = [AF_VSOCK as u32, port, cid, 0];
    call(number, fd, address.as_ptr() as usize, size_of_val(&address))
}

fn write(fd: usize, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let len = check(b"write", call(WRITE, fd, bytes.as_ptr() as usize, bytes.len()));
        bytes = &bytes[len..];
    }
}

fn print(bytes: &[u8]) {
    write(1, bytes);
}

/// The result of a system call; exits with the error as the status if it failed.
fn check(what: &[u8], result: isize) -> usize {
    if result < 0 {
        call(WRITE, 2, what.as_ptr() as usize, what.len());
        exit(-result as usize);
    }
    result as usize
}

fn exit(status: usize) -> ! {
    call(EXIT, status, 0, 0);
    loop {}
}

fn call(number: usize, a: usize, b: usize, c: usize) -> isize {
    let result;
    // SAFETY: all pointers come from live references and are passed with their lengths.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result,
             in("rdi") a, in("rsi") b, in("rdx") c,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    exit(101)
}
