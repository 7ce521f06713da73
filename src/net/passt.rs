//! Networks without privileges: passt(1), a program of its own that makes sockets of the host out
//! of what the guest sends. One process a network, at the other end of a socket pair.
//!
//! It ends by itself when hull's end of the pair is closed, by whatever end of hull's.

use std::io::{ErrorKind, Read};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use super::stream::Stream;
use super::{NetError, Protocol, Publish, Subnet};
use crate::devices::virtio::net::{Mac, Wire};

/// Most bytes of a packet: what passt takes. Long ones are few, and there is nothing to cut.
pub const MTU: u16 = 65520;
/// How long passt may take to come up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of its messages that are shown.
const TEXT_MOST: usize = 2000;

/// A running passt.
#[derive(Debug)]
pub struct Passt {
    child: Child,
    /// Frames, as a [`Stream`] has them.
    pub socket: Arc<OwnedFd>,
    /// Nonblocking on both sides: whoever says much is not held up.
    messages: std::fs::File,
    publish: Vec<Publish>,
}

/// The addresses of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The guest's.
    pub guest: Subnet,
    /// The host's.
    pub gateway: Ipv4Addr,
    /// Queries to it go to the host's own server.
    pub dns: Ipv4Addr,
}

impl Passt {
    /// Start it; [`Passt::wait`] says when it is up.
    ///
    /// # Errors
    /// It is not installed, or no process or descriptor can be had.
    pub fn start(addresses: &Addresses, publish: &[Publish]) -> Result<Self, NetError> {
        let failed = |errno: Errno| NetError::Passt {
            error: errno.into(),
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (socket, far) = pair.map_err(failed)?;
        let (messages, writer) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(failed)?;
        // The one descriptor that it inherits; nothing else is started meanwhile.
        fcntl_setfd(&far, FdFlags::empty()).map_err(failed)?;
        let mut command = Command::new("passt");
        command.args(["--foreground", "--quiet", "--fd"]);
        command.arg(far.as_raw_fd().to_string());
        command
            .arg("--address")
            .arg(addresses.guest.address.to_string());
        command
            .arg("--netmask")
            .arg(addresses.guest.prefix.to_string());
        command.arg("--gateway").arg(addresses.gateway.to_string());
        command.arg("--dns-forward").arg(addresses.dns.to_string());
        command.arg("--mtu").arg(MTU.to_string());
        for (protocol, flag) in [(Protocol::Tcp, "-t"), (Protocol::Udp, "-u")] {
            let mut some = false;
            for publish in publish
                .iter()
                .filter(|publish| publish.protocol == protocol)
            {
                let Publish {
                    address,
                    host,
                    guest,
                    ..
                } = publish;
                command.arg(flag).arg(format!("{address}/{host}:{guest}"));
                some = true;
            }
            if !some {
                command.args([flag, "none"]);
            }
        }
        let child = command
            // A Ctrl-C is for hull to make something of.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(writer)
            .spawn();
        drop(far);
        let child = child.map_err(|error| match error.kind() {
            ErrorKind::NotFound => NetError::PasstMissing,
            _ => NetError::Passt { error },
        })?;
        Ok(Self {
            child,
            socket: Arc::new(socket),
            messages: messages.into(),
            publish: publish.to_vec(),
        })
    }

    /// Wait until it answers: somebody at `mac` asks for the gateway's address (RFC 826), which
    /// it does once all ports are open. Its frames are the guest's from then on.
    ///
    /// # Errors
    /// It ended, with its reason; or it does not answer.
    pub fn wait(&mut self, mac: Mac, addresses: &Addresses) -> Result<Box<dyn Wire>, NetError> {
        let started = Instant::now();
        let mut stream = Stream::new(self.socket.clone(), addresses.gateway);
        stream.push(&question(mac, addresses));
        loop {
            let answer = stream
                .push_out()
                .and_then(|()| stream.next().map(is_answer));
            match answer {
                Ok(true) => return Ok(Box::new(stream)),
                Ok(false) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let left = PATIENCE.saturating_sub(started.elapsed());
                    if left.is_zero() {
                        return Err(self.failed());
                    }
                    let left = Timespec::try_from(left).ok();
                    let mut fds = [PollFd::new(&*self.socket, PollFlags::IN)];
                    match poll(&mut fds, left.as_ref()) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(errno) => {
                            return Err(NetError::Passt {
                                error: errno.into(),
                            });
                        }
                    }
                }
                Err(_) => return Err(self.failed()),
            }
        }
    }

    /// Why it is not up: its own words.
    fn failed(&mut self) -> NetError {
        // Of one that still runs there may be no words; it has had its time.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mut text = vec![0; TEXT_MOST];
        let len = self.messages.read(&mut text).unwrap_or(0);
        let text = String::from_utf8_lossy(text.get(..len).unwrap_or_default());
        let lines = text.lines().map(|line| line.replace(char::is_control, " "));
        let lines: Vec<String> = lines.filter(|line| is_a_reason(line)).collect();
        let reason = match lines.is_empty() {
            true => "it does not answer, and says nothing".into(),
            false => lines.join("; "),
        };
        let publish = self.publish.iter().map(|publish| format!(",{publish}"));
        NetError::PasstFailed {
            publish: publish.collect(),
            reason,
        }
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a line of passt's tells of more than that it changes its user or has no syslog.
fn is_a_reason(line: &str) -> bool {
    let chatter = ["Failed to send ", "Don't run as root", "Started as root"];
    !line.trim().is_empty() && !chatter.iter().any(|start| line.starts_with(start))
}

/// Who has the gateway's address? (RFC 826, over Ethernet.)
fn question(mac: Mac, addresses: &Addresses) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(addresses.guest.address.octets());
    frame.extend([0; 6]);
    frame.extend(addresses.gateway.octets());
    frame
}

/// Whether a frame is an answer to such a question.
fn is_answer(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x08, 0x06]) && frame.get(20..22) == Some(&[0, 2])
}
