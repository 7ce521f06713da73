//! The subjects: what runs a command, as a process, in a container, in a virtual machine.
//!
//! All subjects run the same file, the busybox of hull's initial RAM disk, which a [`Stage`] unpacks. Each
//! file here configures one subject. `contract` says what a subject must do; `monitor` is the common part
//! of the virtual machine monitors, which boot the [`guest`].

use std::path::{Path, PathBuf};

mod choice;
mod contract;
mod engine;
pub mod guest;
pub(crate) mod hull;
pub(crate) mod monitor;
pub(crate) mod monitors;
mod plain;
mod program;
mod runtime;
pub(crate) mod second;
mod stage;

pub(crate) use choice::{Choice, ChoiceError, NAMES, choices};
pub use contract::{About, Kind, Subject, run};
pub(crate) use contract::{IDLE, Instance, UP, start, words};
pub(crate) use program::first_line;
pub use program::{LeftOut, Part};
pub(crate) use runtime::Runtime;
pub use stage::Stage;
pub(crate) use stage::{MEMORY_MIB, StageError};

use monitor::{Monitor, Monitored};
use plain::{Plain, Way};

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
        ("process", None) => Box::new(Plain::new(stage, name, PathBuf::new(), Way::Process)),
        ("bwrap", _) => Box::new(Plain::new(stage, name, program(), Way::Bwrap)),
        ("runc" | "crun", _) => Box::new(runtime::Runtime::new(stage, name, program())),
        ("docker" | "podman", _) => Box::new(engine::Engine::new(stage, name, program())),
        ("hull-warm" | "hull-cold", None) => Box::new(hull::Hull::new(stage, name)),
        (name, Some(_)) if !NAMES.contains(&name) => {
            Box::new(Plain::new(stage, name, program(), Way::Custom))
        }
        _ => return None,
    })
}

/// A subject with the name that the user chose it by.
pub(crate) type Named<'a> = (String, Box<dyn Subject + 'a>);

pub(crate) fn chosen<'a>(
    choices: &[Choice],
    stage: &'a Stage,
) -> Result<Vec<Named<'a>>, ChoiceError> {
    let subject = |&(name, path): &Choice| {
        let subject = by_name(name, path, stage);
        let subject = subject.ok_or_else(|| ChoiceError::NoProgram(name.into()))?;
        Ok((name.to_owned(), subject))
    };
    choices.iter().map(subject).collect()
}

pub(crate) fn monitor(name: &str) -> Option<&'static Monitor> {
    use monitors::{CLOUD_HYPERVISOR, FIRECRACKER, HULL, KVMTOOL, QEMU};
    let all = [&HULL, &FIRECRACKER, &CLOUD_HYPERVISOR, &QEMU, &KVMTOOL];
    all.into_iter().find(|monitor| monitor.name == name)
}
