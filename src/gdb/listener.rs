//! The socket for gdb, and the connections to it.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use gdbstub::conn::Connection;
use rustix::net::SocketFlags;

use super::address::Address;
use crate::sandbox::AtEnd;
use crate::vmm::socket;

/// How long gdb may take to read an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest packet in bytes: all registers fit, and memory is transferred in pieces.
pub const MAX_PACKET: usize = 4096;

/// The socket that gdb connects to.
pub enum Listener {
    Tcp(TcpListener),
    /// The process removes the socket's file at the end.
    Unix(
        UnixListener,
        PathBuf,
        #[expect(dead_code, reason = "it is dropped")] AtEnd,
    ),
}

impl Listener {
    /// Listen at `address`.
    ///
    /// # Errors
    /// The address is in use or not allowed.
    pub fn new(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(at) => TcpListener::bind(at).map(Self::Tcp),
            Address::Unix(path) => {
                let (listener, file) = socket::listen(path, SocketFlags::empty())?;
                let at_end = AtEnd::start(path, || file.remove())?;
                std::mem::forget(file);
                Ok(Self::Unix(listener.into(), path.clone(), at_end))
            }
        }
    }

    /// Where it listens: with the port that was chosen for port 0.
    pub fn address(&self) -> Option<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(Address::Tcp),
            Self::Unix(_, path, _) => Some(Address::Unix(path.clone())),
        }
    }

    /// Accept one connection.
    ///
    /// # Errors
    /// No connection waits, its peer is another user, or no file descriptor is left.
    pub fn accept(&self) -> io::Result<Wire> {
        Ok(Wire::new(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
                Stream::Tcp(stream)
            }
            Self::Unix(listener, ..) => {
                let (stream, _) = listener.accept()?;
                if !socket::is_ours(&stream) {
                    return Err(io::ErrorKind::PermissionDenied.into());
                }
                stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
                Stream::Unix(stream)
            }
        }))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, ..) => listener.as_fd(),
        }
    }
}

/// The connection to gdb, with its buffers.
pub struct Wire {
    stream: Stream,
    /// Bytes from gdb that were not taken.
    read: VecDeque<u8>,
    /// Bytes for gdb until the next flush.
    written: Vec<u8>,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Wire {
    fn new(stream: Stream) -> Self {
        Self {
            stream,
            read: VecDeque::new(),
            written: Vec::new(),
        }
    }

    /// The next byte that was read from gdb.
    pub fn take(&mut self) -> Option<u8> {
        self.read.pop_front()
    }

    /// Read from gdb what has arrived.
    pub fn fill(&mut self) -> io::Result<usize> {
        let mut bytes = [0; MAX_PACKET];
        let read = match &mut self.stream {
            Stream::Tcp(stream) => stream.read(&mut bytes),
            Stream::Unix(stream) => stream.read(&mut bytes),
        }?;
        self.read.extend(bytes.iter().take(read));
        Ok(read)
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Connection for Wire {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.written.push(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written.extend(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.written);
        match &mut self.stream {
            Stream::Tcp(stream) => Write::write_all(stream, &bytes),
            Stream::Unix(stream) => Write::write_all(stream, &bytes),
        }
    }
}
