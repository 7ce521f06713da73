//! What hull's threads are for.

use std::borrow::Cow;
use std::thread::Builder;

/// Bytes of a thread's stack: far more than any needs, and less than the 2 MiB of std, of which the
/// host may make one huge page, all of it resident (transparent_hugepage/enabled: always).
const STACK: usize = 512 << 10;

/// Of a thread that only waits for one descriptor.
const SMALL_STACK: usize = 64 << 10;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs the vCPU with this index.
    Vcpu(usize),
    /// Moves the bytes of a machine, and waits for its end: the process's first thread.
    Main,
    /// Places the kernel in guest memory while KVM makes the machine.
    Loader,
    /// Copies part of a large image into guest memory.
    Copy,
    /// Serves the requests to a disk.
    Disk,
    /// Moves the frames of a network.
    Net,
    /// Moves the bytes of the socket device.
    Vsock,
    /// Passes the requests to a shared folder on to its server.
    Share,
    /// A process that serves the requests to a shared folder.
    ShareServer,
    /// Makes the machine's folder and its control socket, and becomes [`Role::Control`].
    Claim,
    /// Answers at the machine's control socket.
    Control,
    /// Talks to a debugger.
    Gdb,
    /// Samples vCPUs for a profile.
    Sampler,
    /// Writes a trace when SIGUSR1 asks for it.
    TraceWriter,
    /// Ends a machine of a pool when its customer leaves.
    Customer,
    /// A process that connects to programs for the socket device ([`super::Connector`]).
    Connector,
    /// A process that removes the file of a socket at the end ([`super::AtEnd`]).
    AtEnd,
    /// A process that passes frames on between the machines of a network.
    Switch,
    /// Runs the vCPU with which KVM is probed.
    Probe,
    /// Asks one of the running machines.
    Client,
    /// Counts the system calls of its child.
    Tracer,
}

impl Role {
    /// At most 15 bytes (pthread_setname_np(3)).
    pub fn name(self) -> Cow<'static, str> {
        match self {
            Self::Vcpu(index) => format!("vcpu{index}").into(),
            Self::Main => "main".into(),
            Self::Loader => "loader".into(),
            Self::Copy => "copy".into(),
            Self::Disk => "disk".into(),
            Self::Net => "net".into(),
            Self::Vsock => "vsock".into(),
            Self::Share => "share".into(),
            Self::ShareServer => "share-server".into(),
            Self::Claim | Self::Control => "control".into(),
            Self::Gdb => "gdb".into(),
            Self::Sampler => "profile".into(),
            Self::TraceWriter => "trace".into(),
            Self::Customer => "customer".into(),
            Self::Connector => "connector".into(),
            Self::AtEnd => "at-end".into(),
            Self::Switch => "switch".into(),
            Self::Probe => "probe".into(),
            Self::Client => "client".into(),
            Self::Tracer => "tracer".into(),
        }
    }

    /// The index of the list of its system calls in `filters::LISTS`; `None` for a thread that ends before
    /// a guest runs, or that belongs to no machine.
    pub fn list(self) -> Option<usize> {
        Some(match self {
            Self::Vcpu(_) => 0,
            Self::Main => 1,
            Self::Disk => 2,
            Self::Net => 3,
            Self::Vsock => 4,
            Self::Share => 5,
            Self::Control => 6,
            Self::Gdb => 7,
            Self::Sampler => 8,
            Self::TraceWriter => 9,
            Self::Customer => 10,
            Self::Claim => 11,
            Self::ShareServer => 12,
            Self::Connector => 13,
            Self::AtEnd => 14,
            Self::Switch => 15,
            Self::Loader | Self::Copy | Self::Probe | Self::Client | Self::Tracer => return None,
        })
    }

    /// Whether its first steps need calls that are not on its list: it calls `restrict_calls` after them.
    pub fn prepares(self) -> bool {
        matches!(self, Self::Disk | Self::ShareServer)
    }

    pub(super) fn builder(self) -> Builder {
        let stack = if self == Self::Customer {
            SMALL_STACK
        } else {
            STACK
        };
        Builder::new().name(self.name().into()).stack_size(stack)
    }
}
