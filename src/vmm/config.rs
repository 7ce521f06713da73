//! What a machine is made of and what it runs, as [`super::run`] takes it; and how it ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::devices::vsock;
use super::fault::Faults;
use super::snapshot::saved::Saved;
use super::story;
use crate::agent::{Exec, Interface};
use crate::boot::Via;
use crate::memory::image::Image;
use crate::profile::Profile;
use crate::share::Config as ShareConfig;
use crate::trace::Trace;
use crate::{disk, net, symbols};

/// What to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it begins.
    pub start: Start,
    /// What the machine is called; its process id if `None`.
    pub name: Option<String>,
    /// The template with which the machine waits for a command, in a pool.
    pub ready_with: Option<String>,
    /// The kernel.
    pub kernel: Image,
    /// The initial RAM disk's parts, loaded one behind the other.
    pub initrd: Vec<Image>,
    /// The user's words for the kernel command line.
    pub cmdline: String,
    /// Which way into the kernel.
    pub via: Via,
    /// The vCPUs stand still until somebody lets them run.
    pub paused: bool,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// vCPUs, 1 to [`crate::memory::layout::MAX_CPUS`].
    pub cpus: u8,
    /// Disks, /dev/vda first.
    pub disks: Vec<disk::Config>,
    /// Networks, eth0 first.
    pub nets: Vec<net::Config>,
    /// Folders of the host that the guest can mount.
    pub shares: Vec<ShareConfig>,
    /// Whether there is an entropy device.
    pub rng: bool,
    /// Whether the guest finds only console and entropy device at boot, and the other devices when
    /// it is told of them.
    pub late_devices: bool,
    /// The memory balloon, if there is to be one.
    pub balloon: Option<Balloon>,
    /// Where the user talks to the guest.
    pub console: Console,
    /// What the kernel's messages and terminal are on, unless the command line says otherwise.
    pub terminal: Terminal,
    /// Names of the kernel's addresses, if it has any.
    pub symbols: Option<symbols::Source>,
    /// Where samples of the vCPUs go, if they are wanted.
    pub profile: Option<Arc<Profile>>,
    /// The socket device, if there is to be one.
    pub vsock: Option<vsock::Config>,
    /// Where to record what happens, with the clock that [`super::run`] is given.
    pub trace: Option<Arc<Trace>>,
    /// Who is told of each step of the boot.
    pub story: Option<story::Listener>,
    /// How many exits of each kind to tell of on standard error.
    pub explain_exits: Option<u32>,
    /// What is wrong with the machine on purpose.
    pub faults: Faults,
}

/// Where a machine begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// At the kernel's first instruction.
    Boot,
    /// There, and when hull's init waits for its command the machine is saved in this folder, to be
    /// a template.
    Template(PathBuf),
    /// Where another was saved.
    Saved(Arc<Saved>),
}

impl Start {
    /// The machine that goes on, if one does.
    pub fn saved(&self) -> Option<&Saved> {
        match self {
            Self::Saved(saved) => Some(saved),
            Self::Boot | Self::Template(_) => None,
        }
    }
}

impl Config {
    /// What hull's init is to run, if there is one.
    pub(super) fn exec(&self, networks: &[Interface]) -> Option<Exec> {
        match &self.console {
            Console::Kernel => None,
            Console::Agent { exec, .. } => Some(Exec {
                networks: networks.to_vec(),
                ..exec.clone()
            }),
        }
    }

    /// The machine that was `saved`, with another `console`.
    pub fn of_saved(saved: &Saved, console: Console) -> Self {
        let shape = &saved.shape;
        Self {
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
            ..Self::nothing(console)
        }
    }

    /// A machine with nothing in it.
    fn nothing(console: Console) -> Self {
        Self {
            start: Start::Boot,
            name: None,
            ready_with: None,
            kernel: Image::Bytes(Vec::new()),
            initrd: Vec::new(),
            cmdline: String::new(),
            via: Via::Auto,
            memory_bytes: 0,
            cpus: 1,
            paused: false,
            late_devices: false,
            disks: Vec::new(),
            nets: Vec::new(),
            shares: Vec::new(),
            rng: false,
            balloon: None,
            console,
            terminal: Terminal::Serial,
            symbols: None,
            profile: None,
            vsock: None,
            trace: None,
            story: None,
            explain_exits: None,
            faults: Faults::default(),
        }
    }
}

/// Where the user talks to the guest.
#[derive(Clone, Debug)]
pub enum Console {
    /// The kernel's terminal is standard input and output.
    Kernel,
    /// hull's init runs a command, whose streams are hull's.
    Agent {
        /// The command.
        exec: Exec,
        /// Whether the kernel's messages go to standard error.
        kernel_log: bool,
    },
}

/// A memory balloon as the user asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// Bytes of guest memory that the guest is to do without.
    pub target_bytes: u64,
    /// How often the guest tells of its memory; `None`: once.
    pub period: Option<Duration>,
}

/// What a guest kernel's console is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Terminal {
    /// COM1, which every kernel has a driver for: some exits a character.
    Serial,
    /// hvc0 of the virtio console: one exit a line.
    Virtio,
}

/// How a machine ended that ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest powered off or rebooted.
    Off,
    /// The command ended with this status, 0 to 255.
    Exited(u8),
    /// This signal to hull ended it.
    Signalled(i32),
    /// The user left by Ctrl-A x.
    Quit,
}
