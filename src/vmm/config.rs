//! What [`super::run`] takes: the [`Machine`] that is wanted, what was opened for it, and what
//! observes it; and how a machine ends.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::snapshot::saved::Saved;
use super::story;
use crate::agent::{
    self, ALL_CAPABILITIES, Exec, Interface, Mount, MountKind, Privileges, WindowSize,
};
use crate::config::{Command, Machine, Root};
use crate::memory::image::Image;
use crate::profile::Profile;
use crate::trace::Trace;
use crate::{disk, share, symbols};

/// A machine and how it is run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The machine. A command in it is what hull's init runs; without one, the kernel's terminal is
    /// standard input and output.
    pub machine: Machine,
    /// Whether it boots or is restored.
    pub start: Start,
    /// The files that a booting machine is loaded with; empty for a restored one.
    pub images: Images,
    /// Key of the template with which the machine waits for a command in a pool.
    pub ready_with: Option<String>,
    /// Whether the vCPUs wait for a resume.
    pub paused: bool,
    /// Whether the guest finds only the console and the entropy device at boot, and the other devices
    /// when they are revealed.
    pub late_devices: bool,
    /// What observes the run.
    pub attachments: Attachments,
}

/// The open files that a kernel is booted from.
#[derive(Clone, Debug)]
pub struct Images {
    /// The kernel, in one of the formats of [`crate::boot`].
    pub kernel: Image,
    /// The parts of the initial RAM disk, loaded one after another.
    pub initrd: Vec<Image>,
    /// Words for the kernel command line: the user's, and before them those that the choice of
    /// root file system and init needs. They win over the defaults of the machine.
    pub cmdline: String,
    /// The kernel's symbols, if there are any.
    pub symbols: Option<symbols::Source>,
}

impl Default for Images {
    /// No files, for a machine that does not boot.
    fn default() -> Self {
        Self {
            kernel: Image::Bytes(Vec::new()),
            initrd: Vec::new(),
            cmdline: String::new(),
            symbols: None,
        }
    }
}

/// What observes a run without being part of the machine.
#[derive(Clone, Debug, Default)]
pub struct Attachments {
    /// Where samples of the vCPUs go.
    pub profile: Option<Arc<Profile>>,
    /// Where events are recorded, with the clock that [`super::run`] is given.
    pub trace: Option<Arc<Trace>>,
    /// What writes them while the machine runs.
    pub trace_writer: Option<TraceWriter>,
    /// What is called at each step of the boot.
    pub story: Option<story::Listener>,
    /// How many exits of each kind are described on standard error.
    pub explain_exits: Option<u32>,
    /// Where a byte is written when the command runs: a machine in the background has a keeper that waits
    /// for it.
    pub started: Option<Arc<OwnedFd>>,
    /// The process outside of the machine's jail or control group, if there is one.
    pub supervised: Option<Supervised>,
}

/// What a machine knows of its supervisor.
#[derive(Clone, Debug)]
pub struct Supervised {
    /// Its process id, in whose name the machine runs.
    pub pid: u32,
    /// The folders of the machine's control group.
    pub groups: Vec<PathBuf>,
}

/// What a thread of its own does until [`Trace::end`] of the attached trace.
#[derive(Clone)]
pub struct TraceWriter(pub Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for TraceWriter {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("TraceWriter")
    }
}

/// Where a machine begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// It boots: at the kernel's first instruction.
    Boot,
    /// It boots, and is saved in this folder as a template when hull's init waits for its command.
    Template(PathBuf),
    /// It continues from a snapshot.
    Saved(Arc<Saved>),
}

impl Start {
    /// The snapshot that is restored, if one is.
    pub fn saved(&self) -> Option<&Saved> {
        match self {
            Self::Saved(saved) => Some(saved),
            Self::Boot | Self::Template(_) => None,
        }
    }
}

impl Config {
    /// The machine that was saved.
    pub fn of_saved(saved: Arc<Saved>) -> Self {
        Self {
            machine: saved.shape.machine.clone(),
            late_devices: saved.shape.late_devices,
            start: Start::Saved(saved),
            images: Images::default(),
            ready_with: None,
            paused: false,
            attachments: Attachments::default(),
        }
    }
}

/// What hull's init runs in `machine`, if there is a command; on a terminal of `size` if it has one.
pub fn exec(machine: &Machine, networks: &[Interface], size: WindowSize) -> Option<Exec> {
    let command = machine.command.as_ref()?;
    let mount = |share: &share::Config| Mount {
        kind: MountKind::Share,
        tag: share.tag.clone(),
        path: share.guest_path.clone(),
        read_only: share.read_only,
    };
    let root = |disk: &disk::Config| Mount {
        kind: MountKind::Share,
        tag: "vda".into(),
        path: "/".into(),
        read_only: disk.read_only,
    };
    let root = machine
        .root_disk()
        .filter(|_| command.root.is_none())
        .map(root);
    let of_image = command
        .root
        .iter()
        .flat_map(|root| mounts_of_image(machine, root));
    let mut mounts: Vec<_> = machine
        .all()
        .map(mount)
        .chain(root)
        .chain(of_image)
        .collect();
    // Parents first: a mount at /a after /a/b would hide it.
    mounts.sort_by_key(|mount| mount.path.len());
    Some(Exec {
        argv: command.argv.clone(),
        env: command.env.clone(),
        cwd: command.cwd.clone(),
        user: command.user.clone(),
        tty: command.tty.unwrap_or(false).then_some(size),
        networks: networks.to_vec(),
        root: root_of_image(machine, command),
        privileges: Privileges {
            capabilities: command
                .root
                .as_ref()
                .map_or(ALL_CAPABILITIES, |it| it.capabilities),
            ..Privileges::default()
        },
        mounts,
        ..Exec::default()
    })
}

/// The name in /dev of the disk `id`: they are numbered in their order.
fn device(machine: &Machine, id: &str) -> Option<String> {
    let at = machine
        .all()
        .position(|disk: &disk::Config| disk.id() == id)?;
    let letter = u8::try_from(at).ok()?.checked_add(b'a')?;
    letter
        .is_ascii_lowercase()
        .then(|| format!("vd{}", char::from(letter)))
}

/// The image from which the command starts.
fn root_of_image(machine: &Machine, command: &Command) -> Option<agent::Root> {
    let root = command.root.as_ref()?;
    let upper = root.upper.as_ref().and_then(|id| device(machine, id));
    Some(agent::Root {
        read_only: root.read_only,
        disk: device(machine, &machine.root_disk()?.id())?,
        upper: upper.unwrap_or_default(),
        hostname: root.hostname.clone(),
        hosts: root.hosts.clone(),
        resolver: root.resolver.clone(),
    })
}

/// What is mounted in the image beside shares.
fn mounts_of_image(machine: &Machine, root: &Root) -> Vec<Mount> {
    let memory = root.memory.iter().map(|(path, options)| Mount {
        kind: MountKind::Memory,
        tag: options.clone(),
        path: path.clone(),
        read_only: false,
    });
    let disks = root.disks.iter().filter_map(|(id, path, read_only)| {
        Some(Mount {
            kind: MountKind::Disk,
            tag: device(machine, id)?,
            path: path.clone(),
            read_only: *read_only,
        })
    });
    memory.chain(disks).collect()
}

/// How a machine ended in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest powered off or rebooted.
    Off,
    /// The command ended with this status, 0 to 255.
    Exited(u8),
    /// A signal to hull ended it.
    Signalled(i32),
    /// The user left by Ctrl-A x.
    Quit,
    /// It ended, but standard output could not take all that the guest wrote.
    OutputLost,
}
