//! What can run a command: a process, containers, virtual machines.
//!
//! All of them run the same file: the busybox of hull's initial RAM disk, which a [`Stage`] unpacks. A
//! [`Subject`] knows how; what is measured, and how often, is its callers' business.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::compare::measure::timed::{self, Limits, RunError, Timed};
use crate::compare::measure::tree;

mod bwrap;
mod cloud_hypervisor;
mod custom;
mod engines;
mod firecracker;
pub mod guest;
mod hull;
mod kvmtool;
mod monitors;
mod process;
mod qemu;
mod runtimes;
pub mod second;
mod stage;

pub use monitors::CMDLINE;
pub use stage::{MEMORY_MIB, Stage, StageError};

/// On which side of the comparison a subject stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The host's own.
    Process,
    /// Processes in namespaces of the host's kernel.
    Container,
    /// A kernel of its own on a processor that is its own, virtually.
    Machine,
}

/// A file that a subject cannot do without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// "program", "kernel", "image".
    pub what: String,
    /// Where it is.
    pub path: PathBuf,
    /// Bytes on disk; of a folder, of all in it.
    pub bytes: u64,
}

/// Why a subject does not take part, and what can be done.
#[derive(Debug, Error)]
pub enum LeftOut {
    /// No such program on PATH.
    #[error("{program} is not on PATH")]
    Missing {
        /// Its name.
        program: String,
    },
    /// It is there, but does not do.
    #[error("{0}")]
    Unfit(String),
    /// What it starts from could not be made.
    #[error("cannot prepare it: {0}")]
    Prepare(#[from] io::Error),
}

/// One that runs commands. Callers [`prepare`](Self::prepare) it first, once; every
/// [`command`](Self::command) they start is waited for or killed before they [`clear`](Self::clear).
pub trait Subject {
    /// As in `--subjects`.
    fn name(&self) -> &str;

    /// Its side.
    fn kind(&self) -> Kind;

    /// Find its programs, and make what its runs start from.
    ///
    /// # Errors
    /// It cannot take part on this machine.
    fn prepare(&mut self) -> Result<(), LeftOut>;

    /// A command of the host that runs `words` in an instance of its own, named `id`: its standard output
    /// is theirs, and its status is 0 if theirs is. The first word is a path in the [`Stage`]'s root.
    ///
    /// # Errors
    /// Its files could not be written.
    fn command(&mut self, words: &[String], id: &str) -> io::Result<Command>;

    /// Whether `words` themselves ended with status 0, after their [`command`](Self::command) did: a monitor
    /// whose own status is that of the machine tells by its `output`, from which it is taken away.
    ///
    /// # Errors
    /// They did not, in words that "it" may stand before.
    fn judge(&self, _output: &mut Vec<u8>) -> Result<(), String> {
        Ok(())
    }

    /// All processes that an instance needs beside the host's kernel, given the process of its command.
    fn processes(&self, root: u32, _id: &str) -> Vec<u32> {
        tree::descendants(root)
    }

    /// End and remove what is left of instance `id`, if anything is; after its command was killed.
    fn clear(&mut self, _id: &str) {}

    /// The files that it needs on disk.
    fn parts(&self) -> Vec<Part>;

    /// What it says of itself when asked for its version.
    fn version(&self) -> Option<String>;

    /// What a reader has to know of how it is run.
    fn caveats(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Run `words` once to their end, in an instance named `id` of which nothing is left.
///
/// # Errors
/// As of [`timed::run`]; or `words` failed in a machine that did not.
pub fn run(
    subject: &mut dyn Subject,
    words: &[String],
    id: &str,
    limits: Limits,
) -> Result<Timed, RunError> {
    let command = subject.command(words, id).map_err(RunError::Start);
    let timed = command.and_then(|mut command| timed::run(&mut command, limits));
    subject.clear(id);
    let mut timed = timed?;
    subject.judge(&mut timed.output).map_err(RunError::Judged)?;
    if timed.output.is_empty() {
        // All that came was what was judged by.
        (timed.first_byte, timed.last_byte) = (None, None);
    }
    Ok(timed)
}

/// The names that [`by_name`] knows, in the order in which they are shown.
pub const NAMES: [&str; 12] = [
    "process",
    "bwrap",
    "runc",
    "crun",
    "docker",
    "podman",
    "hull-warm",
    "hull-cold",
    "firecracker",
    "cloud-hypervisor",
    "qemu-microvm",
    "kvmtool",
];

/// The subject of that name; with a path, its program is there and not on PATH, and a name of the user's
/// own is a program that runs the command it is given as arguments.
pub fn by_name<'a>(
    name: &str,
    path: Option<&Path>,
    stage: &'a Stage,
) -> Option<Box<dyn Subject + 'a>> {
    let program = |usual: &str| path.map_or_else(|| PathBuf::from(usual), Path::to_path_buf);
    Some(match (name, path) {
        ("process", None) => Box::new(process::Process::new(stage)),
        ("bwrap", _) => Box::new(bwrap::Bwrap::new(stage, program("bwrap"))),
        ("runc" | "crun", _) => Box::new(runtimes::Runtime::new(stage, name, program(name))),
        ("docker" | "podman", _) => Box::new(engines::Engine::new(stage, name, program(name))),
        ("hull-warm" | "hull-cold", None) => Box::new(hull::Hull::new(stage, name)),
        ("hull", Some(path)) => Box::new(monitors::Monitored::new(stage, hull::Bare, Some(path))),
        ("firecracker", _) => {
            let monitor = firecracker::Firecracker::default();
            Box::new(monitors::Monitored::new(stage, monitor, path))
        }
        ("cloud-hypervisor", _) => {
            let monitor = cloud_hypervisor::CloudHypervisor;
            Box::new(monitors::Monitored::new(stage, monitor, path))
        }
        ("qemu-microvm", _) => Box::new(monitors::Monitored::new(stage, qemu::Qemu, path)),
        ("kvmtool", _) => Box::new(monitors::Monitored::new(stage, kvmtool::Kvmtool, path)),
        (name, Some(path)) if !NAMES.contains(&name) => Box::new(custom::Custom::new(name, path)),
        _ => return None,
    })
}

/// Where `program` is: itself if it is a path, else the first file of that name on PATH that can be
/// executed.
fn find(program: &Path) -> Result<PathBuf, LeftOut> {
    let executable = |path: &Path| {
        let allowed = rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
        path.is_file() && allowed
    };
    let found = match program.components().count() {
        1 => {
            let paths = std::env::var_os("PATH").unwrap_or_default();
            let mut paths = std::env::split_paths(&paths).map(|folder| folder.join(program));
            paths.find(|path| executable(path))
        }
        _ => executable(program).then(|| program.to_path_buf()),
    };
    found.ok_or_else(|| LeftOut::Missing {
        program: program.display().to_string(),
    })
}

/// A part of one file or folder.
fn part(what: &str, path: &Path) -> Part {
    fn bytes(path: &Path) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let Ok(file) = std::fs::symlink_metadata(path) else {
            return 0;
        };
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        match file.is_dir() {
            true => entries.map(|entry| bytes(&entry.path())).sum(),
            false => file.blocks() * 512,
        }
    }
    let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    Part {
        what: what.into(),
        bytes: bytes(&real),
        path: real,
    }
}

/// The first line that `program` prints when it is asked with `flag`.
pub fn first_line(program: &Path, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.chars().filter(|c| !c.is_control()).take(80).collect())
}
