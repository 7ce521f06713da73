//! gdb's remote protocol over a running machine.
//!
//! A [`Server`] has the socket and, for a machine's life, the thread `gdb`, which waits for gdb,
//! stops the machine when one comes (`session`) and lets it go on as if nobody had been there
//! when it leaves, however it does. `target` is what the packets mean, `guest` the machine that
//! stands still, `points` what stops it, `arch` its registers by gdb's numbers. The protocol
//! itself is gdbstub's.

#![forbid(unsafe_code)]

mod arch;
mod guest;
mod points;
mod session;
mod target;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use thiserror::Error;

use crate::sandbox::{Role, spawn};
use crate::sync::{EventFd, eventfd};
use crate::vmm::debugger::{Debugged, Debugger};
use session::Worker;

/// Most bytes of a Unix socket's path (sockaddr_un.sun_path, unix(7)), its end not counted.
pub const PATH_MOST: usize = 107;

/// Where gdb is to find the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    /// As gdb's `target remote` takes it.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Tcp(at) if at.ip().is_loopback() && at.is_ipv4() => write!(f, ":{}", at.port()),
            Self::Tcp(at) => at.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// The socket could not be had.
#[derive(Debug, Error)]
pub enum GdbError {
    /// The port.
    #[error("--gdb {at}: cannot listen there ({error}); name a port that is free, or 0 for any")]
    Tcp {
        /// Where.
        at: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// Something is at the path.
    #[error(
        "--gdb {}: it exists; remove it if no running hull has it, or name another path",
        path.display()
    )]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// The path.
    #[error(
        "--gdb {}: cannot create the socket ({error}); name a path in a folder that is there and \
         that you may write to",
        path.display()
    )]
    Unix {
        /// The path.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// The socket, and the thread that serves it.
pub struct Server {
    listener: Option<Listener>,
    wait: bool,
    thread: Option<JoinHandle<()>>,
    over: Arc<Over>,
}

/// A listening socket.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A socket's name in the file system, for as long as the socket is there.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The machine's end, as the thread hears of it.
struct Over {
    signal: EventFd,
    status: OnceLock<Option<u8>>,
}

impl Server {
    /// Listen at `address`. With `wait` no vCPU runs before gdb has connected and let it.
    ///
    /// # Errors
    /// The address is in use or cannot be.
    pub fn listen(address: &Address, wait: bool) -> Result<Self, GdbError> {
        let listener = match address {
            Address::Tcp(at) => TcpListener::bind(at).map(Listener::Tcp),
            Address::Unix(path) => Listener::unix(path),
        };
        let signal = listener.and_then(|listener| Ok((listener, eventfd()?)));
        let (listener, signal) = signal.map_err(|error| match address {
            Address::Tcp(at) => GdbError::Tcp { at: *at, error },
            Address::Unix(path) if error.kind() == io::ErrorKind::AddrInUse => {
                GdbError::Exists { path: path.clone() }
            }
            Address::Unix(path) => GdbError::Unix {
                path: path.clone(),
                error,
            },
        })?;
        let status = OnceLock::new();
        Ok(Self {
            listener: Some(listener),
            wait,
            thread: None,
            over: Arc::new(Over { signal, status }),
        })
    }

    /// Where it listens: with the port that port 0 became.
    pub fn address(&self) -> Option<Address> {
        match self.listener.as_ref()? {
            Listener::Tcp(listener) => listener.local_addr().ok().map(Address::Tcp),
            Listener::Unix(_, file) => Some(Address::Unix(file.0.clone())),
        }
    }
}

impl Listener {
    fn unix(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        Ok(Self::Unix(listener, SocketFile(path.into())))
    }
}

impl Debugger for Server {
    fn attach(&mut self, machine: Debugged) -> io::Result<()> {
        let Some(listener) = self.listener.take() else {
            return Ok(());
        };
        let waiting = self.wait.then(|| machine.vcpus.pause());
        let woken = Arc::new(eventfd()?);
        let (sender, stops) = mpsc::channel();
        let wake = woken.clone();
        machine.vcpus.on_stop(move |stopped| {
            // When the thread is gone so are its breakpoints, and the vCPU goes on.
            let _ = sender.send(stopped);
            wake.raise();
        });
        let worker = Worker {
            machine,
            waiting,
            stops,
            woken,
            over: self.over.clone(),
            powers: None,
        };
        self.thread = Some(spawn(Role::Gdb, move || worker.serve(&listener))?);
        Ok(())
    }

    fn ended(&mut self, status: Option<u8>) {
        let _ = self.over.status.set(status);
        self.over.signal.raise();
        if let Some(thread) = self.thread.take() {
            // One that panicked has told so itself.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_had_once_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Unix(folder.path().join("gdb"));
        let server = Server::listen(&address, false).unwrap();
        assert_eq!(server.address(), Some(address.clone()));
        let again = Server::listen(&address, false).map(drop);
        assert!(matches!(again, Err(GdbError::Exists { .. })));
        drop(server);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

        let any = Address::Tcp(([127, 0, 0, 1], 0).into());
        let server = Server::listen(&any, false).unwrap();
        let taken = server.address().unwrap();
        let again = Server::listen(&taken, false).map(drop);
        let refusal = again.unwrap_err().to_string();
        assert!(refusal.contains("free"), "{refusal}");
    }
}
