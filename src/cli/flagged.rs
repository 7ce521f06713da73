//! Errors of the library, which name a device and its value, in the words of the flags.

use std::path::Path;

use anyhow::anyhow;

use crate::boot::{BootError, ElfError};
use crate::config::{ConfigError, Kernel, Machine};
use crate::disk::{self, DiskError};
use crate::launch::LaunchError;
use crate::net::NetError;
use crate::vmm::VmmError;

/// For a file that is no kernel.
const COMMAND: &str = "to run a command in the guest, write `--` before it: hull run -- CMD";

/// The error with the flag that asked for what failed.
pub fn error(error: LaunchError) -> anyhow::Error {
    match error {
        LaunchError::Config(error) => config(error),
        LaunchError::Vmm(error) => vmm(error),
        LaunchError::File { what: "initrd", .. } => anyhow!("--{error}"),
        LaunchError::File { what: "kernel", .. } => anyhow!("{error}; {COMMAND}"),
        LaunchError::NotLinux { .. } => {
            anyhow!("`-- CMD` needs a Linux kernel; leave out what follows --")
        }
        LaunchError::Macs { given, networks } => {
            anyhow!("--mac: given {given} times, and the machine has {networks} networks")
        }
        LaunchError::NoInit => anyhow!("--env, --workdir and --user are for a command: add -- CMD"),
        LaunchError::NoDisk { .. } => anyhow!("--disk: {error}"),
        LaunchError::NoUserNetwork | LaunchError::PortsOfCopies { .. } => {
            anyhow!("--publish: {error}")
        }
        LaunchError::PublishedBySaved { port } => anyhow!(
            "-n: {error}; with --publish {}:{} each copy has its own, the next ones above it, and with \
             --publish none there is none",
            port.host,
            port.guest
        ),
        LaunchError::Stranger { .. } => {
            anyhow!("{error}; if that is what you want, add --trust")
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
        VmmError::Net(NetError::Shared { error }) => error.into(),
        VmmError::Net(error) => anyhow!("--net {error}"),
        VmmError::Jail(error) => anyhow!("--jail: {error}"),
        VmmError::Share(error) => anyhow!("--share {error}"),
        VmmError::Vsock { .. } | VmmError::VsockExists { .. } => anyhow!("--{error}"),
        error => error.into(),
    }
}

/// As [`vmm`], of a restored `machine`, which was described when it was saved.
pub fn restored(error: VmmError, machine: &Machine) -> anyhow::Error {
    match error {
        VmmError::Disk {
            error: DiskError::Open { path, reason, .. },
            ..
        } => {
            let of_path = |disk: &&disk::Config| {
                matches!(&disk.source, disk::Source::Image(image) if *image == path)
                    || disk.backing.contains(&path)
            };
            let id = machine.all().find(of_path).map(disk::Config::id);
            let id = id.unwrap_or_else(|| "ID".into());
            anyhow!(
                "disk {}: {reason}; if its image is elsewhere now, name it: --disk {id}=PATH",
                path.display()
            )
        }
        VmmError::Net(error @ NetError::PasstFailed { .. }) => anyhow!(
            "network {error}; if another program has the port, --publish HOST:GUEST names another"
        ),
        error => vmm(error),
    }
}

/// As [`error`], with the name of the user's own kernel, which is the cause of most failures.
pub fn of_kernel(error: LaunchError, kernel: &Kernel) -> anyhow::Error {
    let of_machine = matches!(error, LaunchError::Vmm(_));
    let no_kernel = matches!(
        &error,
        LaunchError::Vmm(VmmError::Boot(
            BootError::Detect(_)
                | BootError::Elf(ElfError::Program | ElfError::NotExecutable { .. })
        ))
    );
    let mut error = self::error(error);
    if no_kernel {
        error = anyhow!("{error}; {COMMAND}");
    }
    match kernel {
        Kernel::File(path) if of_machine => error.context(path.display().to_string()),
        _ => error,
    }
}
