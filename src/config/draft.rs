//! [`Draft`]: what one source, the flags or a file, says of a machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::device::{self, Device, Form, KINDS};
use super::error::ConfigError;
use super::fault::Fault;
use super::machine::{Command, Console, Kernel, Machine};
use crate::boot::Via;

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
    /// The devices that were given by each key of [`KINDS`]; an empty list says that there is none.
    pub devices: BTreeMap<&'static str, Vec<Device>>,
    /// Parts that are wrong on purpose.
    pub faults: Vec<Fault>,
    /// The command for hull's init.
    pub command: Option<Command>,
}

impl Draft {
    /// Both drafts in one: a setting of this one wins over the other's, and a list replaces the other's.
    pub fn over(self, other: Self) -> Self {
        let mut devices = other.devices;
        devices.extend(self.devices);
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
            devices,
            faults: if self.faults.is_empty() {
                other.faults
            } else {
                self.faults
            },
            command: self.command.or(other.command),
        }
    }

    /// The machine, all else as it is unless a source says otherwise.
    ///
    /// # Errors
    /// Settings that exclude each other.
    pub fn machine(mut self) -> Result<Machine, ConfigError> {
        let mut devices = Vec::new();
        for kind in &KINDS {
            match self.devices.remove(kind.key) {
                Some(given) => devices.extend(given),
                None if matches!(kind.form, Form::Switch) => devices.extend(kind.plain()),
                None => {}
            }
        }
        device::complete(&mut devices)?;
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
