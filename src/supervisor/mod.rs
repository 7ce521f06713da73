//! The process that stays outside of a machine's jail and control group, and waits for its end.
//!
//! ```text
//!   hull run --jail --limit ──fork──> the machine's hull, in the group and, once all is open, in the jail
//!     │  passes signals on, stops and continues with it
//!     '─ at its end: tells why, removes the group and the machine's folder, ends as it ended
//! ```
//! It is the process that the user started and that `hull ps` names: its end is the machine's. If it is
//! killed, so is the machine.

#![forbid(unsafe_code)]

pub mod attached;
pub mod checks;
pub mod control_group;
pub mod keeper;
mod streams;

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::config::{Limits, Machine};
use crate::disk::{self, Source};
use crate::sandbox::{Ended, JailError, fork_supervised};
use crate::vmm::{Supervised, has_job_control};
use crate::{fleet, share};
use control_group::{ControlGroup, GroupError};

/// Why a machine has no supervisor.
#[derive(Debug, Error)]
pub enum SupervisorError {
    /// No jail.
    #[error("jail: {0}")]
    Jail(#[from] JailError),
    /// A jail's user was chosen, and only root may.
    #[error("jail: only root may choose the user of a jail; leave uid= out, or run hull as root")]
    NotRoot,
    /// No control group.
    #[error("limit: {0}")]
    Group(#[from] GroupError),
    /// The supervised process cannot be waited for.
    #[error("the machine's hull cannot be waited for ({0})")]
    Wait(io::Error),
}

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Side {
    /// The machine's hull, which goes on.
    Machine(Supervised),
    /// The supervisor, after the end of the other one.
    Supervisor(Ended, Option<String>),
}

/// Have `machine` run in a process of its own, in its control group, and return in that one; in this one at
/// its end, with what is to be told about that. There is one thread.
///
/// # Errors
/// [`SupervisorError`]; what was made is removed.
pub fn supervise(machine: &Machine) -> Result<Side, SupervisorError> {
    let chosen = machine.jail.is_some_and(|jail| jail.uid.is_some());
    if chosen && !rustix::process::geteuid().is_root() {
        return Err(SupervisorError::NotRoot);
    }
    let limited = !machine.limits.is_empty();
    let group = limited.then(|| group(machine)).transpose()?;
    let pid = std::process::id();
    let forked = fork_supervised(machine.jail.is_some());
    let Some(supervised) = forked? else {
        let groups = group
            .as_ref()
            .map(ControlGroup::folders)
            .unwrap_or_default();
        if let Some(group) = &group {
            group.enter()?;
        }
        // It is removed by the supervisor.
        std::mem::forget(group);
        return Ok(Side::Machine(Supervised { pid, groups }));
    };
    let ended = supervised.wait(has_job_control);
    let ended = ended.map_err(SupervisorError::Wait)?;
    supervised.end_jail();
    let told = group.as_ref().filter(|group| group.out_of_memory());
    let told = told.map(|_| out_of_memory(&machine.limits));
    drop(group);
    // The machine's folder, which another user may not have been able to remove.
    fleet::sweep();
    Ok(Side::Supervisor(ended, told))
}

fn out_of_memory(limits: &Limits) -> String {
    format!(
        "the host ended this machine: hull and its guest needed more than its control group has (--limit \
         {limits})"
    )
}

/// The control group of `machine`.
fn group(machine: &Machine) -> Result<ControlGroup, GroupError> {
    let images = machine
        .all()
        .flat_map(|disk: &disk::Config| match &disk.source {
            Source::Image(path) => std::slice::from_ref(path),
            Source::Joined(paths) => paths.as_slice(),
            Source::Scratch(_) | Source::Ext4(_) => &[],
        })
        .map(PathBuf::as_path);
    let folders = machine
        .all()
        .map(|share: &share::Config| share.folder.as_path());
    let devices = images.chain(folders).filter_map(device);
    ControlGroup::make(&machine.limits, devices.collect())
}

/// The number of the block device on which a file lies, or that it is; `None` if it cannot be looked at,
/// which opening it will say better.
fn device(path: &Path) -> Option<u64> {
    let about = path.metadata().ok()?;
    Some(match about.file_type().is_block_device() {
        true => about.rdev(),
        false => about.dev(),
    })
}
