//! The virtio devices of a machine and their host ends: one file a kind, put into slots one after
//! the other by [`Devices::attach`].
//!
//! The event loop processes the queues of most ([`slots`]); a device that waits for something
//! slow has a thread ([`bell`]).

mod balloon;
mod bell;
mod console;
mod disk;
mod files;
mod net;
mod rng;
mod share;
pub mod slots;
pub mod vsock;

use super::config::Config;
use super::error::VmmError;
use super::pipe::Pipe;
use crate::config::Console;
use crate::devices::virtio::requests::{self, Quiet, Worker};
use crate::devices::virtio::transport::SharedCore;
use crate::disk::{self as images, Disk, Origin};
use crate::net::{Mac, Network};
use crate::share::Share;
pub use balloon::{REPORTING_ORDER, reporting_order};
pub use net::assigned;
use slots::{AttachContext, LATE_SLOTS, Slots};

/// What of the host is behind devices, opened before anything else is done.
pub struct Backends {
    /// Disks, /dev/vda first.
    pub disks: Vec<Disk>,
    /// Folders.
    pub shares: Vec<Share>,
    /// Networks, eth0 first.
    pub networks: Vec<Network>,
}

impl Backends {
    /// Open disks and shares; networks are open, since the guest's init is told of them.
    ///
    /// # Errors
    /// One of them cannot be had.
    pub fn open(config: &Config, networks: Vec<Network>) -> Result<Self, VmmError> {
        let open = |config: &images::Config| {
            Disk::open(config).map_err(|error| VmmError::Disk {
                key: config.flag(),
                error,
            })
        };
        let disks = config.machine.disks().map(open);
        let disks = disks.collect::<Result<_, _>>()?;
        let shares = config.machine.shares().map(Share::open);
        let shares = shares.collect::<Result<_, _>>()?;
        Ok(Self {
            disks,
            shares,
            networks,
        })
    }
}

/// The devices.
pub struct Devices {
    /// Threads of disks, networks and shares. Before the slots: they go first.
    workers: Vec<Worker>,
    /// All of them.
    pub slots: Slots,
    /// The virtio console's terminal.
    pub terminal: Option<Pipe>,
    /// The virtio console's port for the agent.
    pub agent: Option<Pipe>,
    /// The memory balloon.
    pub balloon: Option<SharedCore>,
    /// The socket device's end on the host.
    pub vsock: Option<vsock::Link>,
    /// What the disks are, /dev/vda first: a snapshot has to know them again.
    pub disks: Vec<Origin>,
    /// The networks' addresses, eth0's first: those of a restored machine are the same, unless it
    /// is one of several.
    pub macs: Vec<Mac>,
}

impl Devices {
    /// Put on `context` what `config` asks for.
    ///
    /// # Errors
    /// More than there are slots or interrupt lines for, or no descriptor or thread is left, or
    /// a host end does not come up.
    pub fn attach(
        config: &Config,
        context: &mut AttachContext,
        backends: Backends,
    ) -> Result<Self, VmmError> {
        let mut all = Slots::new()?;
        let slots = &mut all;
        let wanted = &config.machine;
        let with_agent = wanted.command.is_some();
        let mut pipes = Vec::new();
        if with_agent || wanted.console == Console::Virtio {
            pipes = console::attach(slots, context, with_agent)?;
        }
        let mut pipes = pipes.into_iter();
        if wanted.has_rng() {
            rng::attach(slots, context)?;
        }
        if config.late_devices {
            slots.hide_from_here();
        }
        let balloon = wanted.balloon();
        let balloon = balloon.map(|config| balloon::attach(slots, context, config));
        let balloon = balloon.transpose()?;
        let mut workers = Vec::new();
        let disks = backends.disks.iter().map(Disk::origin).collect();
        let networks = backends.networks.iter();
        let macs = networks.map(|network| network.properties.mac).collect();
        for disk in backends.disks {
            workers.push(disk::attach(slots, context, disk)?);
        }
        for network in backends.networks {
            workers.push(net::attach(slots, context, network)?);
        }
        for share in backends.shares {
            workers.push(share::attach(slots, context, share)?);
        }
        let vsock = wanted.vsock();
        let vsock = vsock.map(|config| vsock::attach(slots, context, config));
        let vsock = vsock.transpose()?;
        if config.late_devices {
            let kept = slots.hidden_from();
            slots.fill(context, kept + LATE_SLOTS)?;
        }
        Ok(Self {
            vsock,
            slots: all,
            terminal: pipes.next(),
            agent: pipes.next(),
            balloon,
            disks,
            macs,
            workers,
        })
    }

    /// Have the threads of disks, networks and shares finish what they were given, whatever rate
    /// they may have, write out what hull holds of images, and stand still until the [`Quiet`] is
    /// dropped. The vCPUs are to be paused before: what they add is not looked at.
    pub fn quiesce(&self) -> Quiet<'_> {
        requests::quiesce(&self.workers)
    }
}
