//! A machine that was saved: what its snapshot holds beside the memory, and how another goes on from
//! it.
//!
//! Chips come after the vCPUs, whose local APICs take what the IOAPIC sends; devices come after the
//! chips, since one that has an interrupt pending raises it once more.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::rand::GetRandomFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::events::lock;
use super::machine::Machine;
use super::{Balloon, Config, Console, Terminal, VmmError, vsock};
use crate::agent::{Resumed, SavedSession};
use crate::boot::Loaded;
use crate::devices::bus::Bus;
use crate::devices::state::{self, StateError};
use crate::disk::{self, DiskError, Identity};
use crate::kvm::features::Features;
use crate::kvm::save::{LoadError, SavedChips, SavedVcpu};
use crate::kvm::vcpu::Vcpu;
use crate::kvm::vm::Vm;
use crate::memory::layout::MAX_CPUS;
use crate::memory::{GuestMemory, backing};
use crate::snapshot::{Snapshot, SnapshotError};
use crate::{net, share};

/// The section of a [`Shape`].
pub const SHAPE: [u8; 4] = *b"SHAP";
/// The section of all [`SavedVcpu`]s.
pub const VCPUS: [u8; 4] = *b"VCPU";
/// The section of a [`SavedChips`].
pub const CHIPS: [u8; 4] = *b"CHIP";
/// The section of all [`SavedDevice`]s.
pub const DEVICES: [u8; 4] = *b"DEVS";
/// The section of a [`SavedLink`], if there is one.
pub const AGENT: [u8; 4] = *b"AGNT";

/// A snapshot that no machine can go on from.
#[derive(Debug, Error)]
pub enum SavedError {
    /// Its files.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// This host.
    #[error("snapshot {}: {error}; restore it on a host like the one it was made on", dir.display())]
    Host {
        /// The snapshot.
        dir: PathBuf,
        /// What is not as there.
        error: LoadError,
    },
    /// A section.
    #[error("snapshot {}: {what}; make it anew", dir.display())]
    Content {
        /// The snapshot.
        dir: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A device.
    #[error("snapshot {}: {device} {error}", dir.display())]
    Device {
        /// The snapshot.
        dir: PathBuf,
        /// What messages call it.
        device: String,
        /// Why it does not go on.
        error: StateError,
    },
    /// A disk that does not tell what it is.
    #[error(transparent)]
    Image(DiskError),
    /// A disk.
    #[error("snapshot {}: {error}", dir.display())]
    Disk {
        /// The snapshot.
        dir: PathBuf,
        /// What is not as it was.
        error: disk::Changed,
    },
}

/// What a machine is made of.
#[derive(Debug, Serialize, Deserialize)]
pub struct Shape {
    /// hull's version that made it.
    pub version: String,
    /// vCPUs.
    pub cpus: u8,
    /// Guest memory.
    pub memory_bytes: u64,
    /// What the kernel's terminal is on.
    pub terminal: Terminal,
    /// Whether hull's init runs a command.
    pub agent: bool,
    /// Whether that command has a terminal.
    pub terminal_wanted: bool,
    /// As in [`Config`].
    pub late_devices: bool,
    /// Whether the guest has learnt of all devices.
    pub revealed: bool,
    /// As in [`Config`].
    pub rng: bool,
    /// As in [`Config`].
    pub balloon: Option<Balloon>,
    /// As in [`Config`], with what each was.
    pub disks: Vec<(disk::Config, Identity)>,
    /// As in [`Config`].
    pub nets: Vec<net::Config>,
    /// As in [`Config`].
    pub shares: Vec<share::Config>,
    /// As in [`Config`].
    pub vsock: Option<vsock::Config>,
    /// What was put into memory before the first instruction.
    pub loaded: Option<Loaded>,
    /// Words that hull added to the command line for its host.
    pub added_words: Vec<String>,
    /// What the guest sees of the processor past KVM, where KVM emulates its kernel.
    pub processor: Option<Features>,
}

/// A device on a bus.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedDevice {
    /// Whether it is at a port.
    pub port: bool,
    /// Its first address.
    pub base: u64,
    /// What messages call it.
    pub name: String,
    /// What [`crate::devices::bus::BusDevice::load`] takes.
    pub state: Vec<u8>,
}

/// The way to hull's init.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedLink {
    /// The protocol; none of a template, whose guest waits for its first command.
    pub session: Option<SavedSession>,
    /// Which pipe it goes over.
    pub pipe: usize,
}

/// A snapshot that has been read and judged but for its memory.
pub struct Saved {
    dir: PathBuf,
    snapshot: Snapshot,
    /// What the machine is made of.
    pub shape: Shape,
    vcpus: Vec<SavedVcpu>,
    chips: SavedChips,
    devices: Vec<SavedDevice>,
    /// The session with hull's init, if there is one.
    pub link: Option<SavedLink>,
}

/// What a guest is told that goes on elsewhere, with the `windows` of devices that it has not seen
/// yet: what two copies of it must not have in common.
pub fn resumed(windows: Range<usize>) -> Resumed {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let mut entropy = [0; 32];
    // It waits for nothing once the host's generator has started, which it has when a KVM is there.
    let _ = rustix::rand::getrandom(&mut entropy, GetRandomFlags::empty());
    Resumed {
        unix_ns: since.map_or(0, |time| time.as_nanos() as u64),
        entropy,
        first_slot: windows.start as u8,
        slots: windows.len() as u8,
    }
}

impl fmt::Debug for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Saved").field(&self.dir).finish()
    }
}

impl Saved {
    /// Read the snapshot in `dir`.
    ///
    /// # Errors
    /// It is none, damaged, of another version, or not whole.
    pub fn open(dir: &Path) -> Result<Self, SavedError> {
        let snapshot = crate::snapshot::open(dir)?;
        let shape: Shape = section(&snapshot, dir, SHAPE)?;
        let saved = Self {
            dir: dir.into(),
            vcpus: section(&snapshot, dir, VCPUS)?,
            chips: section(&snapshot, dir, CHIPS)?,
            devices: section(&snapshot, dir, DEVICES)?,
            link: section(&snapshot, dir, AGENT)?,
            shape,
            snapshot,
        };
        let bytes: u64 = saved.snapshot.memory().bytes();
        let upside_down = |range: &Range<u64>| range.start > range.end;
        let loaded = saved.shape.loaded.as_ref();
        match () {
            () if !(1..=MAX_CPUS).contains(&saved.shape.cpus) => {
                Err(saved.wrong("a machine has 1 to 32 vCPUs, and this one has not"))
            }
            () if loaded.is_some_and(|loaded| {
                upside_down(&loaded.kernel) || loaded.initrd.as_ref().is_some_and(upside_down)
            }) =>
            {
                Err(saved.wrong("its kernel or initial RAM disk ends before it begins"))
            }
            () if saved.vcpus.len() != usize::from(saved.shape.cpus) => {
                Err(saved.wrong("the number of vCPUs is not that of its machine"))
            }
            () if bytes != saved.shape.memory_bytes => {
                Err(saved.wrong("the memory is not as large as its machine's"))
            }
            () => Ok(saved),
        }
    }

    /// Whether its guest waits for its first command.
    pub fn is_template(&self) -> bool {
        matches!(&self.link, Some(link) if link.session.is_none())
    }

    /// Read all of the memory, which is not done otherwise.
    ///
    /// # Errors
    /// It is not what was written.
    pub fn verify(&self) -> Result<(), SavedError> {
        Ok(self.snapshot.check_memory()?)
    }

    /// The machine that it was, with `console` in place of what it talked to.
    pub fn config(&self, console: Console) -> Config {
        let shape = &self.shape;
        Config {
            cpus: shape.cpus,
            memory_bytes: shape.memory_bytes,
            terminal: shape.terminal,
            late_devices: shape.late_devices,
            rng: shape.rng,
            balloon: shape.balloon,
            disks: shape.disks.iter().map(|(disk, _)| disk.clone()).collect(),
            nets: shape.nets.clone(),
            shares: shape.shares.clone(),
            vsock: shape.vsock.clone(),
            ..Config::nothing(console)
        }
    }

    /// Its memory, nothing of which is read before it is touched.
    pub(super) fn map_memory(&self) -> Result<GuestMemory, VmmError> {
        Ok(backing::map_file(self.snapshot.memory())?)
    }

    /// Whether this host can run it, asked before any vCPU is made.
    pub(super) fn fits(&self, vm: &Vm) -> Result<(), SavedError> {
        let host = |error| SavedError::Host {
            dir: self.dir.clone(),
            error,
        };
        let past_kvm = self.shape.processor.as_ref();
        for vcpu in &self.vcpus {
            let shown = vcpu.features().map_err(host)?;
            vm.offers(&shown, past_kvm).map_err(host)?;
        }
        Ok(())
    }

    /// Have `machine`, made of this shape and with its vCPUs taken out, go on from it.
    pub(super) fn load(&self, machine: &Machine, vcpus: &mut [Vcpu]) -> Result<(), VmmError> {
        for ((_, then), disk) in self.shape.disks.iter().zip(&machine.devices.disks) {
            let now = disk.identity().map_err(SavedError::Image)?;
            then.check(&now).map_err(|error| SavedError::Disk {
                dir: self.dir.clone(),
                error,
            })?;
        }
        if self.shape.revealed {
            machine.devices.windows.reveal();
        }
        // A device that goes on has its thread serve what is in its queues.
        let _quiet = machine.devices.quiesce();
        Ok(self.load_all(machine, vcpus)?)
    }

    fn load_all(&self, machine: &Machine, vcpus: &mut [Vcpu]) -> Result<(), SavedError> {
        let host = |error| SavedError::Host {
            dir: self.dir.clone(),
            error,
        };
        // Some moments apart when they were saved, but one clock to the guest.
        let tsc = self.vcpus.first().map_or(0, SavedVcpu::tsc);
        for (index, (vcpu, saved)) in vcpus.iter_mut().zip(&self.vcpus).enumerate() {
            vcpu.load(saved, index, tsc).map_err(host)?;
        }
        machine.vm.load_chips(&self.chips).map_err(host)?;
        self.load_devices(&machine.shared.ports, true)?;
        self.load_devices(&machine.shared.mmio, false)
    }

    fn load_devices(&self, bus: &Bus, port: bool) -> Result<(), SavedError> {
        let of_bus = || self.devices.iter().filter(|device| device.port == port);
        for (base, _, name, device) in bus.devices() {
            let saved = of_bus().find(|saved| saved.base == base);
            let state = saved.map_or(&[][..], |saved| &saved.state);
            let loaded = lock(device).load(state);
            loaded.map_err(|error| SavedError::Device {
                dir: self.dir.clone(),
                device: name.into(),
                error,
            })?;
        }
        let there = |base| bus.devices().any(|(at, ..)| at == base);
        match of_bus().find(|saved| !there(saved.base)) {
            None => Ok(()),
            Some(lost) => Err(self.wrong(&format!("this machine lacks its device {}", lost.name))),
        }
    }

    fn wrong(&self, what: &str) -> SavedError {
        SavedError::Content {
            dir: self.dir.clone(),
            what: what.into(),
        }
    }
}

fn section<T: DeserializeOwned>(
    snapshot: &Snapshot,
    dir: &Path,
    tag: [u8; 4],
) -> Result<T, SavedError> {
    let name = String::from_utf8_lossy(&tag);
    let wrong = |what| SavedError::Content {
        dir: dir.into(),
        what,
    };
    let bytes = snapshot.section(tag);
    let bytes = bytes.ok_or_else(|| wrong(format!("section {name} is missing")))?;
    state::decode(bytes).map_err(|error| wrong(format!("section {name} {error}")))
}
