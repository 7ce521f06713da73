//! Processes that do for a machine what none of its threads may: connect to programs of the host for the
//! socket device, and remove the files of sockets at the end, however hull ends.
//!
//! ```text
//!   thread of the device --- number of a port ---> connector --- connect(2) ---> PREFIX_PORT
//!                        <-- errno, a socket ----
//! ```
//! It holds the name before the number: whoever has taken over the device's thread reaches no other socket.

use std::ffi::{CString, OsString};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    recvmsg, send, sendmsg, socket_with,
};

use super::confine::{Reach, SandboxError, enter, rules};
use super::lockdown::lock_down;
use super::process::Process;
use super::role::Role;
use super::seccomp::restrict_calls;

/// Connects to the Unix sockets whose paths are one prefix, `_` and a number.
pub struct Connector(Process);

/// Does something once it is dropped, or this process has ended.
pub struct AtEnd(#[expect(dead_code, reason = "it is dropped")] Process);

impl AtEnd {
    /// Start the process that does `work`: it may remove files in the folder of `path`, and look at others.
    ///
    /// # Errors
    /// The host has no descriptor or process left; then `work` is dropped.
    pub fn start(path: &Path, work: impl FnOnce()) -> io::Result<Self> {
        let wait =
            |far: &OwnedFd| while let Ok((1.., _)) = recv(far, &mut [0], RecvFlags::empty()) {};
        start(Role::AtEnd, path, wait, work).map(Self)
    }
}

/// Start the process of `role`: it does `work` as long as the other end of its socket is open, and then
/// `last`. Of files it may only remove those in the folder of `path`.
fn start(
    role: Role,
    path: &Path,
    work: impl FnOnce(&OwnedFd),
    last: impl FnOnce(),
) -> io::Result<Process> {
    Process::start(role, None, |far, _| {
        // Without its restrictions it does not begin.
        if lock_down().is_ok() && stay_in_folder_of(path).is_ok() {
            restrict_calls(role);
            work(&far);
            last();
        }
    })
}

impl Connector {
    /// Start the process, which does `last` at its end.
    ///
    /// # Errors
    /// The host has no descriptor or process left.
    pub fn start(prefix: &Path, last: impl FnOnce()) -> io::Result<Self> {
        let work = |far: &OwnedFd| {
            let mut port = [0; 4];
            // Until the machine's hull has closed the other end.
            while let Ok((4, _)) = recv(far, &mut port, RecvFlags::empty()) {
                let connected = reach(prefix, u32::from_ne_bytes(port));
                let errno = connected
                    .as_ref()
                    .err()
                    .map_or(0, |errno| errno.raw_os_error());
                if answer(far, errno, connected.ok()).is_err() {
                    break;
                }
            }
        };
        start(Role::Connector, prefix, work, last).map(Self)
    }

    /// A nonblocking socket that is connected to the program at `port`.
    ///
    /// # Errors
    /// As connect(2); [`io::ErrorKind::BrokenPipe`] if the process was ended.
    pub fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        let lost = || io::Error::from(io::ErrorKind::BrokenPipe);
        let socket = self.0.socket()?;
        retry_on_intr(|| send(socket, &port.to_ne_bytes(), SendFlags::NOSIGNAL))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut answer = [0; 4];
        let mut into = [IoSliceMut::new(&mut answer)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = retry_on_intr(|| recvmsg(socket, &mut into, &mut control, flags))?;
        if received.bytes != answer.len() {
            return Err(lost());
        }
        let mut sockets = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
            _ => None,
        });
        match (i32::from_ne_bytes(answer), sockets.next()) {
            (0, Some(socket)) => Ok(socket),
            (0, None) => Err(Errno::MFILE.into()), // this process has no descriptor left for it
            (errno, _) => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Confine this process to removing files in the folder of `path`.
fn stay_in_folder_of(path: &Path) -> Result<(), SandboxError> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(CWD, folder.unwrap_or(Path::new(".")), flags, Mode::empty());
    let folder = folder.map_err(io::Error::from)?;
    if let Some(rules) = rules(&[(folder.as_fd(), Reach::RemoveFiles)])? {
        enter(&rules)?;
    }
    Ok(())
}

fn reach(prefix: &Path, port: u32) -> Result<OwnedFd, Errno> {
    let mut path = OsString::from(prefix).into_vec();
    path.extend(format!("_{port}").into_bytes());
    let address = SocketAddrUnix::new(CString::new(path).map_err(|_| Errno::INVAL)?)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // It does not block: EAGAIN while the listener's backlog is full.
    connect(&socket, &address)?;
    Ok(socket)
}

fn answer(to: &OwnedFd, errno: i32, socket: Option<OwnedFd>) -> rustix::io::Result<()> {
    let sockets = socket.as_ref().map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(socket) = &sockets {
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(
            socket,
        )));
    }
    let errno = errno.to_ne_bytes();
    let bytes = [IoSlice::new(&errno)];
    retry_on_intr(|| sendmsg(to, &bytes, &mut control, SendFlags::NOSIGNAL)).map(drop)
}
