//! Networks without privileges: passt(1), a program that turns the guest's packets into sockets of
//! the host. One process a network, at the other end of a socket pair.
//!
//! It ends by itself when hull's end of the pair is closed, however hull ends.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio, retry_on_intr};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use rustix::thread::{CapabilitySet, capabilities};

use super::config::{Protocol, Publish, Subnet, show_mac};
use super::error::NetError;
use super::stream::Stream;
use crate::devices::virtio::net::Mac;

/// Bytes of the longest packet that passt takes: with long packets there is nothing to segment.
pub const MTU: u16 = 65520;
/// The gateway's MAC address on a host without a route: a locally administered one.
const LOCAL_MAC: &str = "02:00:00:00:00:02";
/// Time for passt to start.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for passt to end.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of its messages that are shown.
const MAX_TEXT: usize = 2000;

/// A running passt.
#[derive(Debug)]
pub struct Passt {
    child: Child,
    /// By which it is ended and waited for: the thread of a network may send no other signal. `None` on a
    /// host without such descriptors (before Linux 5.3); passt ends by itself when the socket is closed.
    process: Option<OwnedFd>,
    /// Carries frames in the format of [`Stream`].
    pub socket: Arc<OwnedFd>,
    /// Standard error of passt. Nonblocking on both sides, so that passt never waits for hull.
    messages: std::fs::File,
    publish: Vec<Publish>,
}

/// The addresses of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The guest's address.
    pub guest: Subnet,
    /// The host, as the guest sees it.
    pub gateway: Ipv4Addr,
    /// Queries to it are forwarded to the host's name server.
    pub dns: Ipv4Addr,
    /// Whether the gateway's address leads to the host's loopback.
    pub host_loopback: bool,
    /// The gateway's MAC address in a network that machines share; passt's own choice if `None`.
    pub router: Option<Mac>,
    /// Whether there is IPv4 alone.
    pub ipv4_only: bool,
}

impl Passt {
    /// Start it; [`Passt::wait`] returns when it is up.
    ///
    /// # Errors
    /// It is not installed, or no process or file descriptor is left.
    pub fn start(addresses: &Addresses, publish: &[Publish]) -> Result<Self, NetError> {
        let failed = |errno: Errno| NetError::Passt {
            error: errno.into(),
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (socket, far) = pair.map_err(failed)?;
        // passt sends the rest of a frame of which a part was sent in one more call, which has to wait.
        ioctl_fionbio(&far, false).map_err(failed)?;
        let (messages, writer) =
            pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(failed)?;
        // The one descriptor that it inherits; no other program is started at the same time.
        fcntl_setfd(&far, FdFlags::empty()).map_err(failed)?;
        let mut command = command(addresses, publish, &far);
        let child = command
            // Ctrl-C signals only hull.
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
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok();
        Ok(Self {
            child,
            process,
            socket: Arc::new(socket),
            messages: messages.into(),
            publish: publish.to_vec(),
        })
    }

    /// Wait until all ports are open: from then on passt answers a request for the gateway's address
    /// (RFC 826), made from `mac`. Later frames are the guest's.
    ///
    /// # Errors
    /// It has ended, with its messages; or it does not answer.
    pub fn wait(&mut self, mac: Mac, addresses: &Addresses) -> Result<Stream, NetError> {
        let started = Instant::now();
        let (gateway, host_loopback) = (addresses.gateway, addresses.host_loopback);
        let mut stream = Stream::new(self.socket.clone(), gateway, host_loopback);
        stream.push(&question(mac, addresses));
        loop {
            let answer = stream
                .push_out()
                .and_then(|()| stream.next().map(is_answer));
            match answer {
                Ok(true) => return Ok(stream),
                Ok(false) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let left = START_TIMEOUT.saturating_sub(started.elapsed());
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

    /// End it. It does so itself when its connection is closed, and as root it has become another user,
    /// whom hull may not signal after the lock-down.
    fn end(&mut self) {
        let _ = shutdown(&*self.socket, Shutdown::Both);
        if let Some(process) = &self.process {
            let _ = pidfd_send_signal(process, Signal::KILL);
            let timeout = Timespec::try_from(END_TIMEOUT).ok();
            let mut fds = [PollFd::new(process, PollFlags::IN)];
            let _ = retry_on_intr(|| poll(&mut fds, timeout.as_ref()));
        }
        let _ = self.child.try_wait();
    }

    /// The error of one that does not serve, with its messages.
    fn failed(&mut self) -> NetError {
        self.end();
        let mut text = vec![0; MAX_TEXT];
        let len = self.messages.read(&mut text).unwrap_or(0);
        let text = String::from_utf8_lossy(text.get(..len).unwrap_or_default());
        let lines = text.lines().map(|line| line.replace(char::is_control, " "));
        let lines: Vec<String> = lines.filter(|line| is_a_reason(line)).collect();
        let reason = if lines.is_empty() {
            "it does not answer, without a message".into()
        } else {
            lines.join("; ")
        };
        let publish = self.publish.iter().map(|publish| format!(",{publish}"));
        NetError::PasstFailed {
            publish: publish.collect(),
            reason,
        }
    }
}

/// The command line of passt, which serves frames on the descriptor `far`.
fn command(addresses: &Addresses, publish: &[Publish], far: &OwnedFd) -> Command {
    let mut command = Command::new("passt");
    command.args(["--foreground", "--quiet"]);
    for (flag, value) in [
        ("--fd", far.as_raw_fd().to_string()),
        ("--address", addresses.guest.address.to_string()),
        ("--netmask", addresses.guest.prefix.to_string()),
        ("--gateway", addresses.gateway.to_string()),
        ("--dns-forward", addresses.dns.to_string()),
        ("--mtu", MTU.to_string()),
    ] {
        command.arg(flag).arg(value);
    }
    if !addresses.host_loopback {
        command.arg("--no-map-gw");
    }
    if geteuid().is_root() && !can_change_user() {
        // passt would become the user nobody, and gives up where it cannot.
        command.args(["--runas", "0:0"]);
    }
    let mut router = addresses.router.map(show_mac);
    if !has_route() {
        // passt takes its MAC address from the interface of the default route, and gives up without one.
        command.args(["--interface", "lo"]);
        router.get_or_insert_with(|| LOCAL_MAC.into());
    }
    if addresses.ipv4_only {
        command.arg("--ipv4-only");
    }
    if let Some(router) = router {
        command.arg("--mac-addr").arg(router);
    }
    for (protocol, flag) in [(Protocol::Tcp, "-t"), (Protocol::Udp, "-u")] {
        let mut ports = publish
            .iter()
            .filter(|it| it.protocol == protocol)
            .peekable();
        if ports.peek().is_none() {
            command.args([flag, "none"]);
        }
        for Publish {
            address,
            host,
            guest,
            ..
        } in ports
        {
            command.arg(flag).arg(format!("{address}/{host}:{guest}"));
        }
    }
    command
}

/// Whether a program that is started now could: after the lock-down, and in some containers, root cannot.
fn can_change_user() -> bool {
    let needed = CapabilitySet::SETGID | CapabilitySet::SETUID;
    capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Whether this host has a route to addresses elsewhere: those for documentation (RFC 5737, RFC 3849), to
/// which nothing is sent.
fn has_route() -> bool {
    [("0.0.0.0", "192.0.2.1"), ("::", "2001:db8::1")]
        .iter()
        .any(|(own, other)| {
            let socket = UdpSocket::bind((*own, 0));
            socket.is_ok_and(|socket| socket.connect((*other, 9)).is_ok())
        })
}

impl Drop for Passt {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether a line of passt is about more than a change of its user or a missing syslog.
fn is_a_reason(line: &str) -> bool {
    let chatter = ["Failed to send ", "Don't run as root", "Started as root"];
    !line.trim().is_empty() && !chatter.iter().any(|start| line.starts_with(start))
}

/// An ARP request for the gateway's address (RFC 826, over Ethernet).
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

/// Whether a frame is an ARP reply.
fn is_answer(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x08, 0x06]) && frame.get(20..22) == Some(&[0, 2])
}
