//! A snapshot that has been read and checked, but for its memory.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;

use super::shape::{AGENT, CHIPS, DEVICES, SHAPE, SavedDevice, SavedLink, Shape, VCPUS, max_bytes};
use crate::devices::state::{self, StateError};
use crate::disk::{self, DiskError};
use crate::kvm::is_of_host;
use crate::kvm::save::{LoadError, SavedChips, SavedVcpu};
use crate::kvm::vm::Vm;
use crate::memory::GuestMemory;
use crate::memory::backing::{self, BackingError};
use crate::memory::layout::MAX_CPUS;
use crate::snapshot::{Snapshot, SnapshotError};

/// Why a snapshot cannot be restored.
#[derive(Debug, Error)]
pub enum SavedError {
    /// Its files are missing or damaged.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// This host cannot run it.
    #[error("snapshot {}: {error}; restore it on a host like the one it was made on", dir.display())]
    Host {
        /// The folder of the snapshot.
        dir: PathBuf,
        /// What this host lacks.
        error: LoadError,
    },
    /// A section is damaged.
    #[error("snapshot {}: {what}; take a new snapshot", dir.display())]
    Content {
        /// The folder of the snapshot.
        dir: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A device cannot load its state.
    #[error("snapshot {}: {device} {error}", dir.display())]
    Device {
        /// The folder of the snapshot.
        dir: PathBuf,
        /// The device's name in messages.
        device: String,
        /// What the device reports.
        error: StateError,
    },
    /// A disk cannot be identified.
    #[error(transparent)]
    Image(DiskError),
    /// A disk has changed since.
    #[error("snapshot {}: {error}", dir.display())]
    Disk {
        /// The folder of the snapshot.
        dir: PathBuf,
        /// The property that has changed.
        error: disk::Changed,
    },
}

impl SavedError {
    /// Whether the snapshot is at fault, and not the host, this process or a disk of the user's.
    pub fn is_of_snapshot(&self) -> bool {
        match self {
            Self::Snapshot(SnapshotError::Io { reason, .. }) => {
                !reason.raw_os_error().is_some_and(is_of_host)
            }
            Self::Host {
                error: LoadError::Kvm(error),
                ..
            } => !error.is_of_host(),
            Self::Snapshot(_) | Self::Host { .. } | Self::Content { .. } | Self::Device { .. } => {
                true
            }
            Self::Image(_) | Self::Disk { .. } => false,
        }
    }
}

/// A snapshot that has been read and checked, but for its memory.
pub struct Saved {
    pub(super) dir: PathBuf,
    snapshot: Snapshot,
    /// How the machine was built.
    pub shape: Shape,
    pub(super) vcpus: Vec<SavedVcpu>,
    pub(super) chips: SavedChips,
    pub(super) devices: Vec<SavedDevice>,
    /// The session with hull's init, if there is one.
    pub link: Option<SavedLink>,
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
    /// There is no snapshot, or it is damaged, of another version, or incomplete.
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
            () if !(1..=MAX_CPUS).contains(&saved.shape.machine.cpus) => {
                Err(saved.wrong("the number of vCPUs is not 1 to 32"))
            }
            () if loaded.is_some_and(|loaded| {
                upside_down(&loaded.kernel) || loaded.initrd.as_ref().is_some_and(upside_down)
            }) =>
            {
                Err(saved.wrong("its kernel or initial RAM disk ends before it begins"))
            }
            () if saved.vcpus.len() != usize::from(saved.shape.machine.cpus) => {
                Err(saved.wrong("it does not hold the state of every vCPU"))
            }
            () if bytes != saved.shape.machine.memory_bytes => {
                Err(saved.wrong("the size of the memory is not that of its machine"))
            }
            () => Ok(saved),
        }
    }

    /// Whether it is a template, whose guest waits for its first command.
    pub fn is_template(&self) -> bool {
        matches!(&self.link, Some(link) if link.session.is_none())
    }

    /// The owner of its files, if that is neither this user nor root.
    pub fn stranger(&self) -> Option<u32> {
        self.snapshot.stranger()
    }

    /// Read all of the memory and check it, which [`Saved::open`] does not.
    ///
    /// # Errors
    /// The memory is damaged.
    pub fn verify(&self) -> Result<(), SavedError> {
        Ok(self.snapshot.check_memory()?)
    }

    /// Map the memory; no page is read before it is touched.
    pub fn map_memory(&self) -> Result<GuestMemory, BackingError> {
        backing::map_file(self.snapshot.memory())
    }

    /// Copy the pages of `memory`, mapped by [`Saved::map_memory`], that the guest writes first.
    pub fn copy_written(&self, memory: &GuestMemory) {
        backing::copy(memory, self.snapshot.written());
    }

    /// Check that this host can run it, before vCPUs are created.
    pub fn fits(&self, vm: &Vm) -> Result<(), SavedError> {
        let host = |error| self.host(error);
        let past_kvm = self.shape.processor.as_ref();
        for vcpu in &self.vcpus {
            let shown = vcpu.features().map_err(host)?;
            vm.offers(&shown, past_kvm).map_err(host)?;
        }
        Ok(())
    }

    /// The error of a host that cannot load it.
    pub(super) fn host(&self, error: LoadError) -> SavedError {
        SavedError::Host {
            dir: self.dir.clone(),
            error,
        }
    }

    /// The error of a section with this fault.
    pub(super) fn wrong(&self, what: &str) -> SavedError {
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
    if bytes.len() > max_bytes(tag) {
        return Err(wrong(format!("section {name} has {} bytes", bytes.len())));
    }
    state::decode(bytes).map_err(|error| wrong(format!("section {name} {error}")))
}
