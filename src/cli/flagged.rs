//! Errors of the library, which name a device and its value, in the words of the flags.

use std::path::Path;

use anyhow::anyhow;

use crate::config::{ConfigError, Kernel};
use crate::launch::LaunchError;
use crate::vmm::VmmError;

/// The error with the flag that asked for what failed.
pub fn error(error: LaunchError) -> anyhow::Error {
    match error {
        LaunchError::Config(error) => config(error),
        LaunchError::Vmm(error) => vmm(error),
        LaunchError::File { what: "initrd", .. } => anyhow!("--{error}"),
        LaunchError::NotLinux { .. } => {
            anyhow!("`-- CMD` needs a Linux kernel; leave out what follows --")
        }
        LaunchError::Macs { given, networks } => {
            anyhow!("--mac: given {given} times, and the machine has {networks} networks")
        }
        LaunchError::NoVsock => anyhow!("--vsock: the machine has no such device"),
        error => error.into(),
    }
}

pub fn config(error: ConfigError) -> anyhow::Error {
    match error {
        ConfigError::Machine { key, reason } => anyhow!("--{key} {reason}"),
        error => error.into(),
    }
}

/// As [`error`], of the file `path`.
pub fn file(error: ConfigError, path: &Path) -> anyhow::Error {
    match error {
        ConfigError::File { .. } => anyhow!("--config {error}"),
        error => anyhow!("--config {}: {error}", path.display()),
    }
}

pub fn vmm(error: VmmError) -> anyhow::Error {
    match error {
        VmmError::Disk { key, error } => anyhow!("--{key} {error}"),
        VmmError::Fleet(error) => anyhow!("--name: {error}"),
        VmmError::Net(error) => anyhow!("--net {error}"),
        VmmError::Share(error) => anyhow!("--share {error}"),
        VmmError::Vsock { .. } | VmmError::VsockExists { .. } => anyhow!("--{error}"),
        error => error.into(),
    }
}

/// As [`error`], with the name of the user's own kernel, which is the cause of most failures.
pub fn of_kernel(error: LaunchError, kernel: &Kernel) -> anyhow::Error {
    let of_machine = matches!(error, LaunchError::Vmm(_));
    let error = self::error(error);
    match kernel {
        Kernel::File(path) if of_machine => error.context(path.display().to_string()),
        _ => error,
    }
}
