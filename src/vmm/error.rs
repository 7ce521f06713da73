//! Why a machine does not run, or not to its end.

use std::error::Error;
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
use crate::sandbox::JailError;
use crate::sandbox::SandboxError;
use crate::share::ShareError;

/// Why a machine cannot run, or did not end in good order.
#[derive(Debug, Error)]
pub enum VmmError {
    /// Guest memory cannot be allocated or mapped.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// The kernel cannot be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM refuses an operation.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Two devices overlap on a bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Rights could not be given up.
    #[error("hull could not give up its rights ({error}); {way}", way = way_out(error))]
    LockDown {
        /// What the kernel answered.
        error: io::Error,
    },
    /// The threads could not be confined.
    #[error("hull could not confine itself ({error}); {way}", way = way_out(error))]
    Landlock {
        /// What it refused.
        error: SandboxError,
    },
    /// The jail cannot be entered.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// A disk cannot be opened.
    #[error("disk {error}")]
    Disk {
        /// The setting that asked for it, as [`crate::disk::Config::flag`] has it.
        key: &'static str,
        /// What opening it failed with.
        error: DiskError,
    },
    /// A network does not come up.
    #[error("network {0}")]
    Net(#[from] NetError),
    /// A shared folder cannot be served.
    #[error("share {0}")]
    Share(#[from] ShareError),
    /// The machine's name cannot be claimed.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The snapshot cannot be restored.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// A machine restored from a template does not run.
    #[error("the restored machine {0}")]
    Unanswered(String),
    /// The command cannot be sent, or the guest's init breaks the protocol.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// More devices than slots or interrupt lines.
    #[error("more than {max} virtio devices; leave some out")]
    TooManyDevices {
        /// The limit, from the interrupt lines.
        max: usize,
    },
    /// No file descriptor is left.
    #[error("cannot create an event descriptor ({0}); raise the limit of open files (ulimit -n)")]
    EventFd(io::Error),
    /// A program listens at the path of the socket device's socket, or another file is there.
    #[error(
        "vsock {}: a program listens there, or it is another kind of file; name another path",
        path.display()
    )]
    VsockExists {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The socket device's socket cannot be created.
    #[error(
        "vsock {}: cannot create the socket ({error}); name a path in an existing folder that \
         you may write to",
        path.display()
    )]
    Vsock {
        /// The path of the socket.
        path: PathBuf,
        /// What creating it failed with.
        error: io::Error,
    },
    /// No thread can be started.
    #[error("cannot start a thread ({0}); raise the limit of processes (ulimit -u)")]
    Thread(io::Error),
    /// Signal handlers cannot be installed.
    #[error("cannot catch signals ({0})")]
    Signals(io::Error),
    /// The event loop cannot wait.
    #[error("poll failed ({0})")]
    Poll(io::Error),
    /// The probe of the host's KVM failed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The guest's kernel panicked.
    #[error("the guest kernel panicked: {reason}{place}{log}")]
    Panicked {
        /// The text behind the prefix of the panic.
        reason: String,
        /// RIP, with its symbol if known.
        place: String,
        /// The lines of the console with the cause.
        log: String,
    },
    /// A reset or power-off before the command ran, without a panic.
    #[error(
        "the guest ended before it ran the command, and its kernel did not say why; run it with \
         --kernel-log --cmdline earlyprintk=ttyS0 to see its messages from the first on"
    )]
    GuestExitedSilently,
    /// The guest's processors have all stopped for good.
    #[error(
        "the guest has halted, and nothing can wake it{place}; poweroff ends a machine in good order{log}"
    )]
    Halted {
        /// RIP, with its symbol if known.
        place: String,
        /// The last lines of the console.
        log: String,
    },
    /// The guest ended while its command ran.
    #[error("the guest {how} before its command ended, so there is no status of the command")]
    NoStatus {
        /// What it did.
        how: &'static str,
    },
    /// A vCPU shut down by a triple fault.
    #[error(
        "the guest shut down by a triple fault at {place}: an exception that it could not \
         deliver{log}"
    )]
    TripleFault {
        /// RIP, with its symbol if known.
        place: String,
        /// The last lines of the console.
        log: String,
    },
    /// KVM or hull cannot continue.
    #[error("the guest stopped at {place}: {reason}{log}")]
    Failed {
        /// RIP, with its symbol if known.
        place: String,
        /// What KVM or hull reports.
        reason: String,
        /// The last lines of the console.
        log: String,
    },
}

impl VmmError {
    /// Whether the snapshot or template that the machine was to continue from is at fault, and not the
    /// host, this process or the user's devices.
    pub fn is_of_snapshot(&self) -> bool {
        match self {
            Self::Saved(error) => error.is_of_snapshot(),
            Self::Unanswered(_) | Self::Backing(BackingError::File { .. }) => true,
            Self::Kvm(error) => !error.is_of_host(),
            _ => false,
        }
    }
}

/// What to do when the lock-down fails.
fn way_out(error: &(dyn Error + 'static)) -> &'static str {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let errno = error.downcast_ref().and_then(io::Error::raw_os_error);
        if matches!(errno, Some(libc::EMFILE | libc::ENFILE)) {
            return "raise the limit of open files (ulimit -n)";
        }
        cause = error.source();
    }
    "--lockdown off runs the guest all the same"
}
