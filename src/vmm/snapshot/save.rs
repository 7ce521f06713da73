//! Saves a machine while it stands still: everything but what is on its way through hull itself.
//!
//! On the thread of the event loop, to which consoles, sockets and the session with hull's init
//! belong. [`Still`] holds all others: vCPUs at the gate, then the threads of disks, networks and
//! shares, which finish what the vCPUs have asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;

use super::shape::{AGENT, CHIPS, DEVICES, SHAPE, SavedDevice, SavedLink, Shape, VCPUS};
use crate::config::{Device, Kernel};
use crate::control::Saved;
use crate::devices::bus::Bus;
use crate::devices::state::{self, StateError};
use crate::devices::virtio::requests::Quiet;
use crate::disk::{self, Origin};
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

/// How long a guest that has just said that it waits may take until it does.
const IDLE_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two looks.
const LOOK: Duration = Duration::from_micros(200);

/// A machine was not saved.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The files.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A device.
    #[error("{device} {error}")]
    Device {
        /// What messages call it.
        device: String,
        /// Why it cannot be saved.
        error: StateError,
    },
    /// A disk.
    #[error(transparent)]
    Disk(#[from] crate::disk::DiskError),
    /// The machine is ending, for example.
    #[error(transparent)]
    State(#[from] NotAllowed),
    /// Something that is not to be saved.
    #[error("{0}")]
    Unfit(String),
}

/// What of the machine's memory is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// All that was touched; what is lost with the host's power is made again.
    Template,
    /// All that was touched, and from then on changes are logged.
    Whole,
    /// What has changed since this snapshot.
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
                 whole one first, without --diff"
                    .into(),
            )),
        }
    }
}

/// While it lives, nothing of the machine moves but the caller.
pub struct Still<'a> {
    quiet: Quiet<'a>,
    pause: Pause,
    since: Instant,
}

impl<'a> Still<'a> {
    /// As soon as the vCPUs have parked and the devices' threads are done.
    pub fn new(machine: &'a Machine, vcpus: &Arc<Vcpus>) -> Self {
        let since = Instant::now();
        let pause = vcpus.pause();
        // Their last accesses reach the devices now.
        (0..pause.count())
            .filter_map(|index| pause.vcpu(index))
            .for_each(|mut vcpu| vcpu.complete());
        Self {
            quiet: machine.devices.quiesce(),
            pause,
            since,
        }
    }

    /// As [`Still::new`], when every vCPU waits for an interrupt, or after some patience.
    /// `meanwhile` is called while they do not yet.
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
            thread::sleep(LOOK);
        }
    }

    fn vcpus(&self, msrs: &[u32]) -> Result<Vec<SavedVcpu>, KvmError> {
        let vcpus = (0..self.pause.count()).filter_map(|index| self.pause.vcpu(index));
        vcpus.map(|mut vcpu| vcpu.save(msrs)).collect()
    }

    /// Save the machine. `link` is the session with its init.
    ///
    /// # Errors
    /// [`SaveError`]; nothing is left then, and an older snapshot at the same place is whole.
    pub fn save(
        &self,
        machine: &Machine,
        config: &Config,
        link: Option<SavedLink>,
        dir: &Path,
        what: What,
    ) -> Result<(Id, Saved), SaveError> {
        if let Some(fault) = self.quiet.faults.first() {
            return Err(SaveError::Unfit(fault.to_string()));
        }
        let mut writer = Writer::create(dir, what != What::Template)?;
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
        let memory = machine.vm.memory();
        let pages = match what {
            What::Template => Pages::touched(memory),
            What::Whole => {
                machine.vm.track_dirty()?;
                machine.vm.take_dirty()?;
                Pages::touched(memory)
            }
            What::ChangesSince(_) => machine.vm.take_dirty()?,
        };
        let base = match what {
            What::ChangesSince(base) => Some(base),
            What::Template | What::Whole => None,
        };
        writer.memory(memory, &pages, base)?;
        let memory_bytes = writer.memory_bytes();
        let id = writer.commit()?;
        let saved = Saved {
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

fn section(writer: &mut Writer, tag: [u8; 4], content: &impl Serialize) -> Result<(), SaveError> {
    let bytes = state::encode(content).map_err(|error| SaveError::Unfit(error.to_string()))?;
    writer.section(tag, bytes);
    Ok(())
}

/// Those that have something to save. A slot that the guest has not been shown has not, and its name
/// is what the user wants there, which a template must not tell.
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

/// Of the machine with its devices, if its guest has `begun` to know them: any later run may use a
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
    wanted.initrd.iter_mut().for_each(from_root);
    if let Kernel::File(path) = &mut wanted.kernel {
        from_root(path);
    }
    let mut macs = devices.macs.iter();
    for device in &mut wanted.devices {
        match device {
            Device::Disk(disk) => {
                if let disk::Source::Image(path) = &mut disk.source {
                    from_root(path);
                }
                disk.backing.iter_mut().for_each(from_root);
            }
            Device::Net(net) => net.mac = macs.next().copied(),
            Device::Share(share) => from_root(&mut share.folder),
            Device::Vsock(_) | Device::Balloon(_) | Device::Rng => {}
        }
    }
    let identities = devices.disks.iter().map(Origin::identity);
    shape.disks = identities.collect::<Result<_, _>>()?;
    Ok(shape)
}

/// Who goes on may be in another folder.
fn from_root(path: &mut PathBuf) {
    if let Ok(absolute) = std::path::absolute(&*path) {
        *path = absolute;
    }
}
