//! Why a machine does not run, or not to its end.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::snapshot::saved::SavedError;
use crate::agent::AgentError;
use crate::boot::BootError;
use crate::devices::bus::Error as BusError;
use crate::disk::DiskError;
use crate::fleet::FleetError;
use crate::kvm::KvmError;
use crate::kvm::probe::ProbeError;
use crate::memory::backing::BackingError;
use crate::net::NetError;
use crate::share::ShareError;

/// Why a guest did not run, or not to its end.
#[derive(Debug, Error)]
pub enum VmmError {
    /// Guest memory.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// The kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// An overlap on a bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A disk.
    #[error("disk {error}")]
    Disk {
        /// The setting that asked for it, as [`crate::disk::Config::flag`] has it.
        key: &'static str,
        /// Why it cannot be had.
        error: DiskError,
    },
    /// A network.
    #[error("network {0}")]
    Net(#[from] NetError),
    /// A shared folder.
    #[error("share {0}")]
    Share(#[from] ShareError),
    /// The machine's name.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The machine that was to go on.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// A machine from a template that has not answered.
    #[error("the machine that was restored {0}")]
    Unanswered(String),
    /// The command cannot be sent, or the guest's init does not keep to the protocol.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// More devices than slots or interrupt lines.
    #[error("more than {most} virtio devices; leave some out")]
    TooManyDevices {
        /// Most devices.
        most: usize,
    },
    /// No event file descriptor could be had.
    #[error("cannot create an event descriptor ({0}); raise the limit of open files (ulimit -n)")]
    EventFd(io::Error),
    /// The socket device's socket is there already.
    #[error(
        "vsock {} exists; remove it if no running hull has it, or name another path",
        path.display()
    )]
    VsockExists {
        /// Its path.
        path: PathBuf,
    },
    /// The socket device's socket could not be created.
    #[error(
        "vsock {}: cannot create the socket ({error}); name a path in a folder that is there and \
         that you may write to",
        path.display()
    )]
    Vsock {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// No thread could be had.
    #[error("cannot start a thread ({0}); raise the limit of processes (ulimit -u)")]
    Thread(io::Error),
    /// Signal handlers could not be set.
    #[error("cannot catch signals ({0})")]
    Signals(io::Error),
    /// Waiting failed.
    #[error("poll failed ({0})")]
    Poll(io::Error),
    /// The probe of the host's KVM.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// A kernel panic.
    #[error("the guest kernel panicked: {reason}{place}{log}")]
    Panicked {
        /// What it said.
        reason: String,
        /// RIP and symbol.
        place: String,
        /// The last lines of the console.
        log: String,
    },
    /// A reset or power-off without a word, before the command ran.
    #[error(
        "the guest ended before it ran the command, and its kernel did not say why; run it with \
         --kernel-log --cmdline earlyprintk=ttyS0 to see its messages from the first on"
    )]
    GuestExitedSilently,
    /// A triple fault.
    #[error(
        "the guest shut down by a triple fault at {place}: an exception that it could not \
         deliver{log}"
    )]
    TripleFault {
        /// RIP and symbol.
        place: String,
        /// The last lines of the console.
        log: String,
    },
    /// KVM gave up.
    #[error("the guest stopped at {place}: {reason}{log}")]
    Failed {
        /// RIP and symbol.
        place: String,
        /// Why.
        reason: String,
        /// The last lines of the console.
        log: String,
    },
}
