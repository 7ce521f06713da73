//! `hull run`: flags to a [`vmm::Config`].

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::vmm;

const MIB: u64 = 1 << 20;
/// Least memory of a guest: what the boot tables and a payload need.
const MEMORY_LEAST: u64 = 2 * MIB;
/// Most memory of a guest: 1 TiB fits every CPU's physical addresses.
const MEMORY_MOST: u64 = 1 << 40;
/// Largest kernel or initrd that is read.
const FILE_MOST: u64 = 1 << 30;

/// The flags.
#[derive(clap::Args)]
pub struct Run {
    /// ELF vmlinux or flat payload; told apart by content.
    kernel: PathBuf,
    /// Initial RAM disk for the kernel.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line, behind `console=ttyS0 reboot=k panic=-1`.
    #[arg(long, value_name = "STR", default_value = "")]
    cmdline: String,
    /// Guest memory: bytes, or with K, M, G.
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = memory_size)]
    memory: u64,
}

impl Run {
    /// Boot, and come back when the guest has ended.
    pub fn execute(self) -> anyhow::Result<()> {
        let kernel = read("kernel", &self.kernel)?;
        let initrd = match &self.initrd {
            Some(path) => read("--initrd", path)?,
            None => Vec::new(),
        };
        let config = vmm::Config {
            kernel,
            initrd,
            cmdline: self.cmdline,
            memory_bytes: self.memory,
        };
        vmm::run(&config, io::stdout()).with_context(|| self.kernel.display().to_string())?;
        Ok(())
    }
}

/// Parse a size. Binary units; at least 2 MiB, at most 1 TiB, whole pages.
fn memory_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let scale = match unit.to_ascii_uppercase().as_str() {
        "" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        "T" | "TIB" => 1 << 40,
        _ => {
            return Err(format!(
                "unknown unit {unit:?}; write a number with K, M, G or T, as 256M"
            ));
        }
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a size; write a number with K, M or G, as 256M".to_string())?;
    match number.checked_mul(scale) {
        Some(bytes) if bytes < MEMORY_LEAST => Err("too small; a guest needs at least 2M".into()),
        Some(bytes) if bytes <= MEMORY_MOST => Ok(bytes & !0xfff),
        _ => Err("too large; a guest has at most 1T".into()),
    }
}

/// Read a whole regular file of at most 1 GiB.
fn read(what: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    let name = || format!("{what} {}", path.display());
    let file = File::open(path).with_context(name)?;
    let kind = file.metadata().with_context(name)?;
    if !kind.is_file() {
        bail!("{}: not a regular file; name a kernel image", name());
    }
    if kind.len() > FILE_MOST {
        bail!("{}: {} bytes; at most 1 GiB is read", name(), kind.len());
    }
    let mut bytes = Vec::new();
    file.take(FILE_MOST)
        .read_to_end(&mut bytes)
        .with_context(name)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units_and_limits() {
        assert_eq!(memory_size("128M"), Ok(128 << 20));
        assert_eq!(memory_size("6G"), Ok(6 << 30));
        assert_eq!(memory_size("4194304"), Ok(4 << 20));
        for bad in [
            "",
            "0",
            "1M",
            "999T",
            "12Q",
            "-1",
            "abc",
            "99999999999999999999",
            "M",
        ] {
            assert!(memory_size(bad).is_err(), "{bad}");
        }
    }
}
