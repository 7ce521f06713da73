//! The process of a share: confined to its folder, with the rights over files that hull gives up, and apart
//! from the memory of hull and of the guest.
//!
//! ```text
//!   thread of the share (hull)                             share-server (its process)
//!   guest memory -- copy --> window: message  --+
//!   Call {bytes, room} -------- socket ---------+--> Service, whose guest memory is the window
//!   guest memory <- copy --- window: answer  <--+
//!                <-- Reply {written, flags}, a warning --'
//! ```
//! The window is shared memory of the size of the longest message and the longest answer. hull copies what
//! is written there to the room that the guest has for its answer and looks at nothing in it, so that a
//! server that was taken over answers its guest, and reaches no further.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use vm_memory::GuestAddress;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::config::Config;
use super::error::ShareError;
use super::files::Files;
use super::folder::Share;
use super::service::Service;
use crate::devices::virtio::fs::{Answer, MAX_MESSAGE, Request};
use crate::memory::transfer::{Pieces, Segment};
use crate::memory::{GuestMemory, backing};
use crate::sandbox::{self, Process, Role};

/// Where the room for the answer begins in the window; the message is at 0.
const ANSWER_AT: u64 = MAX_MESSAGE;
/// Most bytes of a warning, or of the reason why there is no server.
const MAX_TEXT: usize = 4096;

/// A request.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Call {
    /// Bytes of the message in the window; 0 to forget all that the guest has opened.
    message: u32,
    /// Bytes of the room for the answer.
    room: u32,
    /// Not 0 if it may wait for a lock.
    may_wait: u32,
}

/// What became of a request; a warning's text may follow.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Reply {
    /// Bytes of the answer in the window.
    written: u32,
    /// Not 0 if it waits for a lock: it is to be asked again.
    waits: u32,
    /// Not 0 if the guest has the file system mounted.
    mounted: u32,
}

/// A share's process before it has anything to serve, confined to its folder already.
pub struct Server {
    tag: String,
    process: Process,
    window: GuestMemory,
}

impl Server {
    /// Start the process of `share`.
    ///
    /// # Errors
    /// The host has no process or memory left, or it could not be confined to its folder.
    pub fn start(share: Share) -> Result<Self, ShareError> {
        let Share { folder, config } = share;
        let tag = config.tag.clone();
        let no_memory = |error| ShareError::Process(io::Error::other(error));
        let window = backing::shared(2 * MAX_MESSAGE).map_err(no_memory)?;
        let theirs = window.clone();
        let main = |socket: OwnedFd, folder: Option<OwnedFd>| {
            let Some(folder) = folder else { return };
            let prepared = prepare(folder.into(), &config).map_err(|error| error.to_string());
            let told = prepared.as_ref().err().map_or("", String::as_str);
            // An empty message would look like an end.
            let mut text = [b".", told.as_bytes()].concat();
            text.truncate(1 + MAX_TEXT);
            if let (Ok(_), Ok(files)) = (send(&socket, &text, SendFlags::NOSIGNAL), prepared) {
                serve(&socket, Service::new(files, theirs));
            }
        };
        let process = Process::start(Role::ShareServer, Some(folder.into()), main);
        let process = process.map_err(ShareError::Process)?;
        let mut told = [0; 1 + MAX_TEXT];
        let socket = process.socket().map_err(ShareError::Process)?;
        let read = retry_on_intr(|| recv(socket, &mut told, RecvFlags::empty()));
        match read.map(|(_, bytes)| told.get(1..bytes).map(String::from_utf8_lossy)) {
            Ok(Some(refused)) if !refused.is_empty() => Err(ShareError::Refused(refused.into())),
            Ok(Some(_)) => Ok(Self {
                tag,
                process,
                window,
            }),
            Ok(None) => Err(ShareError::Process(io::Error::other("it ended at once"))),
            Err(error) => Err(ShareError::Process(error.into())),
        }
    }

    /// The tag by which the guest mounts the share.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

/// The server, seen from hull.
pub(super) struct Remote {
    server: Server,
    memory: GuestMemory,
}

impl Remote {
    /// The `server` for the guest that has `memory`.
    pub fn new(server: Server, memory: GuestMemory) -> Self {
        Self { server, memory }
    }

    /// Have one request served. None if it waits for a lock, which it only does if it `may`: try again.
    ///
    /// # Errors
    /// The server has ended.
    pub fn serve(&mut self, request: &Request, may: bool) -> io::Result<Option<Answer>> {
        let message = Pieces::new(&self.memory, &request.readable)?;
        let room = Pieces::new(&self.memory, &request.writable)?;
        let window = &self.server.window;
        let call = Call {
            message: Pieces::new(window, &part(0, MAX_MESSAGE as u32))?
                .copy_from(&message, message.len()) as u32,
            room: room.len() as u32,
            may_wait: may.into(),
        };
        let (reply, warning) = self.ask(&call)?;
        if reply.waits != 0 {
            return Ok(None);
        }
        let answer = Pieces::new(window, &part(ANSWER_AT, MAX_MESSAGE as u32))?;
        Ok(Some(Answer {
            written: room.copy_from(&answer, reply.written as usize) as u32,
            warning: (!warning.is_empty()).then_some(warning),
            mounted: reply.mounted != 0,
        }))
    }

    /// Have it close and forget all that the guest has opened.
    pub fn reset(&mut self) {
        // If it has ended, the next request says so.
        let _ = self.ask(&Call {
            message: 0,
            room: 0,
            may_wait: 0,
        });
    }

    fn ask(&self, call: &Call) -> io::Result<(Reply, String)> {
        let ended = || io::Error::other("the process that serves it has ended");
        let socket = self.server.process.socket()?;
        let mut space = [0; size_of::<Reply>() + MAX_TEXT];
        let sent = retry_on_intr(|| send(socket, call.as_bytes(), SendFlags::NOSIGNAL));
        let (_, bytes) = sent
            .and_then(|_| retry_on_intr(|| recv(socket, &mut space, RecvFlags::empty())))
            .map_err(|_| ended())?;
        let told = space.get(..bytes).unwrap_or_default();
        let (reply, text) = Reply::read_from_prefix(told).map_err(|_| ended())?;
        Ok((reply, String::from_utf8_lossy(text).into()))
    }
}

/// The process's first steps: give up rights, open the folder, and confine itself to it.
fn prepare(folder: File, config: &Config) -> Result<Files, ShareError> {
    let path = || config.folder.clone();
    let confine = |reason| ShareError::Confine {
        path: path(),
        reason,
    };
    let serve = |reason| ShareError::Serve {
        path: path(),
        reason,
    };
    sandbox::give_up_rights().map_err(confine)?;
    let bounds = folder.try_clone().map_err(serve)?;
    // /proc is out of reach afterwards.
    let files = Files::new(folder.into(), config).map_err(serve)?;
    sandbox::confine(bounds, config.read_only).map_err(confine)?;
    sandbox::restrict_calls(Role::ShareServer);
    Ok(files)
}

/// Serve requests until hull has closed its end of the socket.
fn serve(socket: &OwnedFd, mut service: Service) {
    let mut call = [0; size_of::<Call>()];
    while let Ok((_, 1..)) = recv(socket, &mut call, RecvFlags::empty()) {
        let Ok(call) = Call::read_from_bytes(&call) else {
            return;
        };
        let answer = match call.message {
            0 => {
                service.reset();
                Some(Answer::default())
            }
            bytes => service.serve(
                &Request {
                    readable: part(0, bytes),
                    writable: part(ANSWER_AT, call.room),
                },
                call.may_wait != 0,
            ),
        };
        let waits = answer.is_none().into();
        let answer = answer.unwrap_or_default();
        let reply = Reply {
            written: answer.written,
            waits,
            mounted: answer.mounted.into(),
        };
        let mut warning = answer.warning.unwrap_or_default().into_bytes();
        warning.truncate(MAX_TEXT);
        let reply = [reply.as_bytes(), &warning].concat();
        if retry_on_intr(|| send(socket, &reply, SendFlags::NOSIGNAL)).is_err() {
            return;
        }
    }
}

/// The first `bytes` bytes from `at` on.
fn part(at: u64, bytes: u32) -> Vec<Segment> {
    let one = Segment {
        addr: GuestAddress(at),
        len: bytes,
    };
    if bytes == 0 { vec![] } else { vec![one] }
}
