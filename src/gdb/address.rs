//! Where gdb finds the machine, and why it cannot be there.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

/// Longest path of a Unix socket (sockaddr_un.sun_path, unix(7)), in bytes without the NUL.
pub const MAX_PATH: usize = 107;

/// Where gdb connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address and port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    /// In the form of gdb's `target remote`.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Tcp(at) if at.ip().is_loopback() && at.is_ipv4() => write!(f, ":{}", at.port()),
            Self::Tcp(at) => at.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Why hull cannot listen for gdb.
#[derive(Debug, Error)]
pub enum GdbError {
    /// The TCP port is in use or not allowed.
    #[error("cannot listen for gdb at {at} ({error}); name a port that is free, or 0 for any")]
    Tcp {
        /// The address to listen at.
        at: SocketAddr,
        /// What listening failed with.
        error: io::Error,
    },
    /// A program listens at the path, or another file is there.
    #[error(
        "the gdb socket {}: a program listens there, or it is another kind of file; name another path",
        path.display()
    )]
    Exists {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The Unix socket cannot be created.
    #[error(
        "cannot create the gdb socket {} ({error}); name a path in an existing folder that you \
         may write to",
        path.display()
    )]
    Unix {
        /// The path of the socket.
        path: PathBuf,
        /// What listening failed with.
        error: io::Error,
    },
}
