//! The subjects: what runs a command, as a process, in a container, in a virtual machine.
//!
//! All subjects run the same file, the busybox of hull's initial RAM disk, which a [`Stage`] unpacks. Each
//! file here configures one subject. `contract` says what a subject must do; `monitor` is the common part
//! of the virtual machine monitors, which boot the [`guest`].

use std::path::{Path, PathBuf};

mod bwrap;
mod choice;
mod cloud_hypervisor;
mod contract;
mod custom;
mod engine;
pub(crate) mod firecracker;
pub mod guest;
pub(crate) mod hull;
mod kvmtool;
pub(crate) mod monitor;
mod process;
mod program;
mod qemu;
mod runtime;
pub(crate) mod second;
mod stage;

pub(crate) use choice::{Choice, ChoiceError};
pub use contract::{About, Kind, Subject, run};
pub(crate) use contract::{IDLE, UP, start, words};
pub(crate) use program::first_line;
pub use program::{LeftOut, Part};
pub use stage::Stage;
pub(crate) use stage::{MEMORY_MIB, StageError};

use monitor::{Monitor, Monitored};

/// The names that `--subjects` knows, in the order of the report.
pub(crate) const NAMES: [&str; 12] = [
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

/// The subject `name`, which is in `NAMES` or "hull". Its program is found on PATH, or is at `path`. With a
/// path, any other name is a program of the user that runs the command in its arguments.
pub fn by_name<'a>(
    name: &str,
    path: Option<&Path>,
    stage: &'a Stage,
) -> Option<Box<dyn Subject + 'a>> {
    let program = || path.map_or_else(|| PathBuf::from(name), Path::to_path_buf);
    if let Some(monitor) = monitor(name)
        && (name != "hull" || path.is_some())
    {
        return Some(Box::new(Monitored::new(stage, monitor, path)));
    }
    Some(match (name, path) {
        ("process", None) => Box::new(process::Process::new(stage)),
        ("bwrap", _) => Box::new(bwrap::Bwrap::new(stage, program())),
        ("runc" | "crun", _) => Box::new(runtime::Runtime::new(stage, name, program())),
        ("docker" | "podman", _) => Box::new(engine::Engine::new(stage, name, program())),
        ("hull-warm" | "hull-cold", None) => Box::new(hull::Hull::new(stage, name)),
        (name, Some(_)) if !NAMES.contains(&name) => {
            Box::new(custom::Custom::new(stage, name, program()))
        }
        _ => return None,
    })
}

/// Parses subjects that a user gives as `NAME` or `NAME=PATH`; without words, all of [`NAMES`].
///
/// # Errors
/// See [`ChoiceError`].
pub(crate) fn choices(words: &[String]) -> Result<Vec<Choice>, ChoiceError> {
    if words.is_empty() {
        return choice::parse(&NAMES.map(String::from), &NAMES);
    }
    choice::parse(words, &NAMES)
}

/// A subject with the name that the user chose it by.
pub(crate) type Named<'a> = (String, Box<dyn Subject + 'a>);

/// The subject of each choice.
///
/// # Errors
/// A choice has a path, and the subject takes none.
pub(crate) fn chosen<'a>(
    choices: &[Choice],
    stage: &'a Stage,
) -> Result<Vec<Named<'a>>, ChoiceError> {
    let subject = |Choice { name, path }: &Choice| {
        let subject = by_name(name, path.as_deref(), stage);
        let subject = subject.ok_or_else(|| ChoiceError::NoProgram(name.clone()))?;
        Ok((name.clone(), subject))
    };
    choices.iter().map(subject).collect()
}

/// The virtual machine monitor `name`.
pub(crate) fn monitor(name: &str) -> Option<Box<dyn Monitor>> {
    Some(match name {
        "hull" => Box::new(hull::Bare),
        "firecracker" => Box::new(firecracker::Firecracker::default()),
        "cloud-hypervisor" => Box::new(cloud_hypervisor::CloudHypervisor),
        "qemu-microvm" => Box::new(qemu::Qemu),
        "kvmtool" => Box::new(kvmtool::Kvmtool),
        _ => return None,
    })
}
