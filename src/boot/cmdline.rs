//! The kernel command line: hull's defaults, the user's words, and the virtio-mmio devices.
//!
//! linux-loader's `Cmdline` keeps the kernel's words apart from what follows ` -- `, which goes to
//! init, and writes both. Here is what it lacks: defaults that give way to the user's words, and
//! the limit that a kernel states only once it is loaded.
//! Source: Documentation/admin-guide/kernel-parameters.rst.

pub use linux_loader::cmdline::Cmdline;
use linux_loader::loader::load_cmdline;
use thiserror::Error;
use vm_memory::GuestAddress;

use super::error::BootError;
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::layout::{CMDLINE, CMDLINE_CAPACITY, MmioSlot, VIRTIO_MMIO_SIZE};

/// What every guest kernel is told unless the user says otherwise: on a panic an immediate reset by
/// the i8042, which ends hull.
pub const DEFAULTS: [&str; 2] = ["reboot=k", "panic=-1"];

/// Why a command line cannot be given to a kernel.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CmdlineError {
    /// The line is longer than the kernel copies.
    #[error("the kernel command line is {length} bytes long, this kernel takes {max}; shorten it")]
    TooLong {
        /// Bytes, without the NUL.
        length: usize,
        /// Most bytes, without the NUL.
        max: usize,
    },
    /// A part begins or ends with a character that linux-loader cuts off as a space, and that is none to
    /// Linux.
    #[error(
        "the kernel command line begins or ends with {0:?}, which is no space to Linux; remove it"
    )]
    Space(char),
    /// linux-loader refuses it, such as for a NUL, before which the kernel would stop reading.
    #[error("the kernel command line is not valid")]
    Invalid(#[from] linux_loader::cmdline::Error),
}

/// The `user`'s words, after those of `defaults` whose key (before `=`) is not among them.
///
/// # Errors
/// [`CmdlineError::Space`].
pub fn new(user: &str, defaults: &[&str]) -> Result<Cmdline, CmdlineError> {
    let key = |word: &[u8]| word.split(|byte| *byte == b'=').next().map(<[u8]>::to_vec);
    let (kernel, init) = divide(user);
    for part in [kernel, init] {
        let part = part.trim_matches(|c: char| c.is_ascii() && is_space(c as u8));
        let ends = [part.chars().next(), part.chars().next_back()];
        if let Some(c) = ends.into_iter().flatten().find(|c| c.is_whitespace()) {
            return Err(CmdlineError::Space(c));
        }
    }
    let present = kernel.as_bytes().split(|byte| is_space(*byte));
    let present: Vec<_> = present.map(key).collect();
    let mut words = defaults.to_vec();
    words.retain(|word| !present.contains(&key(word.as_bytes())));
    // linux-loader knows the separator only by a space on either side of it.
    let end = if init.trim().is_empty() { "" } else { " -- " };
    let line = format!("{} {kernel}{end}{init}", words.join(" "));
    Ok(Cmdline::try_from(&line, usize::MAX)?)
}

/// The kernel's words, and what follows a word `--`, which goes to init (lib/cmdline.c, `next_arg`).
fn divide(line: &str) -> (&str, &str) {
    let (mut quoted, mut begins) = (false, true);
    for (at, c) in line.char_indices() {
        let (kernel, rest) = line.split_at(at);
        if begins
            && !quoted
            && let Some(init) = rest.strip_prefix("--")
            && init.as_bytes().first().is_none_or(|byte| is_space(*byte))
        {
            return (kernel, init);
        }
        quoted ^= c == '"';
        begins = line
            .as_bytes()
            .get(at + c.len_utf8() - 1)
            .is_some_and(|byte| is_space(*byte));
    }
    (line, "")
}

/// Whether `byte` is between words: to Linux, which reads Latin-1 (lib/ctype.c), 0xa0 is, too.
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0)
}

/// Append one `virtio_mmio.device=` a slot (drivers/virtio/virtio_mmio.c).
///
/// # Errors
/// As [`new`].
pub fn add_virtio(line: &mut Cmdline, slots: &[MmioSlot]) -> Result<(), CmdlineError> {
    for slot in slots {
        line.add_virtio_mmio_device(VIRTIO_MMIO_SIZE, GuestAddress(slot.base), slot.gsi, None)?;
    }
    Ok(())
}

/// Write `line` and a NUL at [`CMDLINE`], and return it. The kernel takes `max` bytes.
///
/// # Errors
/// [`CmdlineError`]; [`BootError::OutsideMemory`].
pub fn write(memory: &GuestMemory, line: &Cmdline, max: usize) -> Result<String, BootError> {
    let text = line.as_cstring().map_err(CmdlineError::Invalid)?;
    let text = text.to_string_lossy().into_owned();
    let max = max.min(CMDLINE_CAPACITY as usize - 1);
    if text.len() > max {
        let length = text.len();
        return Err(CmdlineError::TooLong { length, max }.into());
    }
    load_cmdline(memory, GuestAddress(CMDLINE), line)
        .map_err(|_| ram::outside("the command line", CMDLINE, text.len() as u64 + 1))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::ram::tests::memory;
    use super::*;
    use crate::memory::layout::virtio_slot;

    fn written(line: &Cmdline, max: usize) -> Result<String, BootError> {
        write(&memory(1), line, max)
    }

    fn line(user: &str, defaults: &[&str]) -> String {
        written(&new(user, defaults).unwrap(), 2047).unwrap()
    }

    #[test]
    fn the_users_words_replace_defaults() {
        assert_eq!(line("panic=5 quiet", &DEFAULTS), "reboot=k panic=5 quiet");
        assert_eq!(line("", &DEFAULTS), "reboot=k panic=-1");
        assert_eq!(
            line("-- panic=5", &DEFAULTS),
            "reboot=k panic=-1 -- panic=5"
        );
    }

    #[test]
    fn a_character_that_only_unicode_takes_for_a_space_is_refused_at_an_end() {
        for user in [
            "-- a\u{85}",
            "\u{3000}quiet",
            "quiet\u{2003} -- a",
            "-- \u{a0}",
        ] {
            let refused = new(user, &DEFAULTS).unwrap_err();
            assert!(
                matches!(refused, CmdlineError::Space(_)),
                "{user}: {refused}"
            );
        }
        let kept = "quiet \u{85}x a\u{3000}b -- c\u{85}d\n";
        assert_eq!(line(kept, &[]), kept.trim());
    }

    #[test]
    fn devices_stand_before_inits_arguments() {
        let slots = [virtio_slot(0).unwrap(), virtio_slot(1).unwrap()];
        let mut line = new("quiet -- a  b", &[]).unwrap();
        add_virtio(&mut line, &slots).unwrap();
        assert_eq!(
            written(&line, 2047).unwrap(),
            "quiet virtio_mmio.device=4K@0xc0001000:5 virtio_mmio.device=4K@0xc0002000:6 -- a  b"
        );
        let mut line = new("-- a", &[]).unwrap();
        line.insert_str("x").unwrap();
        assert_eq!(written(&line, 99).unwrap(), "x -- a");
    }

    #[test]
    fn devices_are_the_kernels_however_the_separator_is_written() {
        for (user, expected) in [
            ("--", "DEVICE"),
            ("quiet --", "quiet DEVICE"),
            ("quiet\t--\ta", "quiet DEVICE -- a"),
            ("quiet\u{b}--\u{b}a", "quiet DEVICE -- a"),
            ("quiet\u{e0}-- a", "quiet\u{e0} DEVICE -- a"),
            ("quiet \n--\n", "quiet DEVICE"),
            ("dyndbg=\"a -- b\"", "dyndbg=\"a -- b\" DEVICE"),
            ("--a b--", "--a b-- DEVICE"),
        ] {
            let mut line = new(user, &[]).unwrap();
            add_virtio(&mut line, &[virtio_slot(0).unwrap()]).unwrap();
            let text = written(&line, 2047).unwrap();
            let text = text.replace("virtio_mmio.device=4K@0xc0001000:5", "DEVICE");
            assert_eq!(text, expected, "{user:?}");
        }
    }

    #[test]
    fn a_line_too_long_or_with_a_nul_is_refused_with_figures() {
        let error = |user: &str, max| written(&new(user, &[]).unwrap(), max).unwrap_err();
        let long = error(&"x".repeat(11), 10).to_string();
        assert!(
            long.contains("11 bytes long, this kernel takes 10"),
            "{long}"
        );
        assert!(
            error(&"x".repeat(0x1_0000), 99_999)
                .to_string()
                .contains("takes 65535")
        );
        assert!(written(&new(&"x".repeat(10), &[]).unwrap(), 10).is_ok());
        let nul = error("a\0b", 10);
        assert!(matches!(
            nul,
            BootError::Cmdline(CmdlineError::Invalid(
                linux_loader::cmdline::Error::NullTerminator
            ))
        ));
    }
}
