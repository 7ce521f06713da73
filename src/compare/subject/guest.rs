//! The guest under all monitors: hull's initial RAM disk with another init, which runs one command, reports
//! how it ended, and ends the machine.
//!
//! The init is generated: a program of a few hundred bytes that contains its one command and starts it
//! without a shell, so that it adds as little as possible to the measured times. It reports by one byte,
//! `DONE` or `FAILED`, the last one on the console; a machine that ended early prints neither. [`judge`]
//! removes the byte.

use std::io::{self, Write};

/// The path of the init, for the kernel's `rdinit=`.
pub const INIT: &str = "bare-init";
/// What the idle guest prints when it is up.
pub(crate) const LINE: &str = "user space\n";
/// Input for the idle guest, whose echo shows that it runs. No monitor prints this text itself.
pub(crate) const TYPED: &str = "~~";
/// The last byte on the console: the command's status was 0 (ACK in ASCII), or it was not (NAK).
const DONE: u8 = 0x06;
const FAILED: u8 = 0x15;

/// Adds a console and `init` to `initramfs`.
pub fn initrd(initramfs: &[u8], init: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = initramfs.to_vec();
    archive.resize(archive.len().next_multiple_of(4), 0);
    with_init(archive, INIT, init)
}

/// Adds a console and `init`, at the path `name`, to `archive`, whose length is a multiple of 4.
pub fn with_init(mut archive: Vec<u8>, name: &str, init: &[u8]) -> io::Result<Vec<u8>> {
    let entries = [
        ("dev", 0o040_755, 0, &[][..]),
        ("dev/console", 0o020_600, 5, &[]),
        (name, 0o100_755, 0, init),
    ];
    for (name, mode, major, content) in entries {
        let header = cpio::newc::Builder::new(name).mode(mode).rdev_major(major);
        let header = header.rdev_minor(major.min(1));
        let mut entry = header.write(archive, content.len() as u32);
        entry.write_all(content)?;
        archive = entry.finish()?;
    }
    cpio::newc::trailer(archive)
}

/// Removes the report of the init of [`runs`] from the end of `output`. The text of an error continues the
/// sentence "it ...".
pub fn judge(output: &mut Vec<u8>) -> Result<(), String> {
    match output.pop() {
        Some(DONE) => Ok(()),
        Some(FAILED) => Err("ended with status 0, but the command in it failed".into()),
        last => {
            output.extend(last);
            let text = String::from_utf8_lossy(output);
            let line = text.lines().rfind(|line| !line.trim().is_empty());
            let Some(line) = line else {
                return Err("ended before the command in it, without console output".into());
            };
            let line = line.trim().chars().filter(|c| !c.is_control()).take(200);
            Err(format!(
                "ended before the command in it; the last line on its console: {}",
                line.collect::<String>()
            ))
        }
    }
}

/// An init that runs the program at `path` with the arguments `words` and /dev/null as its input, waits for
/// its end, reports how it ended, and ends the machine.
pub fn runs(path: &str, words: &[&str]) -> Vec<u8> {
    let mut init = Program::default();
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        let (kind, place) = (init.text(kind), init.text(place));
        init.call(libc::SYS_mount, &[kind, place, kind, 0, 0]);
    }
    // /dev/null as file descriptor 0, open for reading and writing (2).
    let null = init.text("/dev/null");
    init.call(libc::SYS_close, &[0])
        .call(libc::SYS_open, &[null, 2]);

    let path = init.text(path);
    let words: Vec<u32> = words.iter().map(|word| init.text(word)).collect();
    let words = init.pointers(&words);
    let environment = init.text("PATH=/bin:/sbin:/usr/bin:/usr/sbin");
    let environment = init.pointers(&[environment]);
    let mut child = Program::default();
    child.call(libc::SYS_execve, &[path, words, environment]);
    child.call(libc::SYS_exit, &[127]);
    init.call(libc::SYS_vfork, &[]);
    init.code(&[0x85, 0xc0, 0x75, child.code.len() as u8]); // test eax, eax; jnz over the child
    init.code(&child.code);

    // Not 0, in case there is no child.
    let status = init.data(&[0xff; 4]);
    init.code(&[0x89, 0xc7]); // mov edi, eax
    init.set(ESI, status).set(EDX, 0).set(R10, 0);
    init.syscall(libc::SYS_wait4);
    let (done, failed) = (init.data(&[DONE]), init.data(&[FAILED]));
    init.code(&[0x83, 0x3c, 0x25]).code(&status.to_le_bytes());
    init.code(&[0]).set(ESI, done); // cmp dword [status], 0; mov keeps the flags
    init.code(&[0x74, 5]).set(ESI, failed); // je over it
    init.set(EDI, 1).set(EDX, 1).syscall(libc::SYS_write);
    init.end();
    init.file()
}

/// An init that prints [`LINE`] and then reads the console for ever. The kernel's terminal echoes the input.
pub(crate) fn idle() -> Vec<u8> {
    let mut init = Program::default();
    let line = init.data(LINE.as_bytes());
    init.call(libc::SYS_write, &[1, line, LINE.len() as u32]);
    let start = init.code.len();
    init.call(libc::SYS_read, &[0, line, 1]);
    let back = start as i64 - (init.code.len() as i64 + 2);
    init.code(&[0xeb, back as u8]); // jmp to the start
    init.file()
}

/// The opcode of `mov REGISTER, imm32`.
const EAX: &[u8] = &[0xb8];
const EDX: &[u8] = &[0xba];
const ESI: &[u8] = &[0xbe];
const EDI: &[u8] = &[0xbf];
const R8: &[u8] = &[0x41, 0xb8];
const R10: &[u8] = &[0x41, 0xba];

/// The address of a program, and the size of its ELF header and program header.
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// A static program with one segment: the data, then the code, which contains addresses of the data.
#[derive(Default)]
struct Program {
    data: Vec<u8>,
    code: Vec<u8>,
}

impl Program {
    fn data(&mut self, bytes: &[u8]) -> u32 {
        let address = BASE + HEADERS + self.data.len() as u64;
        self.data.extend(bytes);
        address as u32
    }

    /// Adds a string that ends with NUL.
    fn text(&mut self, text: &str) -> u32 {
        let address = self.data(text.as_bytes());
        self.data(&[0]);
        address
    }

    /// Adds an array of pointers that ends with a null pointer.
    fn pointers(&mut self, addresses: &[u32]) -> u32 {
        let all = addresses.iter().chain([&0]);
        let bytes: Vec<u8> = all.flat_map(|at| u64::from(*at).to_le_bytes()).collect();
        self.data(&bytes)
    }

    fn code(&mut self, bytes: &[u8]) -> &mut Self {
        self.code.extend(bytes);
        self
    }

    fn set(&mut self, register: &[u8], value: u32) -> &mut Self {
        self.code(register).code(&value.to_le_bytes())
    }

    fn syscall(&mut self, number: i64) -> &mut Self {
        self.set(EAX, number as u32).code(&[0x0f, 0x05])
    }

    fn call(&mut self, number: i64, arguments: &[u32]) -> &mut Self {
        for (register, value) in [EDI, ESI, EDX, R10, R8].iter().zip(arguments) {
            self.set(register, *value);
        }
        self.syscall(number)
    }

    /// Waits until all output is printed, and ends the machine in the way that the monitor supports: by ACPI
    /// S5 under Cloud Hypervisor (port 0x600, SLP_EN and type 5; the others have no such port), by the
    /// keyboard controller's reset (port 0x64), or by `reboot=` of the kernel's command line.
    fn end(&mut self) {
        const TCSBRK: u32 = 0x5409; // with 1, it is tcdrain(3)
        self.call(libc::SYS_ioctl, &[1, TCSBRK, 1])
            .call(libc::SYS_iopl, &[3]);
        for (port, value) in [(0x600, 0x34), (0x64, 0xfe)] {
            self.set(EDX, port).code(&[0xb0, value, 0xee]); // mov al, value; out dx, al
        }
        const RESTART: [u32; 3] = [0xfee1_dead, 0x2812_1969, 0x0123_4567]; // reboot(2)
        self.call(libc::SYS_reboot, &RESTART).code(&[0xeb, 0xfe]); // jmp to itself
    }

    /// The ELF file (System V ABI, 4).
    fn file(self) -> Vec<u8> {
        let entry = BASE + HEADERS + self.data.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        file.extend([entry, 64, 0].map(u64::to_le_bytes).concat()); // entry, phoff, shoff
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // flags, sizes, one segment
        file.extend([1, 0, 0, 0, 7, 0, 0, 0]); // PT_LOAD: read, write, execute
        let size = HEADERS + (self.data.len() + self.code.len()) as u64;
        let segment = [0, BASE, BASE, size, size, 0x1000];
        file.extend(segment.map(u64::to_le_bytes).concat());
        file.extend(self.data);
        file.extend(self.code);
        file
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_byte_reports_how_the_command_ended() {
        let judged = |bytes: &[u8]| {
            let mut output = bytes.to_vec();
            let judged = judge(&mut output);
            (judged, output)
        };
        assert_eq!(judged(b"hi\n\x06"), (Ok(()), b"hi\n".to_vec()));
        assert_eq!(judged(b"\x06"), (Ok(()), Vec::new()));
        let (failed, output) = judged(b"hi\n\x15");
        assert!(failed.is_err() && output == b"hi\n");
        let (panicked, output) = judged(b"\x06\nKernel panic\n\n");
        assert_eq!(
            panicked.expect_err("ended early"),
            "ended before the command in it; the last line on its console: Kernel panic"
        );
        assert!(output.ends_with(b"panic\n\n"), "the output is kept");
        assert!(judged(b"").0.is_err());
    }

    #[test]
    fn words_are_stored_unchanged() {
        let words = ["echo", "two  words", "", "$HOME \"quoted\"\n"];
        let program = runs("/bin/busybox", &words);
        for word in words {
            let text = [word.as_bytes(), &[0]].concat();
            assert!(program.windows(text.len()).any(|window| window == text));
        }
    }
}
