//! Why a machine was not started.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::config::ConfigError;
use crate::guest::GuestError;
use crate::memory::packed::PackedError;
use crate::net::Publish;
use crate::templates::CacheError;
use crate::vmm::VmmError;
use crate::vmm::snapshot::SavedError;

/// A machine was not started, or did not run to its end.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// What was asked for is no machine.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel or initial RAM disk inside hull.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A file cannot be opened, is not a regular file, or is larger than any kernel.
    #[error("{what} {}: {reason}", path.display())]
    File {
        /// What it is for: `kernel` or `initrd`.
        what: &'static str,
        /// The file that was named.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A command for a kernel that runs none.
    #[error("a command needs a Linux kernel, and {} is not one", path.display())]
    NotLinux {
        /// The kernel's file, flat or of another system.
        path: PathBuf,
    },
    /// Environment, folder or user of a command, where hull's init does not run.
    #[error("the guest runs an init of its own, which knows of no variables, folder or user")]
    NoInit,
    /// The initial RAM disk inside hull is not as it was built.
    #[error("hull's initramfs is damaged ({0}); build hull again with `make build`")]
    Initramfs(io::Error),
    /// The machine did not run to its end.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The snapshot cannot be read or restored.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// A template in place of a snapshot.
    #[error("{} is a template without a command; hull run uses it by itself", dir.display())]
    Template {
        /// The template's folder.
        dir: PathBuf,
    },
    /// Addresses for networks that the snapshot does not have.
    #[error("{given} addresses for networks, and the machine has {networks}")]
    Macs {
        /// Number of addresses.
        given: usize,
        /// Networks of the snapshot.
        networks: usize,
    },
    /// The snapshot is another user's, and not trusted.
    #[error(
        "the snapshot {} belongs to user {owner}, who chose what its machine uses of this host: {}",
        dir.display(),
        used.join(", ")
    )]
    Stranger {
        /// The folder of the snapshot.
        dir: PathBuf,
        /// User ID of the folder's owner.
        owner: u32,
        /// What the machine uses, as flags.
        used: Vec<String>,
    },
    /// A socket for a device that the snapshot does not have.
    #[error("the machine has no vsock device")]
    NoVsock,
    /// Ports for a machine without a network that publishes any.
    #[error("the machine has no network of the kind user")]
    NoUserNetwork,
    /// Copies that would all publish the port of the saved machine.
    #[error("the machine has {port}, and only one copy can have that port")]
    PublishedBySaved {
        /// The first port.
        port: Publish,
    },
    /// Numbered ports that meet, or that pass 65535.
    #[error(
        "{port}: {copies} copies publish as many ports from this one on, which meet those of another, \
         or pass 65535"
    )]
    PortsOfCopies {
        /// The port of the first copy.
        port: Publish,
        /// Number of copies.
        copies: u16,
    },
    /// An image for a disk that the snapshot does not have.
    #[error("the machine has no disk '{id}'; it has {}", if ids.is_empty() { "none".into() } else { ids.join(", ") })]
    NoDisk {
        /// The ID that was given.
        id: String,
        /// Those of its disks.
        ids: Vec<String>,
    },
    /// The cache of templates.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A machine of a pool was lost after its guest may have begun.
    #[error("the machine of the pool (process {pid}) was killed")]
    Lost {
        /// The machine's process id.
        pid: u32,
    },
    /// The pool's machines boot, and none leaves a template.
    #[error("no template could be made; hull run with the same flags says why")]
    NoTemplate,
    /// A machine that cannot wait in a pool.
    #[error("a machine of this kind has no template, or one of its files was written just now")]
    NotWarm,
    /// The pool's machines fail.
    #[error("no machine can be made ready; see the output above")]
    NotReady,
    /// Another process of hull cannot be started.
    #[error("cannot start another hull ({0})")]
    Spawn(io::Error),
    /// The system refuses what hardly fails.
    #[error("cannot {what} ({error})")]
    System {
        /// The action, as a verb with its object.
        what: &'static str,
        /// Why the system refused it.
        error: io::Error,
    },
}

impl LaunchError {
    /// For `map_err`: the system refuses `what`.
    pub(super) fn system<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::System {
            what,
            error: error.into(),
        }
    }
}

impl From<PackedError> for LaunchError {
    fn from(error: PackedError) -> Self {
        Self::Guest(error.into())
    }
}
