//! Errors of the library, which name a device and its value, in the words of the flags.

use anyhow::anyhow;

use crate::config::ConfigError;
use crate::launch::LaunchError;
use crate::vmm::VmmError;

/// The error with the flag that asked for what failed.
pub fn error(error: LaunchError) -> anyhow::Error {
    match error {
        LaunchError::Config(error) => config(error),
        LaunchError::Vmm(error) => vmm(error),
        LaunchError::Open { what: "initrd", .. }
        | LaunchError::NotAFile { what: "initrd", .. }
        | LaunchError::TooLarge { what: "initrd", .. } => anyhow!("--{error}"),
        LaunchError::NotLinux { .. } => {
            anyhow!("`-- CMD` needs a Linux kernel; leave out what follows --")
        }
        LaunchError::Macs { .. } => anyhow!("--mac: {error}"),
        LaunchError::NoVsock => anyhow!("--vsock: {error}"),
        error => error.into(),
    }
}

/// As [`error`].
pub fn config(error: ConfigError) -> anyhow::Error {
    match error {
        ConfigError::Machine { key, reason } => anyhow!("--{key} {reason}"),
        error => anyhow!("--config {error}"),
    }
}

/// As [`error`].
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
