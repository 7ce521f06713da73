//! Why a machine's folder cannot be had, or a machine not be found.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use thiserror::Error;

use super::record::Record;
use super::state::Phase;

/// A failure of [`super::Claim::take`] or [`super::find`].
#[derive(Debug, Error)]
pub enum FleetError {
    /// Another machine has the name.
    #[error(
        "the machine name {name:?} is already in use{}; stop that machine, or choose another name",
        pid.map_or_else(String::new, |pid| format!(" by process {pid}"))
    )]
    InUse {
        /// The name that was to be claimed.
        name: String,
        /// Its process, if its record is complete.
        pid: Option<u32>,
    },
    /// There is no place for records.
    #[error(
        "no folder for records of running machines ({tried}); set XDG_RUNTIME_DIR to a folder of \
         yours, or run the machine without a name"
    )]
    NoRuntime {
        /// Each folder that was tried, with its error.
        tried: String,
    },
    /// The folder of the machine cannot be made.
    #[error(
        "machine {name}: cannot create {} ({error}); run it without a name",
        path.display()
    )]
    Folder {
        /// The name of the machine.
        name: String,
        /// The folder or file that failed.
        path: PathBuf,
        /// What creating it failed with.
        error: io::Error,
    },
    /// A machine of that name ran in the background, and has ended.
    #[error(
        "machine {name} is not running: it ended with status {status}; hull start {name} starts it again"
    )]
    Ended {
        /// Its name.
        name: String,
        /// Its status.
        status: u8,
    },
    /// A machine in the background has a keeper, and does not run at this moment.
    #[error("machine {name} is {}", not_yet(*phase, name))]
    NotYet {
        /// Its name.
        name: String,
        /// Where it is.
        phase: Phase,
    },
    /// No running machine has the name or process id.
    #[error("no such machine: {wanted}; {}", running(there))]
    Unknown {
        /// The name or process id that was asked for.
        wanted: String,
        /// The machines that run.
        there: Vec<Record>,
    },
}

/// An error about `path` in the folder of `name`.
pub fn failed(name: &str, path: PathBuf) -> impl FnOnce(Errno) -> FleetError {
    let name = name.into();
    move |error| FleetError::Folder {
        name,
        path,
        error: error.into(),
    }
}

fn not_yet(phase: Phase, name: &str) -> String {
    let what = match phase {
        Phase::Starting => "starting",
        Phase::Restarting => "restarting",
        Phase::Running | Phase::Exited => {
            return format!("ending; hull wait {name} waits for that");
        }
    };
    format!(
        "{what}, wait until it is running; hull logs {name} shows what it wrote, hull stop {name} ends it"
    )
}

fn running(there: &[Record]) -> String {
    if there.is_empty() {
        return "none is running".into();
    }
    let each = there.iter().map(|Record { name, pid, .. }| {
        if *name == pid.to_string() {
            name.clone()
        } else {
            format!("{name} (process {pid})")
        }
    });
    format!("these are running: {}", each.collect::<Vec<_>>().join(", "))
}
