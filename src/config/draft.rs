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
    /// As in [`Machine`].
    pub name: Option<String>,
    /// As in [`Machine`].
    pub cpus: Option<u8>,
    /// Bytes.
    pub memory: Option<u64>,
    /// The kernel's file.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk's file.
    pub initrd: Option<PathBuf>,
    /// As in [`Machine`].
    pub boot: Option<Via>,
    /// As in [`Machine`].
    pub cmdline: Option<String>,
    /// As in [`Machine`].
    pub console: Option<Console>,
    /// As in [`Machine`].
    pub kernel_log: Option<bool>,
    /// Before all other disks.
    pub root_disk: Option<disk::Config>,
    /// Disks of `disk`.
    pub disks: Vec<disk::Config>,
    /// Disks of `overlay`, behind those of `disk`.
    pub overlays: Vec<disk::Config>,
    /// Disks of `scratch`, the last of all.
    pub scratches: Vec<disk::Config>,
    /// As in [`Machine`].
    pub nets: Vec<net::Config>,
    /// As in [`Machine`].
    pub shares: Vec<share::Config>,
    /// Whether there is an entropy device, as there is unless a source says no.
    pub rng: Option<bool>,
    /// As in [`Machine`].
    pub balloon: Option<Balloon>,
    /// As in [`Machine`].
    pub vsock: Option<Vsock>,
    /// As in [`Machine`].
    pub faults: Vec<Fault>,
    /// As in [`Machine`].
    pub command: Option<Command>,
}

impl Draft {
    /// What both say, and what this one says where both say something; a list replaces the other's.
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
