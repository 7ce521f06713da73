//! One connection of gdb, whose bytes are all there.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use gdbstub::conn::Connection;
use hull::sync::EventFd;

use super::over::Over;

/// As `hull::gdb` has it.
pub const MAX_PACKET: usize = 4096;

/// Accepts one connection; when there is no further, the machine is over.
pub struct Listener {
    pub input: Mutex<Option<VecDeque<u8>>>,
    /// What gdb receives.
    pub output: Arc<Mutex<Vec<u8>>>,
    /// Always raised.
    pub ready: Arc<EventFd>,
    pub over: Arc<Over>,
}

pub struct Wire {
    input: VecDeque<u8>,
    read: VecDeque<u8>,
    output: Arc<Mutex<Vec<u8>>>,
    ready: Arc<EventFd>,
}

impl Listener {
    pub fn accept(&self) -> io::Result<Wire> {
        let Some(input) = self.input.lock().unwrap().take() else {
            self.over.signal.raise();
            return Err(io::ErrorKind::WouldBlock.into());
        };
        Ok(Wire {
            input,
            read: VecDeque::new(),
            output: self.output.clone(),
            ready: self.ready.clone(),
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

impl Wire {
    pub fn take(&mut self) -> Option<u8> {
        self.read.pop_front()
    }

    pub fn fill(&mut self) -> io::Result<usize> {
        let len = self.input.len().min(MAX_PACKET);
        self.read.extend(self.input.drain(..len));
        Ok(len)
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

impl Connection for Wire {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.output.lock().unwrap().push(byte);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
