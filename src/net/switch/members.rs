//! What a machine's hull and the commands for networks say to a switch, and what it replies: JSON in a frame
//! (a length of four bytes, big endian, then the bytes), one request a connection.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Deserialize, Serialize};

use crate::devices::virtio::net::Mac;
use crate::net::config::Publish;
use crate::net::policy::Policy;

/// Time for a switch to reply.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest request in bytes.
pub const MAX_REQUEST: usize = 64 << 10;
/// Most descriptors that come with a request.
pub const MAX_DESCRIPTORS: usize = 2;
/// Longest reply in bytes.
const MAX_REPLY: u32 = 1 << 20;

/// What a switch is asked for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A machine joins: what follows on the connection are frames.
    Join(Wish),
    /// With a descriptor, and perhaps that of a journal: a machine's way to other networks.
    Uplink(Way),
    /// Which machines are in the network?
    List,
    /// It is to end if no machine is in the network.
    End,
}

/// A machine that joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Its name first, and further names in the network.
    pub names: Vec<String>,
    /// The MAC address that it must have; otherwise the one that belongs to its address.
    pub mac: Option<Mac>,
    /// Whether it has another name server, which knows more names.
    pub asks_others: bool,
}

/// A machine's way to other networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// The machine's MAC address.
    pub mac: Mac,
    /// What may leave a machine.
    pub policy: Policy,
    /// Ports by which others reach the machine.
    pub publish: Vec<Publish>,
    /// Addresses of the host.
    pub host: Vec<Ipv4Addr>,
}

/// What a switch replies.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::Join`].
    Joined(Joined),
    /// To [`Request::List`].
    Members(Vec<Member>),
    /// It is done.
    Done,
    /// It is not, and why.
    Refused(String),
}

/// What a machine has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// Its MAC address.
    pub mac: Mac,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
}

/// A machine in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name first, and its further names in the network.
    pub names: Vec<String>,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// Its MAC address.
    pub mac: Mac,
}

/// Join a network, at whose switch `stream` is connected: the connection, which does not block, and what the
/// machine has got.
///
/// # Errors
/// The switch refuses, or does not reply.
pub fn join(mut stream: UnixStream, wish: Wish) -> io::Result<(OwnedFd, Joined)> {
    match ask(&mut stream, &Request::Join(wish), &[])? {
        Reply::Joined(joined) => {
            stream.set_nonblocking(true)?;
            Ok((stream.into(), joined))
        }
        other => Err(unexpected(other)),
    }
}

/// Hand over a machine's way to other networks: a socket with frames, and a file for a journal.
///
/// # Errors
/// The switch refuses, or does not reply.
pub fn hand_over(
    mut stream: UnixStream,
    way: Way,
    uplink: impl AsFd,
    journal: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let descriptors: Vec<_> = [uplink.as_fd()].into_iter().chain(journal).collect();
    match ask(&mut stream, &Request::Uplink(way), &descriptors)? {
        Reply::Done => Ok(()),
        other => Err(unexpected(other)),
    }
}

/// The machines in the network.
///
/// # Errors
/// The switch does not reply.
pub fn list(mut stream: UnixStream) -> io::Result<Vec<Member>> {
    match ask(&mut stream, &Request::List, &[])? {
        Reply::Members(members) => Ok(members),
        other => Err(unexpected(other)),
    }
}

/// Have the switch end.
///
/// # Errors
/// Machines are in the network, or the switch does not reply.
pub fn end(mut stream: UnixStream) -> io::Result<()> {
    match ask(&mut stream, &Request::End, &[])? {
        Reply::Done => Ok(()),
        other => Err(unexpected(other)),
    }
}

fn unexpected(reply: Reply) -> io::Error {
    match reply {
        Reply::Refused(reason) => io::Error::other(reason),
        _ => io::Error::other("its switch is of another version"),
    }
}

fn ask(
    stream: &mut UnixStream,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<Reply> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let bytes = framed(request);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let flags = SendFlags::NOSIGNAL;
    let sent = sendmsg(&*stream, &[IoSlice::new(&bytes)], &mut control, flags)?;
    stream.write_all(bytes.get(sent..).unwrap_or_default())?;
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len);
    if len > MAX_REPLY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut reply = vec![0; len as usize];
    stream.read_exact(&mut reply)?;
    Ok(serde_json::from_slice(&reply)?)
}

/// A request or a reply as a frame.
pub fn framed(message: &impl Serialize) -> Vec<u8> {
    let text = serde_json::to_vec(message).unwrap_or_default();
    [&(text.len() as u32).to_be_bytes()[..], &text].concat()
}

/// The request in `bytes`: `None` if they are the beginning of one.
///
/// # Errors
/// They are none.
pub fn request(bytes: &[u8]) -> io::Result<Option<Request>> {
    let Some((len, text)) = bytes.split_first_chunk() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(*len) as usize;
    match len {
        _ if len > MAX_REQUEST || text.len() > len => Err(io::ErrorKind::InvalidData.into()),
        _ if text.len() < len => Ok(None),
        _ => Ok(Some(serde_json::from_slice(text)?)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_arrives_in_any_pieces_and_nothing_behind_it() {
        let wish = Wish {
            names: vec!["db".into()],
            mac: None,
            asks_others: true,
        };
        let bytes = framed(&Request::Join(wish.clone()));
        for len in 0..bytes.len() {
            assert_eq!(request(&bytes[..len]).expect("the beginning"), None);
        }
        let whole = request(&bytes).expect("whole");
        assert_eq!(whole, Some(Request::Join(wish)));
        assert!(request(&[bytes, vec![0]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn other_bytes_are_no_request(bytes in prop::collection::vec(any::<u8>(), 4..60)) {
            prop_assert!(!matches!(request(&bytes), Ok(Some(_))));
        }
    }
}
