//! gdb's remote protocol over a running machine.
//!
//! A [`Server`] has the socket and, while the machine runs, the thread `gdb`, which waits for gdb,
//! stops the machine when one connects (`session`) and restores it when gdb disconnects, however that
//! happens. `target` gives the packets their meaning, `guest` is the stopped machine, `points` its
//! breakpoints, `arch` its registers by gdb's numbers, `listener` the socket and its connections. The
//! protocol itself is gdbstub's.

#![forbid(unsafe_code)]

mod address;
mod arch;
mod guest;
mod listener;
mod over;
mod points;
mod session;
mod target;

use std::io;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

pub use address::{Address, GdbError, MAX_PATH};

use crate::sandbox::{Role, spawn};
use crate::sync::eventfd;
use crate::vmm::debugger::{Debugged, Debugger};
use listener::Listener;
use over::Over;
use session::Worker;

/// The socket, and the thread that serves it.
pub struct Server {
    listener: Option<Listener>,
    wait: bool,
    thread: Option<JoinHandle<()>>,
    over: Arc<Over>,
}

impl Server {
    /// Listen at `address`. With `wait` no vCPU runs before gdb has connected and continued it.
    ///
    /// # Errors
    /// The address is in use or not allowed.
    pub fn listen(address: &Address, wait: bool) -> Result<Self, GdbError> {
        let listener = Listener::new(address);
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

    /// Where it listens: with the port that was chosen for port 0.
    pub fn address(&self) -> Option<Address> {
        self.listener.as_ref()?.address()
    }
}

impl Debugger for Server {
    fn attach(&mut self, machine: Debugged) -> io::Result<()> {
        let Some(listener) = self.listener.take() else {
            return Ok(());
        };
        let powers = session::powers();
        let waiting = self.wait.then(|| machine.vcpus.pause());
        let woken = Arc::new(eventfd()?);
        let (sender, stops) = mpsc::channel();
        let wake = woken.clone();
        machine.vcpus.on_stop(move |stopped| {
            // Fails when the thread has ended: its breakpoints are gone, and the vCPU continues.
            let _ = sender.send(stopped);
            wake.raise();
        });
        let worker = Worker {
            machine,
            waiting,
            stops,
            woken,
            over: self.over.clone(),
            powers,
            told_powers: false,
        };
        self.thread = Some(spawn(Role::Gdb, move || worker.serve(&listener))?);
        Ok(())
    }

    fn ended(&mut self, status: Option<u8>) {
        let _ = self.over.status.set(status);
        self.over.signal.raise();
        if let Some(thread) = self.thread.take() {
            // The panic hook has reported a panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_used_once_and_released() {
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
