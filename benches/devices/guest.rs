//! The init of the machines that benches/devices.rs compares: sets eth0 up as 172.16.77.2, then
//! connects to the host again and again and does what the first byte says:
//! `S` sends [`BYTES`], `R` reads to the end and says so, `P` sends each byte back, `Q` reboots.
//! Static and without a C library: the same work under every monitor, and little of it.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

const AF_INET: usize = 2;
const SOCK_STREAM: usize = 1;
const HOST: [u8; 4] = [172, 16, 77, 1];
const GUEST: [u8; 4] = [172, 16, 77, 2];
const MASK: [u8; 4] = [255, 255, 255, 0];
const PORT: u16 = 7077;
const BYTES: usize = 64 << 20;

const READ: usize = 0;
const WRITE: usize = 1;
const CLOSE: usize = 3;
const IOCTL: usize = 16;
const SOCKET: usize = 41;
const CONNECT: usize = 42;
const SETSOCKOPT: usize = 54;
const REBOOT: usize = 169;

global_asm!(".globl _start", "_start: and rsp, -16", "call {main}", "ud2", main = sym main);

static mut BUFFER: [u8; 1 << 16] = [0; 1 << 16];

extern "C" fn main() -> ! {
    // SAFETY: one thread, and this is called once.
    let buffer = unsafe { &mut *(&raw mut BUFFER) };
    set_up();
    loop {
        let socket = check(call(SOCKET, AF_INET, SOCK_STREAM, 0));
        let [high, low] = PORT.to_be_bytes();
        let [a, b, c, d] = HOST;
        let address = [AF_INET as u8, 0, high, low, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0];
        check(call(CONNECT, socket, address.as_ptr() as usize, address.len()));
        // TCP_NODELAY of IPPROTO_TCP.
        let on = 1u32;
        check(call6(SETSOCKOPT, [socket, 6, 1, &raw const on as usize, 4]));
        let mut order = [0];
        read(socket, &mut order);
        match order[0] {
            b'S' => {
                for _ in 0..BYTES / buffer.len() {
                    write(socket, buffer);
                }
            }
            b'R' => {
                while read(socket, buffer) > 0 {}
                write(socket, b"k");
            }
            b'P' => {
                while read(socket, &mut order) > 0 {
                    write(socket, &order);
                }
            }
            _ => reboot(),
        }
        call(CLOSE, socket, 0, 0);
    }
}

/// netdevice(7): SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFFLAGS with IFF_UP.
fn set_up() {
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
    // SAFETY: pointers are those of living references, with their lengths.
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
