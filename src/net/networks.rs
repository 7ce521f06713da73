//! The networks that a user has made: a folder for each, and a switch as long as machines are in it.
//!
//! ```text
//!  DATA/hull/networks/NAME/  record  its addresses, JSON
//!                            lock    locked (flock) by its switch as long as that lives
//!                            socket  of its switch, for the machines that join
//! ```

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::address::Subnet;
use super::config;
use super::policy::Policy;
use super::switch::{self, Member};

const RECORD: &str = "record";
const LOCK: &str = "lock";
const SOCKET: &str = "socket";
/// Longest record in bytes.
const MAX_RECORD: u64 = 64 << 10;
/// Where networks lie unless the user says otherwise: 10.90.0.0/24, 10.90.1.0/24 and so on.
const FIRST: [u8; 2] = [10, 90];
/// Bits of their prefixes.
const PREFIX: u8 = 24;
/// Prefixes that a network may have: at least a router and five machines.
const PREFIXES: std::ops::RangeInclusive<u8> = 8..=29;
/// Attempts to connect to a switch that is just started or ends, and the time between two.
const TRIES: u32 = 100;
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// Why there is no network, or it cannot be used.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// No place for the folder.
    #[error("no folder for networks; set XDG_DATA_HOME or HOME to a folder of yours")]
    NoPlace,
    /// A name that no network can have.
    #[error("{0}")]
    Name(String),
    /// There is one of that name.
    #[error("network with name {name} already exists; hull network rm {name} removes it")]
    Taken {
        /// The name that was asked for.
        name: String,
    },
    /// There is none of that name.
    #[error("network {name} not found; hull network ls lists them, hull network create makes one")]
    Unknown {
        /// The name that was asked for.
        name: String,
    },
    /// Another one has the same addresses.
    #[error(
        "--subnet {subnet}: its addresses overlap with those of network {other}; choose others"
    )]
    Overlaps {
        /// The addresses that were asked for.
        subnet: String,
        /// The network that has some of them.
        other: String,
    },
    /// None is free.
    #[error("all of 10.90.0.0/16 is in use; choose addresses by --subnet")]
    NoSubnet,
    /// Machines are in it.
    #[error("network {name} has active endpoints: {}; hull stop ends machines", machines.join(", "))]
    Used {
        /// The network's name.
        name: String,
        /// The names of the machines.
        machines: Vec<String>,
    },
    /// Its switch does not start, or does not do what it should.
    #[error("network {name}: {reason}")]
    Switch {
        /// The network's name.
        name: String,
        /// What the switch said, or the error of the host.
        reason: String,
    },
    /// A file or folder cannot be made, read or removed.
    #[error("{}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The error of the host.
        source: io::Error,
    },
}

/// What is known of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name, which is also the folder's.
    pub name: String,
    /// Its addresses; the one in it is that of its router and name server.
    pub subnet: Subnet,
    /// Whether it has no way to other networks.
    pub internal: bool,
    /// When it was made, in seconds of Unix time.
    pub created: u64,
    /// The project that made it, if one did.
    #[serde(default)]
    pub project: Option<String>,
    /// What may leave it, for machines without rules of their own.
    #[serde(default)]
    pub policy: Policy,
}

/// What leads out of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Nothing.
    pub internal: bool,
    /// What may leave a machine.
    pub policy: Policy,
}

/// The networks of this user.
#[derive(Debug)]
pub struct Networks {
    path: PathBuf,
}

/// A network.
#[derive(Debug)]
pub struct Network {
    folder: File,
    path: PathBuf,
    /// What is known of it.
    pub record: Record,
}

/// Parse the addresses of a network. The address in the result is the network's first, which is its router's.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn parse_subnet(text: &str) -> Result<Subnet, String> {
    let wrong =
        || "write ADDRESS/PREFIX, such as 10.20.0.0/24, with a prefix from 8 to 29".to_string();
    let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
    let prefix = prefix.parse().ok().filter(|it| PREFIXES.contains(it));
    let prefix = prefix.ok_or_else(wrong)?;
    let subnet = Subnet { address, prefix };
    let first = subnet.stations().next().ok_or_else(wrong)?;
    // No machine can have these (RFC 6890).
    let unusable =
        first.is_loopback() || first.is_multicast() || matches!(first.octets(), [0 | 240.., ..]);
    match unusable {
        true => Err(format!(
            "no machine can have an address of {text}; 10.0.0.0/8 is for networks of one's own"
        )),
        false => Ok(Subnet {
            address: first,
            prefix,
        }),
    }
}

impl Networks {
    /// Open the folder of networks, and make it if need be.
    ///
    /// # Errors
    /// There is no place for it.
    pub fn open() -> Result<Self, NetworkError> {
        let absolute = |name| {
            let path = std::env::var_os(name).map(PathBuf::from);
            path.filter(|path| path.is_absolute())
        };
        let data = absolute("XDG_DATA_HOME");
        let data = data.or_else(|| Some(absolute("HOME")?.join(".local/share")));
        let path = data.ok_or(NetworkError::NoPlace)?.join("hull/networks");
        let mut folders = DirBuilder::new();
        let made = folders.recursive(true).mode(0o700).create(&path);
        made.map_err(failed(&path))?;
        Ok(Self { path })
    }

    /// All of them, sorted by name.
    pub fn list(&self) -> Vec<Network> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut all: Vec<Network> = names.filter_map(|name| self.find(&name).ok()).collect();
        all.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        all
    }

    /// The network of this name.
    ///
    /// # Errors
    /// [`NetworkError::Unknown`].
    pub fn find(&self, name: &str) -> Result<Network, NetworkError> {
        let unknown = || NetworkError::Unknown { name: name.into() };
        config::shared(name).map_err(|_| unknown())?;
        let path = self.path.join(name);
        let folder = File::open(&path).map_err(|_| unknown())?;
        let record = path.join(RECORD);
        let small = fs::metadata(&record).is_ok_and(|it| it.is_file() && it.len() <= MAX_RECORD);
        let text = small.then(|| fs::read(&record).ok()).flatten();
        let record = text.and_then(|text| serde_json::from_slice(&text).ok());
        Ok(Network {
            folder,
            path,
            record: record.ok_or_else(unknown)?,
        })
    }

    /// Make a network; with addresses that no other one has unless `subnet` names some.
    ///
    /// # Errors
    /// The name or the addresses are taken.
    pub fn create(
        &self,
        name: &str,
        subnet: Option<Subnet>,
        way: Ways,
        project: Option<String>,
    ) -> Result<Network, NetworkError> {
        config::shared(name).map_err(NetworkError::Name)?;
        // One at a time: two that are made at once must not have the same addresses.
        let place = File::open(&self.path).map_err(failed(&self.path))?;
        flock(&place, FlockOperation::LockExclusive).map_err(|it| failed(&self.path)(it.into()))?;
        if self.find(name).is_ok() {
            return Err(NetworkError::Taken { name: name.into() });
        }
        let subnet = self.subnet(subnet)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let record = Record {
            name: name.into(),
            subnet,
            internal: way.internal,
            created: now.map_or(0, |now| now.as_secs()),
            project,
            policy: way.policy,
        };
        let path = self.path.join(name);
        let mut folder = DirBuilder::new();
        // One that was killed may have left it, without a record.
        let made = folder.recursive(true).mode(0o700).create(&path);
        made.map_err(failed(&path))?;
        let fresh = path.join("record.new");
        let text = serde_json::to_vec(&record).unwrap_or_default();
        let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, path.join(RECORD)));
        written.map_err(failed(&fresh))?;
        self.find(name)
    }

    fn subnet(&self, wanted: Option<Subnet>) -> Result<Subnet, NetworkError> {
        let there = self.list();
        let other = |subnet: &Subnet| there.iter().find(|it| it.record.subnet.overlaps(*subnet));
        if let Some(subnet) = wanted {
            return match other(&subnet) {
                None => Ok(subnet),
                Some(other) => Err(NetworkError::Overlaps {
                    subnet: show(subnet),
                    other: other.record.name.clone(),
                }),
            };
        }
        let routes = routes(&fs::read_to_string("/proc/net/route").unwrap_or_default());
        let [a, b] = FIRST;
        let all = (0..=u8::MAX).map(|c| Subnet {
            address: Ipv4Addr::new(a, b, c, 1),
            prefix: PREFIX,
        });
        let is_free = |subnet: &Subnet| {
            other(subnet).is_none() && !routes.iter().any(|route| route.overlaps(*subnet))
        };
        let mut free = all.filter(is_free);
        free.next().ok_or(NetworkError::NoSubnet)
    }
}

/// The networks to which the host has routes of their own, by its /proc/net/route: addresses in the order of the
/// host's bytes.
fn routes(text: &str) -> Vec<Subnet> {
    let route = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok();
        let (address, mask) = (number(1)?, number(7)?);
        Some(Subnet {
            address: Ipv4Addr::from(address.to_ne_bytes()),
            prefix: mask.count_ones() as u8,
        })
    };
    let all = text.lines().skip(1).filter_map(route);
    all.filter(|route| route.prefix > 0).collect()
}

/// A network's addresses as they are written.
pub fn show(subnet: Subnet) -> String {
    let bits = subnet.address.to_bits();
    let rest = u32::MAX.checked_shr(subnet.prefix.into()).unwrap_or(0);
    format!("{}/{}", Ipv4Addr::from_bits(bits & !rest), subnet.prefix)
}

impl Network {
    /// A path in its folder that is short enough for a socket.
    fn inside(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.folder.as_raw_fd()).into()
    }

    /// Connect to its switch; `None` if none runs.
    pub fn connect(&self) -> Option<UnixStream> {
        UnixStream::connect(self.inside(SOCKET)).ok()
    }

    /// Start its switch, if none runs, and connect to it.
    ///
    /// # Errors
    /// [`NetworkError::Switch`].
    pub fn start(&self) -> Result<UnixStream, NetworkError> {
        for _ in 0..TRIES {
            if let Some(stream) = self.connect() {
                return Ok(stream);
            }
            let mut hull = Command::new("/proc/self/exe");
            hull.args(["network", "serve", &self.record.name]);
            hull.stdin(Stdio::null()).stdout(Stdio::null());
            let done = hull
                .output()
                .map_err(|error| self.failed(error.to_string()))?;
            if !done.status.success() {
                let said = String::from_utf8_lossy(&done.stderr);
                return Err(self.failed(said.trim().trim_start_matches("hull: ").into()));
            }
            if let Some(stream) = self.connect() {
                return Ok(stream);
            }
            // Another one has just ended.
            thread::sleep(RETRY_DELAY);
        }
        Err(self.failed("its switch does not start".into()))
    }

    fn failed(&self, reason: String) -> NetworkError {
        NetworkError::Switch {
            name: self.record.name.clone(),
            reason,
        }
    }

    /// Become its switch: the lock, and the socket to listen on. `None` if there is another one.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(&self) -> Result<Option<(File, OwnedFd)>, NetworkError> {
        let Some(lock) = self.lock()? else {
            return Ok(None);
        };
        let _ = fs::remove_file(self.path.join(SOCKET));
        let path = self.path.join(SOCKET);
        let listener = UnixListener::bind(self.inside(SOCKET)).map_err(failed(&path))?;
        listener.set_nonblocking(true).map_err(failed(&path))?;
        Ok(Some((lock, listener.into())))
    }

    fn lock(&self) -> Result<Option<File>, NetworkError> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let path = self.path.join(LOCK);
        let lock = options.open(&path).map_err(failed(&path))?;
        let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive);
        Ok(locked.is_ok().then_some(lock))
    }

    /// The machines that are in it.
    ///
    /// # Errors
    /// Its switch does not answer.
    pub fn members(&self) -> Result<Vec<Member>, NetworkError> {
        let Some(stream) = self.connect() else {
            return Ok(Vec::new());
        };
        let listed = switch::list(stream);
        listed.map_err(|error| self.failed(format!("its switch does not answer ({error})")))
    }

    /// Remove it, with its switch.
    ///
    /// # Errors
    /// [`NetworkError::Used`].
    pub fn remove(self) -> Result<(), NetworkError> {
        let machines: Vec<String> = self
            .members()?
            .into_iter()
            .flat_map(|it| it.names.into_iter().next())
            .collect();
        if !machines.is_empty() {
            return Err(NetworkError::Used {
                name: self.record.name,
                machines,
            });
        }
        if let Some(stream) = self.connect() {
            switch::end(stream).map_err(|error| self.failed(error.to_string()))?;
        }
        let mut lock = self.lock()?;
        for _ in 0..TRIES {
            if lock.is_some() {
                break;
            }
            thread::sleep(RETRY_DELAY);
            lock = self.lock()?;
        }
        if lock.is_none() {
            return Err(self.failed("its switch does not end".into()));
        }
        // Without its record it is none, whatever stays.
        for name in [RECORD, "record.new", SOCKET, LOCK] {
            match fs::remove_file(self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed(&self.path.join(name))(error));
                }
                _ => {}
            }
        }
        fs::remove_dir(&self.path).map_err(failed(&self.path))
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> NetworkError {
    let path = path.to_path_buf();
    move |source| NetworkError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_a_network_are_checked() {
        let parsed = parse_subnet("10.20.3.7/16").expect("a network");
        assert_eq!(parsed.address, Ipv4Addr::new(10, 20, 0, 1));
        assert_eq!(show(parsed), "10.20.0.0/16");
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/7",
            "10.0.0.0/30",
            "10.0.0/24",
            "127.0.0.0/8",
            "224.0.0.0/8",
            "0.0.0.0/8",
            "255.0.0.0/8",
            "fd00::/64",
        ] {
            assert!(parse_subnet(bad).is_err(), "{bad}");
        }
        for bad in [
            "",
            "a",
            "none",
            "host",
            "a/b",
            "..",
            "-a",
            ".ab",
            &"a".repeat(64),
        ] {
            assert!(config::shared(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_get_different_addresses_and_are_gone_when_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let networks = Networks {
            path: folder.path().into(),
        };
        let (out, inside) = (
            Ways::default(),
            Ways {
                internal: true,
                ..Ways::default()
            },
        );
        let one = networks
            .create("one", None, out.clone(), None)
            .expect("made");
        let two = networks.create("two", None, inside, None).expect("made");
        assert!(!one.record.subnet.overlaps(two.record.subnet));
        let again = networks.create("one", None, out.clone(), None);
        assert!(matches!(again, Err(NetworkError::Taken { .. })));
        let same = networks.create("three", Some(one.record.subnet), out, None);
        assert!(matches!(same, Err(NetworkError::Overlaps { .. })));
        assert_eq!(networks.list().len(), 2);
        one.remove().expect("removed");
        assert!(matches!(
            networks.find("one"),
            Err(NetworkError::Unknown { .. })
        ));
        two.remove().expect("removed");
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 0);
    }

    #[test]
    fn the_hosts_own_networks_are_left_alone() {
        let text = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                    eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\n\
                    eth0\t00005A0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n";
        let routes = routes(text);
        assert_eq!(routes.len(), 1);
        assert_eq!(routes[0].address, Ipv4Addr::new(10, 90, 0, 0));
        assert_eq!(routes[0].prefix, 24);
    }
}
