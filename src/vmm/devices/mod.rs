//! The virtio devices of a machine and their backends: one file for each kind, put into slots in order
//! by [`Devices::attach`].
//!
//! The event loop processes the queues of most devices ([`slots`]); a device whose backend is slow has
//! a thread ([`bell`]).

mod balloon;
mod bell;
mod console;
mod disk;
pub mod files;
mod net;
pub mod notify;
mod rng;
mod share;
pub mod slots;
pub mod vsock;

use super::config::Config;
use super::error::VmmError;
use super::pipe::Pipe;
use crate::config::{Console, Device, Vsock};
use crate::devices::virtio::requests::{self, Quiet, Worker};
use crate::devices::virtio::transport::SharedCore;
use crate::disk::{self as images, Disk, Origin};
use crate::net::{Mac, Network};
use crate::share::{Server, Share};
pub use balloon::{REPORTING_ORDER, reporting_order};
pub use net::assigned;
use slots::{AttachContext, LATE_SLOTS, Slots};

/// What serves the devices on the host, opened before the machine is created.
pub struct Backends {
    /// Open images, /dev/vda first.
    pub disks: Vec<Disk>,
    /// Shared folders, each with its process, in the order of their slots.
    pub shares: Vec<Server>,
    /// Open networks, eth0 first.
    pub networks: Vec<Network>,
    /// The sockets of the socket device, if there is one.
    pub sockets: Option<vsock::Sockets>,
}

impl Backends {
    /// Open disks, shares and sockets; the networks are already open, for the configuration of the guest's init.
    ///
    /// # Errors
    /// One of them cannot be opened.
    pub fn open(config: &Config, networks: Vec<Network>) -> Result<Self, VmmError> {
        let open = |config: &images::Config| {
            Disk::open(config).map_err(|error| VmmError::Disk {
                key: config.flag(),
                error,
            })
        };
        let disks = config.machine.all().map(open);
        let disks = disks.collect::<Result<_, _>>()?;
        let shares = config.machine.all().map(Share::open);
        let shares = shares.map(|share| {
            files::allow_many(); // its server inherits the limit
            Server::start(share?)
        });
        let shares = shares.collect::<Result<_, _>>()?;
        let vsock = config.machine.all::<Vsock>().next();
        let sockets = vsock.map(|config| vsock::Sockets::new(&config.socket));
        Ok(Self {
            disks,
            shares,
            networks,
            sockets: sockets.transpose()?,
        })
    }
}

/// The virtio devices that a machine has.
pub struct Devices {
    /// Threads of disks, networks, shares and sockets; dropped before the slots.
    workers: Vec<Worker>,
    pub slots: Slots,
    /// The pipe of the virtio console's terminal.
    pub terminal: Option<Pipe>,
    /// The pipe of the virtio console's port for the agent.
    pub agent: Option<Pipe>,
    pub balloon: Option<SharedCore>,
    /// Where the disks came from, /dev/vda first: a restore checks that they are the same.
    pub disks: Vec<Origin>,
    /// The networks' MAC addresses, eth0 first; a restored machine has the same, unless it is one of
    /// several copies.
    pub macs: Vec<Mac>,
}

impl Devices {
    /// Attach the devices that `config` asks for.
    ///
    /// # Errors
    /// There are too few slots or interrupt lines, no file descriptor or thread is left, or a backend
    /// does not come up.
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
        if wanted.devices.contains(&Device::Rng) {
            rng::attach(slots, context)?;
        }
        if config.late_devices {
            slots.hide_from_here();
        }
        let balloon = wanted.all().next();
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
        for (config, sockets) in wanted.all().zip(backends.sockets) {
            workers.push(vsock::attach(slots, context, config, sockets)?);
        }
        if config.late_devices {
            let kept = slots.hidden_from();
            slots.fill(context, kept + LATE_SLOTS)?;
        }
        Ok(Self {
            slots: all,
            terminal: pipes.next(),
            agent: pipes.next(),
            balloon,
            disks,
            macs,
            workers,
        })
    }

    /// Stop the threads of disks, networks, shares and sockets until the [`Quiet`] is dropped: they finish their
    /// requests regardless of rate limits, and write cached image data. The caller must have paused the
    /// vCPUs: requests that are added later are not seen.
    pub fn quiesce(&self) -> Quiet<'_> {
        requests::quiesce(&self.workers)
    }
}
