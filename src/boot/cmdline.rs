//! The kernel command line: hull's defaults, the user's words, and the virtio-mmio devices.
//!
//! The user's words win: a default whose key they name is left out. What follows ` -- ` goes to
//! init and stays at the end. Source: Documentation/admin-guide/kernel-parameters.rst.

use thiserror::Error;

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
    /// More than the kernel copies.
    #[error(
        "the kernel command line is {length} bytes long, this kernel takes {max}; shorten --cmdline"
    )]
    TooLong {
        /// Bytes, without the NUL.
        length: usize,
        /// Most bytes, without the NUL.
        max: usize,
    },
    /// The kernel would read only what stands before it.
    #[error("the kernel command line holds a NUL at byte {at}; remove it")]
    Nul {
        /// Its offset.
        at: usize,
    },
}

/// A kernel command line under construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmdline {
    kernel: String,
    init: Option<String>,
}

impl Cmdline {
    /// The user's own words, the part after ` -- ` kept apart for init.
    pub fn new(user: &str) -> Self {
        let user = user.trim();
        let (kernel, init) = match user.strip_prefix("-- ") {
            Some(init) => ("", Some(init)),
            None => match user.split_once(" -- ") {
                Some((kernel, init)) => (kernel, Some(init)),
                None => (user, None),
            },
        };
        Self {
            kernel: kernel.to_string(),
            init: init.map(str::to_string),
        }
    }

    /// Put those of `words` first whose key (what stands before `=`) is not there yet.
    pub fn with_defaults(mut self, words: &[&str]) -> Self {
        let key = |word: &str| {
            word.split_once('=')
                .map_or(word, |(key, _)| key)
                .to_string()
        };
        let present: Vec<String> = self.kernel.split_ascii_whitespace().map(key).collect();
        let new = words
            .iter()
            .filter(|word| !present.contains(&key(word)))
            .copied();
        let words: Vec<&str> = new.chain(Some(self.kernel.as_str())).collect();
        self.kernel = words.join(" ").trim().to_string();
        self
    }

    /// Append a word for the kernel.
    pub fn with(mut self, word: &str) -> Self {
        if !self.kernel.is_empty() {
            self.kernel.push(' ');
        }
        self.kernel.push_str(word);
        self
    }

    /// Append one `virtio_mmio.device=` a slot (drivers/virtio/virtio_mmio.c).
    pub fn with_virtio(self, slots: &[MmioSlot]) -> Self {
        slots.iter().fold(self, |line, MmioSlot { base, gsi }| {
            line.with(&format!(
                "virtio_mmio.device={}K@{base:#x}:{gsi}",
                VIRTIO_MMIO_SIZE >> 10
            ))
        })
    }

    /// The whole line.
    ///
    /// # Errors
    /// [`CmdlineError`] when it is longer than `max` bytes or holds a NUL.
    pub fn finish(self, max: usize) -> Result<String, CmdlineError> {
        let line = match self.init {
            Some(init) => format!("{} -- {init}", self.kernel)
                .trim_start()
                .to_string(),
            None => self.kernel,
        };
        if let Some(at) = line.find('\0') {
            return Err(CmdlineError::Nul { at });
        }
        if line.len() > max {
            return Err(CmdlineError::TooLong {
                length: line.len(),
                max,
            });
        }
        Ok(line)
    }
}

/// Write `line` and a NUL at [`CMDLINE`].
///
/// # Errors
/// [`CmdlineError::TooLong`] beyond [`CMDLINE_CAPACITY`], [`BootError::OutsideMemory`].
pub fn write(memory: &GuestMemory, line: &str) -> Result<(), BootError> {
    let max = CMDLINE_CAPACITY as usize - 1;
    if line.len() > max {
        return Err(CmdlineError::TooLong {
            length: line.len(),
            max,
        }
        .into());
    }
    let bytes = [line.as_bytes(), b"\0"].concat();
    ram::write(memory, "the command line", CMDLINE, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout::virtio_slot;

    #[test]
    fn the_users_words_replace_defaults() {
        let line = Cmdline::new("panic=5 quiet")
            .with_defaults(&DEFAULTS)
            .finish(2047)
            .unwrap();
        assert_eq!(line, "reboot=k panic=5 quiet");
        let line = Cmdline::new("")
            .with_defaults(&DEFAULTS)
            .finish(2047)
            .unwrap();
        assert_eq!(line, "reboot=k panic=-1");
    }

    #[test]
    fn devices_stand_before_inits_arguments() {
        let slots = [virtio_slot(0).unwrap(), virtio_slot(1).unwrap()];
        let line = Cmdline::new("quiet -- a  b")
            .with_virtio(&slots)
            .finish(2047)
            .unwrap();
        assert_eq!(
            line,
            "quiet virtio_mmio.device=4K@0xc0001000:5 virtio_mmio.device=4K@0xc0002000:6 -- a  b"
        );
        assert_eq!(Cmdline::new("-- a").with("x").finish(99).unwrap(), "x -- a");
    }

    #[test]
    fn a_line_too_long_or_with_a_nul_is_refused_with_figures() {
        let error = Cmdline::new(&"x".repeat(11)).finish(10).unwrap_err();
        assert_eq!(
            error,
            CmdlineError::TooLong {
                length: 11,
                max: 10
            }
        );
        assert!(Cmdline::new(&"x".repeat(10)).finish(10).is_ok());
        assert_eq!(
            Cmdline::new("a\0b").finish(10).unwrap_err(),
            CmdlineError::Nul { at: 1 }
        );
    }
}
