//! Saves a machine while it is stopped: everything but the bytes on their way through hull itself.
//!
//! This runs on the thread of the event loop, which owns consoles, sockets and the session with
//! hull's init. [`Still`] stops all others: first the vCPUs, then the threads of disks, networks and
//! shares, which finish their requests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;

use super::shape::{AGENT, CHIPS, DEVICES, SHAPE, SavedDevice, SavedLink, Shape, VCPUS, max_bytes};
use crate::config::{Device, Kernel};
use crate::control::SaveReport;
use crate::devices::bus::Bus;
use crate::devices::state::{self, StateError};
use crate::devices::virtio::requests::Quiet;
use crate::disk::Origin;
use crate::kvm::KvmError;
use crate::kvm::features::Features;
use crate::kvm::save::SavedVcpu;
use crate::memory::pages::Pages;
use crate::snapshot::{Id, SnapshotError, Writer};
use crate::sync::lock;
use crate::vmm::config::Config;
use crate::vmm::life::NotAllowed;
use crate::vmm::machine::Machine;
use crate::vmm::vcpus::{Pause, Vcpus};

/// How long a guest whose init has reported that it waits may take until its vCPUs halt.
const IDLE_TIMEOUT: Duration = Duration::from_millis(500);
/// Delay between two checks for halted vCPUs.
const IDLE_POLL: Duration = Duration::from_micros(200);

/// Why a machine was not saved.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The files cannot be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// KVM does not return the state.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A device cannot be saved.
    #[error("{device} {error}")]
    Device {
        /// The device's name in messages.
        device: String,
        /// What the device reports.
        error: StateError,
    },
    /// A disk cannot be identified.
    #[error(transparent)]
    Disk(#[from] crate::disk::DiskError),
    /// The machine is ending, for example.
    #[error(transparent)]
    State(#[from] NotAllowed),
    /// There is nothing that can be saved, for this reason.
    #[error("{0}")]
    Unfit(String),
}

/// Which part of the machine's memory is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// All touched pages; not synced to disk, since a lost template is made again.
    Template,
    /// All touched pages; changes are logged from then on.
    Whole,
    /// The pages that have changed since this snapshot.
    ChangesSince(Id),
}

impl What {
    /// A whole snapshot, or with `diff` the changes since `last`.
    ///
    /// # Errors
    /// There is no last snapshot.
    pub fn new(diff: bool, last: Option<Id>) -> Result<Self, SaveError> {
        match (diff, last) {
            (false, _) => Ok(Self::Whole),
            (true, Some(last)) => Ok(Self::ChangesSince(last)),
            (true, None) => Err(SaveError::Unfit(
                "there is no snapshot of this run that it could be a difference to; take a \
                 whole one first"
                    .into(),
            )),
        }
    }
}

/// While it exists, no thread of the machine runs but the caller's.
pub struct Still<'a> {
    quiet: Quiet<'a>,
    pause: Pause,
    since: Instant,
}

impl<'a> Still<'a> {
    /// Stop the machine: returns when all vCPUs have parked and the devices' threads are idle.
    pub fn new(machine: &'a Machine, vcpus: &Arc<Vcpus>) -> Self {
        let since = Instant::now();
        let pause = vcpus.pause();
        // The devices must see the last accesses of the vCPUs.
        (0..pause.count())
            .filter_map(|index| pause.vcpu(index))
            .for_each(|mut vcpu| vcpu.complete());
        Self {
            quiet: machine.devices.quiesce(),
            pause,
            since,
        }
    }

    /// As [`Still::new`], once every vCPU waits for an interrupt, or after `IDLE_TIMEOUT`.
    /// `meanwhile` is called between two checks.
    pub fn when_idle(
        machine: &'a Machine,
        vcpus: &Arc<Vcpus>,
        mut meanwhile: impl FnMut(),
    ) -> Self {
        let until = Instant::now() + IDLE_TIMEOUT;
        loop {
            let still = Self::new(machine, vcpus);
            let pause = &still.pause;
            let mut vcpus = (0..pause.count()).filter_map(|index| pause.vcpu(index));
            let idle = vcpus.all(|mut vcpu| vcpu.is_halted());
            drop(vcpus);
            if idle || Instant::now() > until {
                return still;
            }
            drop(still);
            meanwhile();
            thread::sleep(IDLE_POLL);
        }
    }

    fn vcpus(&self, msrs: &[u32]) -> Result<Vec<SavedVcpu>, KvmError> {
        let vcpus = (0..self.pause.count()).filter_map(|index| self.pause.vcpu(index));
        vcpus.map(|mut vcpu| vcpu.save(msrs)).collect()
    }

    /// Save the machine with `writer`. `link` is the session with its init.
    ///
    /// # Errors
    /// [`SaveError`]; then it is no snapshot.
    pub fn save(
        &self,
        machine: &Machine,
        config: &Config,
        link: Option<SavedLink>,
        mut writer: Writer,
        what: What,
    ) -> Result<(Id, SaveReport), SaveError> {
        if let Some(fault) = self.quiet.faults.first() {
            return Err(SaveError::Unfit(fault.to_string()));
        }
        let vcpus = self.vcpus(&machine.vm.msrs()?)?;
        let chips = machine.vm.save_chips()?;
        let mut devices = Vec::new();
        save_devices(&machine.shared.buses.ports, true, &mut devices)?;
        save_devices(&machine.shared.buses.mmio, false, &mut devices)?;
        let begun = link.as_ref().is_none_or(|link| link.session.is_some());
        let shape = shape(machine, config, begun)?;
        section(&mut writer, SHAPE, &shape)?;
        section(&mut writer, VCPUS, &vcpus)?;
        section(&mut writer, CHIPS, &chips)?;
        section(&mut writer, DEVICES, &devices)?;
        section(&mut writer, AGENT, &link)?;
        save_memory(&mut writer, machine, what)?;
        let memory_bytes = writer.memory_bytes();
        let dir = writer.dir().to_path_buf();
        let id = writer.commit()?;
        let saved = SaveReport {
            memory_bytes,
            stood_still_us: self.since.elapsed().as_micros() as u64,
        };
        let kind = if what == What::Template {
            "a template"
        } else {
            "a snapshot"
        };
        log::info!(
            "saved as {kind} in {}: {memory_bytes} bytes of memory",
            dir.display()
        );
        Ok((id, saved))
    }
}

fn save_memory(writer: &mut Writer, machine: &Machine, what: What) -> Result<(), SaveError> {
    let memory = machine.vm.memory();
    let pagemap = machine.own.pagemap.as_ref();
    let (pages, base) = match what {
        What::Template => (Pages::touched(memory, pagemap), None),
        What::Whole => {
            machine.vm.track_dirty()?;
            machine.vm.take_dirty()?;
            (Pages::touched(memory, pagemap), None)
        }
        What::ChangesSince(base) => (machine.vm.take_dirty()?, Some(base)),
    };
    Ok(writer.memory(memory, &pages, base)?)
}

fn section(writer: &mut Writer, tag: [u8; 4], content: &impl Serialize) -> Result<(), SaveError> {
    let bytes = state::encode(content).map_err(|error| SaveError::Unfit(error.to_string()))?;
    if bytes.len() > max_bytes(tag) {
        let (name, len) = (String::from_utf8_lossy(&tag), bytes.len());
        return Err(SaveError::Unfit(format!(
            "the state of this machine is too large for a snapshot (section {name}: {len} bytes)"
        )));
    }
    writer.section(tag, bytes);
    Ok(())
}

/// Save the devices of a bus that have a state. A hidden slot has none; its name would reveal in a
/// template what the user has attached.
fn save_devices(bus: &Bus, port: bool, to: &mut Vec<SavedDevice>) -> Result<(), SaveError> {
    for (base, _, name, device) in bus.devices() {
        let state = lock(device).save().map_err(|error| SaveError::Device {
            device: name.into(),
            error,
        })?;
        if !state.is_empty() {
            to.push(SavedDevice {
                port,
                base,
                name: name.into(),
                state,
            });
        }
    }
    Ok(())
}

/// The shape; with the devices only if the guest has `begun` to use them, since any later run may use a
/// template.
fn shape(machine: &Machine, config: &Config, begun: bool) -> Result<Shape, SaveError> {
    let devices = &machine.devices;
    let mut shape = Shape {
        version: env!("CARGO_PKG_VERSION").into(),
        machine: config.machine.before_command(),
        late_devices: config.late_devices,
        revealed: begun,
        disks: Vec::new(),
        loaded: machine.loaded.clone(),
        added_words: machine.added_words.clone(),
        processor: (!machine.added_words.is_empty()).then(Features::of_host),
    };
    if !begun {
        return Ok(shape);
    }
    shape.machine = config.machine.clone();
    let wanted = &mut shape.machine;
    let from_root = |path: &mut PathBuf| from_root(path, machine.own.folder.as_deref());
    wanted.initrd.iter_mut().for_each(from_root);
    if let Kernel::File(path) = &mut wanted.kernel {
        from_root(path);
    }
    let mut macs = devices.macs.iter();
    for device in &mut wanted.devices {
        device.files_mut().into_iter().for_each(from_root);
        if let Device::Net(net) = device {
            net.mac = macs.next().copied();
        }
    }
    let identities = devices.disks.iter().map(Origin::identity);
    shape.disks = identities.collect::<Result<_, _>>()?;
    Ok(shape)
}

/// Make a path absolute, from this process's working `folder`: the restoring process may be in another one.
fn from_root(path: &mut PathBuf, folder: Option<&Path>) {
    if let Some(folder) = folder
        && let Ok(absolute) = std::path::absolute(folder.join(&*path))
    {
        *path = absolute;
    }
}
