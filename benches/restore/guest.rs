//! What the compared machines boot from: hull's kernel and initial RAM disk, with an init of ours.

use std::io::Write;

use super::Result;

/// The init's place; the kernel's command line names it.
pub const INIT: &str = "bench-init";
/// What the idle guest prints when it is up.
pub const LINE: &str = "user space\n";
/// What is typed to it. No monitor says that of its own accord.
pub const TYPED: &str = "~~";

const BASE: u64 = 0x40_0000;
/// Of the ELF file: its header and one program header.
const HEADERS: u64 = 64 + 56;

/// `initramfs` with a console and `init` in it.
pub fn initrd(initramfs: &[u8], init: &[u8]) -> Result<Vec<u8>> {
    let mut archive = initramfs.to_vec();
    archive.resize(archive.len().next_multiple_of(4), 0);
    let entries = [
        ("dev", 0o040_755, 0, &[][..]),
        ("dev/console", 0o020_600, 5, &[]),
        (INIT, 0o100_755, 0, init),
    ];
    for (name, mode, major, content) in entries {
        let header = cpio::newc::Builder::new(name).mode(mode).rdev_major(major);
        let header = header.rdev_minor(major.min(1));
        let mut entry = header.write(archive, content.len() as u32);
        entry.write_all(content)?;
        archive = entry.finish()?;
    }
    Ok(cpio::newc::trailer(archive)?)
}

/// An init that runs `words` without a shell, waits for the end and reboots: vfork(2), execve(2),
/// wait4(2), reboot(2). No init does it with less.
pub fn runs(words: &[&str]) -> Vec<u8> {
    let code = |data: u32| {
        let path = data + 8 * (words.len() as u32 + 1);
        let mut child = Code::default();
        child.set(EAX, 59).set(EDI, path).set(ESI, data);
        child.bytes(&[0x31, 0xd2]).syscall(); // xor edx, edx
        child.set(EAX, 60).set(EDI, 1).syscall();
        let mut code = Code::default();
        code.set(EAX, 58).syscall();
        code.bytes(&[0x85, 0xc0, 0x75, child.0.len() as u8]); // test eax, eax; jnz over the child
        code.bytes(&child.0);
        code.set(EAX, 61);
        code.bytes(&[0x48, 0xc7, 0xc7, 0xff, 0xff, 0xff, 0xff]); // mov rdi, -1
        code.bytes(&[0x31, 0xf6, 0x31, 0xd2, 0x45, 0x31, 0xd2]); // xor esi, edx, r10d
        code.syscall();
        code.set(EAX, 169).set(EDI, 0xfee1_dead);
        code.set(ESI, 0x2812_1969).set(EDX, 0x0123_4567).syscall();
        code.bytes(&[0xeb, 0xfe]); // jmp $
        code.0
    };
    let data = |data: u64| {
        let mut pointers = Vec::new();
        let mut strings = Vec::new();
        for word in words {
            let at = data + 8 * (words.len() as u64 + 1) + strings.len() as u64;
            pointers.extend(at.to_le_bytes());
            strings.extend(word.bytes().chain([0]));
        }
        pointers.extend(0u64.to_le_bytes());
        [pointers, strings].concat()
    };
    elf(code, data)
}

/// An init that prints [`LINE`] and then reads the console for ever: what is typed there, the
/// kernel's terminal echoes.
pub fn idle() -> Vec<u8> {
    let code = |data: u32| {
        let mut code = Code::default();
        code.set(EAX, 1).set(EDI, 1).set(ESI, data);
        code.set(EDX, LINE.len() as u32).syscall();
        let start = code.0.len();
        code.set(EAX, 0).set(EDI, 0).set(EDX, 1);
        code.bytes(&[0x48, 0x89, 0xe6]).syscall(); // mov rsi, rsp
        let back = start as i64 - (code.0.len() as i64 + 2);
        code.bytes(&[0xeb, back as u8]); // jmp to the start
        code.0
    };
    elf(code, |_| LINE.as_bytes().to_vec())
}

/// Opcodes of `mov REGISTER, imm32`.
const EAX: u8 = 0xb8;
const EDX: u8 = 0xba;
const ESI: u8 = 0xbe;
const EDI: u8 = 0xbf;

#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn set(&mut self, register: u8, value: u32) -> &mut Self {
        self.0.push(register);
        self.bytes(&value.to_le_bytes())
    }

    fn syscall(&mut self) -> &mut Self {
        self.bytes(&[0x0f, 0x05])
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }
}

/// A static program of one segment (System V ABI, 4), given its code and data for an address of the
/// data.
fn elf(code: impl Fn(u32) -> Vec<u8>, data: impl Fn(u64) -> Vec<u8>) -> Vec<u8> {
    let start = BASE + HEADERS + code(0).len() as u64;
    let content = [code(start as u32), data(start)].concat();
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend([BASE + HEADERS, 64, 0].map(u64::to_le_bytes).concat()); // entry, phoff, shoff
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // flags, sizes, one segment
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, readable and executable
    let size = HEADERS + content.len() as u64;
    let segment = [0, BASE, BASE, size, size, 0x1000];
    file.extend(segment.map(u64::to_le_bytes).concat());
    file.extend(content);
    file
}
