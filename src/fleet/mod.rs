//! Records of the machines that run: who they are, and where each takes orders.
//!
//! ```text
//!  RUNTIME/hull/NAME/      0700, NAME is --name or hull's process id
//!                    lock   locked (flock) by that hull as long as it lives
//!                    record who it is, JSON
//!                    socket where it takes orders, see `control`
//! ```
//! Whether a machine lives is whether its lock is held, which no reuse of a process id can feign.
//! What a hull leaves that was killed, the next one that comes by clears away. [`claim`] makes a
//! folder, [`Claim`] removes it; [`find`] and [`list`] are for those who look for a machine.

mod folder;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use folder::Runtime;
pub use folder::{Claim, Found};

/// Most characters of a name.
pub const NAME_MOST: usize = 64;

/// What is written down of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The process.
    pub pid: u32,
    /// What the user calls it; its process id if the user did not say.
    pub name: String,
    /// When it was started, in seconds of Unix time.
    pub started: u64,
    /// vCPUs.
    pub cpus: u8,
    /// Guest memory.
    pub memory_bytes: u64,
    /// hull's version.
    pub version: String,
    /// The template with which it waits for a command, or did until it got one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_with: Option<String>,
}

/// A machine's folder cannot be had, or a machine not be found.
#[derive(Debug, Error)]
pub enum FleetError {
    /// Another machine has the name.
    #[error(
        "--name {name}: a machine of this name runs{}; stop it, or choose another name",
        pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
    )]
    InUse {
        /// The name.
        name: String,
        /// Its process, if it has written that down.
        pid: Option<u32>,
    },
    /// There is no place for records.
    #[error(
        "--name: no folder for records of running machines ({tried}); set XDG_RUNTIME_DIR to a \
         folder of yours, or leave --name out"
    )]
    NoRuntime {
        /// What was tried, and what came of it.
        tried: String,
    },
    /// The folder of the machine cannot be made.
    #[error("--name {name}: cannot make {} ({error}); leave --name out", path.display())]
    Folder {
        /// The name.
        name: String,
        /// The folder or file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Nobody is called so.
    #[error("no machine {wanted} runs; {}", running(there))]
    Unknown {
        /// The name or process id that was asked for.
        wanted: String,
        /// Those that run.
        there: Vec<Record>,
    },
}

fn running(there: &[Record]) -> String {
    if there.is_empty() {
        return "none does".into();
    }
    let each = there.iter().map(|record| {
        let Record { name, pid, .. } = record;
        match *name == pid.to_string() {
            true => name.clone(),
            false => format!("{name} (process {pid})"),
        }
    });
    format!("these do: {}", each.collect::<Vec<_>>().join(", "))
}

/// Check a name that the user chose.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    let rule = format!(
        "a name is 1 to {NAME_MOST} letters, digits, '.', '_' and '-', the first a letter or digit, \
         and not a number"
    );
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let fits = (1..=NAME_MOST).contains(&name.len())
        && name.bytes().all(known)
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && !name.bytes().all(|byte| byte.is_ascii_digit());
    fits.then_some(()).ok_or(rule)
}

/// Take the name that `record` gives itself, and write the record down.
///
/// # Errors
/// A living machine has the name, or there is no place.
pub fn claim(record: &Record) -> Result<Claim, FleetError> {
    Claim::take(&Runtime::make()?, record)
}

/// All machines that run, by name; what others have left is cleared away.
pub fn list() -> Vec<Found> {
    let Ok(runtime) = Runtime::open() else {
        return Vec::new(); // nobody has been here
    };
    runtime.list()
}

/// Clear away what hulls that were killed have left.
pub fn sweep() {
    drop(list());
}

/// The machine of this name or process id.
///
/// # Errors
/// [`FleetError::Unknown`], with those that run.
pub fn find(wanted: &str) -> Result<Found, FleetError> {
    let mut there = list();
    let of_name = |found: &Found| found.record.name == wanted;
    let of_pid = |found: &Found| found.record.pid.to_string() == wanted;
    let at = there.iter().position(of_name);
    match at.or_else(|| there.iter().position(of_pid)) {
        Some(at) => Ok(there.swap_remove(at)),
        None => Err(FleetError::Unknown {
            wanted: wanted.into(),
            there: there.into_iter().map(|found| found.record).collect(),
        }),
    }
}

/// An error about `path` in the folder of `name`.
fn failed(name: &str, path: PathBuf) -> impl FnOnce(Errno) -> FleetError {
    let name = name.into();
    move |error| FleetError::Folder {
        name,
        path,
        error: error.into(),
    }
}
