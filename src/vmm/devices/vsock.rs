//! The socket device in a slot, its backend, AF_UNIX sockets, and the thread that moves their bytes.
//!
//! Every descriptor is registered edge-triggered: the device remembers what it could not do, so only
//! the wait for room in a full socket is switched on and off.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{self, RecvFlags, SendFlags, SocketFlags};
use rustix::process::{Resource, getrlimit};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use super::bell::{FIRST_OTHER, attach_worker};
use super::files;
use super::slots::{AttachContext, Slots};
use crate::config::Vsock as Config;
use crate::devices::virtio::requests::{Next, Requests, Worker};
use crate::devices::virtio::transport::SharedCore;
use crate::devices::virtio::vsock::{Host, Id, Stream, Vsock};
use crate::sandbox::{Connector, Role};
use crate::sync::lock;
use crate::vmm::error::VmmError;
use crate::vmm::socket;

/// Events taken from the kernel at once.
const BATCH: usize = 16;
/// Seconds between two ticks of the device; its timeout is two ticks. A guest whose kernel is emulated
/// takes seconds to answer while it is busy.
const TICK_S: i64 = 5;

/// Descriptors that remain for hull itself, however many connections there are: a machine must answer at
/// its control socket, and be saved.
const RESERVE: u64 = 128;

/// Tokens beside those of streams, which count from 1.
const LISTENER: Id = Id::MAX;
const TIMER: Id = Id::MAX - 1;

/// The events of every descriptor.
const READABLE: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);
const NEW: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// The sockets of a device that has no slot yet.
pub struct Sockets {
    shared: Arc<Shared>,
}

/// The sockets of a device in its slot.
pub struct Link {
    shared: Arc<Shared>,
    slot: SharedCore,
}

struct Shared {
    epoll: OwnedFd,
    timer: OwnedFd,
    listener: OwnedFd,
    /// `None` once the device's thread has ended.
    connector: Mutex<Option<Connector>>,
}

/// Attach a socket device with its `sockets`, and start its thread.
///
/// # Errors
/// No slot, file descriptor or thread is left.
pub fn attach(
    slots: &mut Slots,
    context: &mut AttachContext,
    config: &Config,
    sockets: Sockets,
) -> Result<Worker, VmmError> {
    let device = Vsock::new(config.cid, sockets.host());
    let (slot, bell) = attach_worker(slots, context, "virtio vsock", Box::new(device))?;
    bell.watch(&sockets.shared.epoll, FIRST_OTHER)?;
    let link = sockets.link(slot);
    // The device moves the bytes itself: the only request is the end.
    let requests = Requests::<()>::default();
    let (end, rung) = (requests.clone(), bell.clone());
    let work = move || {
        loop {
            match end.next(0, |()| false) {
                Next::End => break,
                Next::Pause => end.stay_paused(None),
                _ if link.process() => {}
                _ => rung.wait_for(None, |_| {}),
            }
        }
        // Here: the device itself is dropped by another thread, which may not wait for processes.
        drop(lock(&link.shared.connector).take());
    };
    Worker::start(Role::Vsock, requests, bell, work).map_err(VmmError::Thread)
}

impl Sockets {
    /// Create the socket `path` and listen on it.
    ///
    /// # Errors
    /// A program listens at `path` or it is another file, the socket cannot be created, or no file descriptor is left.
    pub fn new(path: &Path) -> Result<Self, VmmError> {
        let failed = |errno: Errno| match errno {
            Errno::ADDRINUSE => VmmError::VsockExists { path: path.into() },
            _ => VmmError::Vsock {
                path: path.into(),
                error: errno.into(),
            },
        };
        let (listener, file) = socket::listen(path, SocketFlags::NONBLOCK).map_err(failed)?;

        files::allow_many();
        let clock = TimerfdClockId::Monotonic;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let error = |error| VmmError::Vsock {
            path: path.into(),
            error,
        };
        let connector = Connector::start(path, || file.remove()).map_err(error)?;
        std::mem::forget(file); // the process removes it
        let shared = Shared {
            connector: Mutex::new(Some(connector)),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?,
            timer: rustix::time::timerfd_create(clock, flags).map_err(failed)?,
            listener,
        };
        shared.poll(&shared.listener, LISTENER).map_err(failed)?;
        shared.poll(&shared.timer, TIMER).map_err(failed)?;
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The sockets for the device.
    pub fn host(&self) -> Box<dyn Host> {
        Box::new(Peers(self.shared.clone()))
    }

    /// The sockets of the device that is now in `slot`.
    pub fn link(&self, slot: SharedCore) -> Link {
        Link {
            shared: self.shared.clone(),
            slot,
        }
    }
}

impl Link {
    /// Have the device handle the sockets that are ready. Returns whether more may be.
    pub fn process(&self) -> bool {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(BATCH);
        let now = Timespec::default();
        // After EINTR the next call finds the same events.
        let _ = epoll::wait(
            &self.shared.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&now),
        );
        let full = events.len() == BATCH;
        for event in events {
            let (token, flags) = (event.data.u64(), event.flags);
            let hung_up = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            lock(&self.slot).with_device(|device: &mut Vsock, driver| match token {
                LISTENER => device.callers(driver),
                TIMER => device.tick(driver),
                id => device.ready(driver, id, hung_up),
            });
        }
        full
    }
}

impl Shared {
    fn poll(&self, fd: impl AsFd, token: Id) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token), READABLE)
    }

    /// Switch the notification of room in `fd` on or off; room that exists already is notified.
    fn poll_room(&self, fd: impl AsFd, token: Id, wanted: bool) -> rustix::io::Result<()> {
        let flags = if wanted {
            READABLE | EventFlags::OUT
        } else {
            READABLE
        };
        epoll::modify(&self.epoll, fd, EventData::new_u64(token), flags)
    }
}

/// The programs on the host that the device can reach.
struct Peers(Arc<Shared>);

impl Peers {
    /// The stream of a connected socket.
    ///
    /// # Errors
    /// The peer is another user, or too few descriptors are left.
    fn stream(&self, fd: OwnedFd, id: Id) -> io::Result<Box<dyn Stream>> {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        // The kernel gives the lowest free number, so this number grows with the descriptors of all devices.
        if fd.as_raw_fd() as u64 + RESERVE >= limit {
            return Err(Errno::MFILE.into());
        }
        if !socket::is_ours(&fd) {
            return Err(Errno::ACCESS.into());
        }
        self.0.poll(&fd, id)?;
        Ok(Box::new(Socket {
            fd,
            id,
            full: false,
            shared: self.0.clone(),
        }))
    }
}

impl Host for Peers {
    fn accept(&mut self, id: Id) -> io::Result<Box<dyn Stream>> {
        let fd = retry_on_intr(|| net::accept_with(&self.0.listener, NEW))?;
        self.stream(fd, id)
    }

    fn connect(&mut self, port: u32, id: Id) -> io::Result<Box<dyn Stream>> {
        let connector = lock(&self.0.connector);
        let connector = connector.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let fd = connector.connect(port)?;
        self.stream(fd, id)
    }

    fn tick_later(&mut self) {
        let seconds = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
        let once = Itimerspec {
            it_interval: seconds(0),
            it_value: seconds(TICK_S),
        };
        // It cannot fail with a valid descriptor and time.
        let _ = rustix::time::timerfd_settime(&self.0.timer, TimerfdTimerFlags::empty(), &once);
    }
}

/// A socket that is connected to a program on the host.
struct Socket {
    fd: OwnedFd,
    id: Id,
    /// Whether the last write found no room: only then room is waited for, since otherwise each read by
    /// the program would wake hull.
    full: bool,
    shared: Arc<Shared>,
}

impl Stream for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (len, _) = retry_on_intr(|| net::recv(&self.fd, &mut *buffer, RecvFlags::empty()))?;
        Ok(len)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = retry_on_intr(|| net::send(&self.fd, bytes, SendFlags::NOSIGNAL));
        let full = written == Err(Errno::AGAIN);
        if full != self.full {
            self.shared.poll_room(&self.fd, self.id, full)?;
            self.full = full;
        }
        Ok(written?)
    }

    fn shutdown(&mut self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => net::Shutdown::Read,
            Shutdown::Write => net::Shutdown::Write,
            Shutdown::Both => net::Shutdown::Both,
        };
        // It fails if the peer has closed the connection.
        let _ = net::shutdown(&self.fd, how);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_path_is_used_once_and_released() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        let sockets = Sockets::new(&path).unwrap();
        let again = Sockets::new(&path).map(drop);
        assert!(matches!(again, Err(VmmError::VsockExists { .. })));
        assert!(path.exists(), "removed while it is in use");
        drop(sockets);
        assert!(!path.exists());
    }

    #[test]
    fn programs_connect_and_are_connected_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        let sockets = Sockets::new(&path).unwrap();
        let mut host = sockets.host();
        let kind = |result: io::Result<Box<dyn Stream>>| result.map(drop).unwrap_err().kind();
        assert_eq!(kind(host.accept(1)), ErrorKind::WouldBlock);
        let caller = UnixStream::connect(&path).unwrap();
        let mut stream = host.accept(1).unwrap();
        assert_eq!(stream.write(b"a").unwrap(), 1);
        let mut byte = [0];
        assert_eq!(
            stream.read(&mut byte).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        drop(caller);
        // An error, and no SIGPIPE.
        assert_eq!(
            stream.write(b"b").unwrap_err().kind(),
            ErrorKind::BrokenPipe
        );

        assert_eq!(kind(host.connect(53, 2)), ErrorKind::NotFound);
        let server = UnixListener::bind(folder.path().join("v_53")).unwrap();
        host.connect(53, 2).unwrap();
        // A listener that never accepts does not block hull.
        let full = (3..10_000).find_map(|id| host.connect(53, id).err());
        assert_eq!(full.unwrap().kind(), ErrorKind::WouldBlock);
        drop(server);
        assert_eq!(kind(host.connect(53, 2)), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn room_is_notified_after_there_was_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        let sockets = Sockets::new(&path).unwrap();
        let told = || {
            let mut events: Vec<epoll::Event> = Vec::with_capacity(BATCH);
            let now = Timespec::default();
            let space = rustix::buffer::spare_capacity(&mut events);
            epoll::wait(&sockets.shared.epoll, space, Some(&now)).unwrap();
            let of = events.iter().filter(|event| event.data.u64() == 1);
            of.map(|event| event.flags).collect::<Vec<_>>()
        };
        let mut caller = UnixStream::connect(&path).unwrap();
        let mut stream = sockets.host().accept(1).unwrap();
        assert_eq!(stream.write(b"a").unwrap(), 1);
        caller.read_exact(&mut [0]).unwrap();
        assert_eq!(told(), []);
        let mut written = 0;
        let full = loop {
            match stream.write(&[0; 4096]) {
                Ok(len) => written += len,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        assert_eq!(told(), []);
        caller.read_exact(&mut vec![0; written]).unwrap();
        assert_eq!(told(), [EventFlags::OUT]);
        assert_eq!(stream.write(b"b").unwrap(), 1);
        caller.read_exact(&mut [0]).unwrap();
        assert_eq!(told(), []);
    }
}
