//! The virtio devices of a machine and their host ends: one file a kind, put into windows one after
//! the other by [`Devices::attach`].
//!
//! The event loop processes the queues of most ([`windows`]); a device that waits for something
//! slow has a thread ([`bell`]).

mod balloon;
mod bell;
mod console;
mod disk;
mod files;
mod net;
mod rng;
mod share;
pub mod vsock;
pub mod windows;

use super::pipe::Pipe;
use super::{Config, Console, Terminal, VmmError};
use crate::devices::virtio::requests::{self, Quiet, Worker};
use crate::disk::{self as images, Disk, Origin};
use crate::net::{Mac, Network};
use crate::share::Share;
pub use balloon::{REPORTING_ORDER, reporting_order};
pub use net::assigned;
use windows::{Board, LATE_WINDOWS, Window, Windows};

/// What of the host is behind devices, opened before anything else is done.
pub struct Backs {
    /// Disks, /dev/vda first.
    pub disks: Vec<Disk>,
    /// Folders.
    pub shares: Vec<Share>,
    /// Networks, eth0 first.
    pub networks: Vec<Network>,
}

impl Backs {
    /// Open disks and shares; networks are open, since the guest's init is told of them.
    ///
    /// # Errors
    /// One of them cannot be had.
    pub fn open(config: &Config, networks: Vec<Network>) -> Result<Self, VmmError> {
        let open = |config: &images::Config| {
            Disk::open(config).map_err(|error| VmmError::Disk {
                flag: config.flag.clone(),
                error,
            })
        };
        let disks = config.disks.iter().map(open).collect::<Result<_, _>>()?;
        let shares = config
            .shares
            .iter()
            .map(Share::open)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            disks,
            shares,
            networks,
        })
    }
}

/// The devices.
pub struct Devices {
    /// Threads of disks, networks and shares. Before the windows: they go first.
    workers: Vec<Worker>,
    /// All of them.
    pub windows: Windows,
    /// The virtio console's terminal.
    pub terminal: Option<Pipe>,
    /// The virtio console's port for the agent.
    pub agent: Option<Pipe>,
    /// The memory balloon.
    pub balloon: Option<Window>,
    /// The socket device's end on the host.
    pub vsock: Option<vsock::Link>,
    /// What the disks are, /dev/vda first: a snapshot has to know them again.
    pub disks: Vec<Origin>,
    /// The networks' addresses, eth0's first: those of a restored machine are the same, unless it
    /// is one of several.
    pub macs: Vec<Mac>,
}

impl Devices {
    /// Put on `board` what `config` asks for.
    ///
    /// # Errors
    /// More than there are windows or interrupt lines for, or no descriptor or thread is left, or
    /// a host end does not come up.
    pub fn attach(config: &Config, board: &mut Board, backs: Backs) -> Result<Self, VmmError> {
        let mut all = Windows::new()?;
        let windows = &mut all;
        let with_agent = matches!(config.console, Console::Agent { .. });
        let mut pipes = Vec::new();
        if with_agent || config.terminal == Terminal::Virtio {
            pipes = console::attach(windows, board, with_agent)?;
        }
        let mut pipes = pipes.into_iter();
        if config.rng {
            rng::attach(windows, board)?;
        }
        if config.late_devices {
            windows.hide_from_here();
        }
        let balloon = config.balloon.as_ref();
        let balloon = balloon.map(|config| balloon::attach(windows, board, config));
        let balloon = balloon.transpose()?;
        let mut workers = Vec::new();
        let disks = backs.disks.iter().map(Disk::origin).collect();
        let networks = backs.networks.iter();
        let macs = networks.map(|network| network.properties.mac).collect();
        for disk in backs.disks {
            workers.push(disk::attach(windows, board, disk)?);
        }
        for network in backs.networks {
            workers.push(net::attach(windows, board, network)?);
        }
        for share in backs.shares {
            workers.push(share::attach(windows, board, share)?);
        }
        let vsock = config.vsock.as_ref();
        let vsock = vsock.map(|config| vsock::attach(windows, board, config));
        let vsock = vsock.transpose()?;
        if config.late_devices {
            let kept = windows.hidden_from();
            windows.fill(board, kept + LATE_WINDOWS)?;
        }
        Ok(Self {
            vsock,
            windows: all,
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
