//! The flags that `hull run` and `hull pool` share: kernel, vCPUs and memory.

use std::ffi::OsString;
use std::path::PathBuf;

use super::headings::{KERNEL, MACHINE};
use crate::config::{Cpus, Kernel, Lockdown, Machine, machine};

#[derive(clap::Args)]
pub struct Shape {
    /// ELF vmlinux, bzImage, PVH kernel or flat payload, recognized by content; the kernel inside
    /// hull when left out.
    kernel: Option<PathBuf>,
    /// The kernel by a name or as a FILE: tiny, the one inside hull; or full, which lies beside hull and lacks
    /// nothing usual (netfilter, BPF, more file systems, 32-bit programs, nested KVM) [default: tiny, or
    /// what the label dev.hull.kernel of an image says]
    #[arg(
        long = "kernel",
        value_name = "tiny|full|FILE",
        conflicts_with = "kernel",
        help_heading = KERNEL
    )]
    named: Option<OsString>,
    /// Initial RAM disk; hull's own when left out. Without CMD its own init runs, on the serial
    /// console.
    #[arg(long, value_name = "FILE", help_heading = KERNEL)]
    initrd: Option<PathBuf>,
    /// Words for the kernel command line; they win over hull's.
    #[arg(long, value_name = "STR", allow_hyphen_values = true, help_heading = KERNEL)]
    cmdline: Option<String>,
    /// vCPUs, 1 to 32, and their arrangement: cores of a socket, 1 or 2 threads of a core, sockets; one
    /// socket with a core for each unless they are given. Example: --cpus 8,cores=4,threads=2
    /// [default: 1]
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = MACHINE
    )]
    cpus: Option<Cpus>,
    /// Guest memory: bytes, or with K, M, G or T; 2M to 1T [default: 128M]
    #[arg(
        short = 'm',
        long,
        value_name = "SIZE",
        value_parser = machine::parse_memory,
        allow_negative_numbers = true,
        help_heading = MACHINE
    )]
    memory: Option<u64>,
    #[command(flatten)]
    wall: Wall,
}

/// What an image may not choose any more.
#[derive(Clone, Copy)]
pub struct Given {
    pub kernel: bool,
    pub memory: bool,
    pub cpus: bool,
}

/// The flag of all verbs that run a machine.
#[derive(clap::Args)]
pub struct Wall {
    /// Whether hull gives up its rights before the guest runs: best-effort (as far as the host can),
    /// required (or refuse to run) or off [default: best-effort]
    #[arg(
        long,
        value_name = "HOW",
        value_enum,
        hide_possible_values = true,
        help_heading = MACHINE
    )]
    lockdown: Option<Lockdown>,
}

impl Wall {
    /// Set in `machine` what the flag says.
    pub fn set(&self, machine: &mut Machine) {
        machine.lockdown = self.lockdown.unwrap_or(machine.lockdown);
    }

    /// The flag as it was given, for another process.
    pub fn flags(&self) -> Option<String> {
        let given = self.lockdown.as_ref();
        given.map(|how| format!("--lockdown={how}"))
    }
}

impl Shape {
    /// What of it is given.
    pub fn given(&self) -> Given {
        Given {
            kernel: self.kernel.is_some() || self.named.is_some(),
            memory: self.memory.is_some(),
            cpus: self.cpus.is_some(),
        }
    }

    /// Set in `machine` what the flags mention.
    pub fn set(&self, machine: &mut Machine) {
        if let Some(kernel) = &self.kernel {
            machine.kernel = Kernel::File(kernel.clone());
        }
        if let Some(named) = &self.named {
            machine.kernel = Kernel::from(named.clone());
        }
        if let Some(initrd) = &self.initrd {
            machine.initrd = Some(initrd.clone());
        }
        if let Some(cmdline) = &self.cmdline {
            machine.cmdline.clone_from(cmdline);
        }
        machine.set_cpus(self.cpus.unwrap_or(machine.cpus()));
        machine.memory_bytes = self.memory.unwrap_or(machine.memory_bytes);
        self.wall.set(machine);
    }
}
