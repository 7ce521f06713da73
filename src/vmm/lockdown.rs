//! What this process gives up before a machine's threads begin.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::config::{Config, Start};
use super::error::VmmError;
use super::own::Own;
use crate::config::Lockdown;
use crate::fleet::Runtime;
use crate::sandbox::{self, Reach};

/// Give up the process's rights, and leave its threads the folders that they need: all other files are open
/// by now. The record of the machine is in `machines`.
///
/// # Errors
/// The kernel refuses, or a folder cannot be opened.
pub fn lock_down(config: &Config, own: &Own, machines: Option<&Runtime>) -> Result<(), VmmError> {
    if config.machine.lockdown == Lockdown::Off {
        sandbox::allow_all_folders();
        return Ok(());
    }
    sandbox::lock_down().map_err(|error| VmmError::LockDown { error })?;
    let above: Vec<OwnedFd> = machines.iter().flat_map(|it| it.above()).collect();
    let templates = match &config.start {
        // Its folder, and those that it takes the room of.
        Start::Template(dir) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let all = dir.parent().unwrap_or(dir);
            let all = openat(CWD, all, flags, Mode::empty());
            Some(all.map_err(|errno| VmmError::LockDown {
                error: errno.into(),
            })?)
        }
        Start::Boot | Start::Saved(_) => None,
    };
    let mut folders: Vec<(BorrowedFd<'_>, Reach)> = Vec::new();
    folders.extend(own.proc.as_ref().map(|it| (it.as_fd(), Reach::Read)));
    folders.extend(machines.map(|it| (it.folder(), Reach::Write)));
    folders.extend(above.iter().map(|it| (it.as_fd(), Reach::RemoveEmpty)));
    folders.extend(templates.iter().map(|it| (it.as_fd(), Reach::Write)));
    sandbox::allow_folders(&folders).map_err(|error| VmmError::Landlock { error })
}
