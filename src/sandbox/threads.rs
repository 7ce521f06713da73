//! Threads by their role: the only place that uses `std::thread::Builder`.

use std::borrow::Cow;
use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

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
    /// Places the kernel in guest memory while KVM makes the machine.
    Loader,
    /// Copies part of a large image into guest memory.
    Copy,
    /// Serves the requests to a disk.
    Disk,
    /// Moves the frames of a network.
    Net,
    /// Serves the requests to a shared folder.
    Share,
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
    /// Runs the vCPU with which KVM is probed.
    Probe,
    /// Asks one of the running machines.
    Client,
    /// Counts the system calls of its child.
    Tracer,
}

impl Role {
    /// At most 15 bytes (pthread_setname_np(3)).
    fn name(self) -> Cow<'static, str> {
        match self {
            Self::Vcpu(index) => format!("vcpu{index}").into(),
            Self::Loader => "loader".into(),
            Self::Copy => "copy".into(),
            Self::Disk => "disk".into(),
            Self::Net => "net".into(),
            Self::Share => "share".into(),
            Self::Control => "control".into(),
            Self::Gdb => "gdb".into(),
            Self::Sampler => "profile".into(),
            Self::TraceWriter => "trace".into(),
            Self::Customer => "customer".into(),
            Self::Probe => "probe".into(),
            Self::Client => "client".into(),
            Self::Tracer => "tracer".into(),
        }
    }

    fn builder(self) -> Builder {
        let stack = if self == Self::Customer {
            SMALL_STACK
        } else {
            STACK
        };
        Builder::new().name(self.name().into()).stack_size(stack)
    }
}

/// Start a thread that does `work`.
///
/// # Errors
/// The host has no thread or memory left.
pub fn spawn<T: Send + 'static>(
    role: Role,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    role.builder().spawn(work)
}

/// As [`spawn`], for a thread that ends within `scope`.
///
/// # Errors
/// As there.
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    role: Role,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    role.builder().spawn_scoped(scope, work)
}
