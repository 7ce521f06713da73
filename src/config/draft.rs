//! [`Draft`]: what one source, the flags or a file, says of a machine.

use std::path::PathBuf;

use super::balloon::Balloon;
use super::error::ConfigError;
use super::fault::Fault;
use super::machine::{Command, Console, Device, Kernel, Machine};
use super::vsock::Vsock;
use crate::boot::Via;
use crate::{disk, net, share};

/// The settings that a source mentions, by the names of their flags; lists are empty and all else is
/// `None` where it says nothing.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// The name that other commands of hull use.
    pub name: Option<String>,
    /// Number of vCPUs, 1 to 32.
    pub cpus: Option<u8>,
    /// Guest memory in bytes.
    pub memory: Option<u64>,
    /// The kernel's file; none is the one inside hull.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk's file.
    pub initrd: Option<PathBuf>,
    /// How the kernel is entered.
    pub boot: Option<Via>,
    /// Words for the kernel command line.
    pub cmdline: Option<String>,
    /// The kernel's console, serial or virtio.
    pub console: Option<Console>,
    /// Whether the kernel's messages are printed.
    pub kernel_log: Option<bool>,
    /// The disk with the root file system, before all other disks.
    pub root_disk: Option<disk::Config>,
    /// Disks that were given as `disk`.
    pub disks: Vec<disk::Config>,
    /// Disks that were given as `overlay`, after those of `disk`.
    pub overlays: Vec<disk::Config>,
    /// Disks that were given as `scratch`, the last of all.
    pub scratches: Vec<disk::Config>,
    /// Networks, eth0 first.
    pub nets: Vec<net::Config>,
    /// Folders that are shared, without their tags.
    pub shares: Vec<share::Config>,
    /// Whether there is an entropy device, as there is unless a source says no.
    pub rng: Option<bool>,
    /// The memory balloon, if any.
    pub balloon: Option<Balloon>,
    /// The socket device, if any.
    pub vsock: Option<Vsock>,
    /// Parts that are wrong on purpose.
    pub faults: Vec<Fault>,
    /// The command for hull's init.
    pub command: Option<Command>,
}

impl Draft {
    /// Both drafts in one: a setting of this one wins over the other's, and a list replaces the other's.
    pub fn over(self, other: Self) -> Self {
        fn list<T>(over: Vec<T>, other: Vec<T>) -> Vec<T> {
            if over.is_empty() { other } else { over }
        }
        Self {
            name: self.name.or(other.name),
            cpus: self.cpus.or(other.cpus),
            memory: self.memory.or(other.memory),
            kernel: self.kernel.or(other.kernel),
            initrd: self.initrd.or(other.initrd),
            boot: self.boot.or(other.boot),
            cmdline: self.cmdline.or(other.cmdline),
            console: self.console.or(other.console),
            kernel_log: self.kernel_log.or(other.kernel_log),
            root_disk: self.root_disk.or(other.root_disk),
            disks: list(self.disks, other.disks),
            overlays: list(self.overlays, other.overlays),
            scratches: list(self.scratches, other.scratches),
            nets: list(self.nets, other.nets),
            shares: list(self.shares, other.shares),
            rng: self.rng.or(other.rng),
            balloon: self.balloon.or(other.balloon),
            vsock: self.vsock.or(other.vsock),
            faults: list(self.faults, other.faults),
            command: self.command.or(other.command),
        }
    }

    /// The machine, all else as it is unless a source says otherwise.
    ///
    /// # Errors
    /// Settings that exclude each other.
    pub fn machine(self) -> Result<Machine, ConfigError> {
        let shares = share::config::name(self.shares)
            .map_err(|reason| ConfigError::machine("share", reason))?;
        let disks = self.root_disk.into_iter().chain(self.disks);
        let disks = disks.chain(self.overlays).chain(self.scratches);
        let mut devices = Vec::new();
        devices.extend(self.rng.unwrap_or(true).then_some(Device::Rng));
        devices.extend(self.balloon.map(Device::Balloon));
        devices.extend(disks.map(Device::Disk));
        devices.extend(self.nets.into_iter().map(Device::Net));
        devices.extend(shares.into_iter().map(Device::Share));
        devices.extend(self.vsock.map(Device::Vsock));
        let plain = Machine::default();
        let machine = Machine {
            name: self.name,
            cpus: self.cpus.unwrap_or(plain.cpus),
            memory_bytes: self.memory.unwrap_or(plain.memory_bytes),
            kernel: self.kernel.map_or(plain.kernel, Kernel::File),
            boot: self.boot.unwrap_or(plain.boot),
            initrd: self.initrd,
            cmdline: self.cmdline.unwrap_or_default(),
            console: self.console.unwrap_or(plain.console),
            kernel_log: self.kernel_log.unwrap_or(plain.kernel_log),
            devices,
            command: self.command,
            faults: self.faults,
        };
        machine.check()?;
        Ok(machine)
    }
}
