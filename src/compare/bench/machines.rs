//! Machines whose guest does what it is told: what they start from, how they are started, how they end.
//!
//! The guest is guest/bench with hull's kernel, 1 vCPU and 128 MiB. It calls the host, again and again, and
//! does what the first byte says.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::Bench;
use super::firecracker::CAVEAT;
use super::hull;
use super::turns::{Kind, Trouble, Who};
use crate::compare::measure::stream::Stream;
use crate::compare::measure::timed::Running;
use crate::compare::subject::{self, MEMORY_MIB};
use crate::guest;

/// Bytes of a disk's image.
const DISK_BYTES: usize = 128 << 20;
/// Of the second disk, of machines with all devices: as large as hull's scratch disk.
const SCRATCH_BYTES: u64 = 64 << 20;
/// As the guest has them.
const HOST: &str = "172.16.77.1";
const PORT: u16 = 7077;
const LISTEN_PORT: u32 = 7078;
/// Between two looks at whether the guest calls.
const LOOK: Duration = Duration::from_millis(2);

/// Which devices a machine has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// A tap device, by which it calls.
    Net,
    /// A disk, and a socket for its orders.
    Disk,
    /// A socket.
    Vsock,
    /// Disk, socket, and all others but a network, which only root can make.
    All,
}

/// A monitor, and how to start the guest under it.
pub struct Machines<'a> {
    bench: &'a Bench,
    who: &'a Who,
    devices: Devices,
}

impl<'a> Machines<'a> {
    /// Nothing prepared yet. `who` is hull or Firecracker.
    pub fn new(bench: &'a Bench, who: &'a Who, devices: Devices) -> Self {
        Self {
            bench,
            who,
            devices,
        }
    }

    /// Write the files that its machines start from.
    pub fn prepare(&mut self) -> Result<(), Trouble> {
        let initrd = subject::guest::with_init(Vec::new(), "init", guest::BENCH)?;
        fs::write(self.bench.path("initrd.bench"), initrd)?;
        if self.has_disk() {
            // Not of zeroes, nor of holes: neither costs what data costs.
            fs::write(self.file("disk"), vec![b'd'; DISK_BYTES])?;
        }
        match self.who.kind {
            Kind::Firecracker => self.configure(),
            _ => Ok(()),
        }
    }

    /// Start one.
    pub fn start(&mut self) -> Result<Machine, Trouble> {
        let tap = match self.devices {
            Devices::Net => Some(Tap::new()?),
            _ => None,
        };
        let (socket, port) = (self.file("socket"), self.file(&format!("socket_{PORT}")));
        for path in [&socket, &port] {
            let _ = fs::remove_file(path); // of the one before
        }
        let listener = match self.devices {
            Devices::Net => Listener::Tcp(TcpListener::bind((HOST, PORT))?),
            _ => Listener::Unix(UnixListener::bind(port)?),
        };
        listener.set_nonblocking()?;
        let mut command = match self.who.kind {
            Kind::Firecracker => {
                let mut peer = Command::new(&self.who.program);
                peer.args(["--no-api", "--config-file"]);
                peer.arg(self.file("config"));
                peer
            }
            _ => self.hull()?,
        };
        Ok(Machine {
            running: Running::start(&mut command, self.bench.limits)?,
            listener,
            socket,
            limit: self.bench.limits.time,
            _tap: tap,
        })
    }

    /// What a reader has to know of how they were run.
    pub fn caveats(&self) -> Vec<String> {
        match self.who.kind {
            Kind::Firecracker => vec![CAVEAT.into()],
            _ => Vec::new(),
        }
    }

    /// A file of this monitor's own.
    fn file(&self, name: &str) -> PathBuf {
        self.bench.path(&format!("{}.{name}", self.who.name))
    }

    fn has_disk(&self) -> bool {
        matches!(self.devices, Devices::Disk | Devices::All)
    }

    fn words(&self) -> String {
        match self.devices {
            Devices::Net => subject::CMDLINE.to_string(),
            _ => format!("{} vsock", subject::CMDLINE),
        }
    }

    fn hull(&self) -> Result<Command, Trouble> {
        let mut hull = hull::command(self.bench, &self.who.program, &["run"]);
        hull.arg(self.bench.stage.vmlinux()?);
        hull.arg("--initrd").arg(self.bench.path("initrd.bench"));
        hull.arg("--cmdline").arg(self.words());
        hull.arg("--memory").arg(format!("{MEMORY_MIB}M"));
        match self.devices {
            Devices::Net => hull.args(["--net", &format!("tap={}", Tap::name())]),
            _ => hull
                .arg("--vsock")
                .arg(format!("cid=3,socket={}", self.file("socket").display())),
        };
        if self.has_disk() {
            hull.arg("--disk").arg(self.file("disk"));
        }
        if self.devices == Devices::All {
            let share = format!("{}:/share:ro", self.bench.path("root").display());
            let scratch = format!("{SCRATCH_BYTES}");
            hull.args(["--share", &share, "--scratch", &scratch, "--balloon"]);
            hull.args(["--console", "virtio"]);
        }
        Ok(hull)
    }

    /// Firecracker's configuration, in a file.
    fn configure(&self) -> Result<(), Trouble> {
        let mut config = json!({
            "boot-source": {
                "kernel_image_path": self.bench.stage.vmlinux()?,
                "initrd_path": self.bench.path("initrd.bench"),
                "boot_args": self.words(),
            },
            "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
            "drives": [],
        });
        match self.devices {
            Devices::Net => {
                let tap = Tap::name();
                config["network-interfaces"] = json!([{"iface_id": "eth0", "host_dev_name": tap}]);
            }
            _ => config["vsock"] = json!({"guest_cid": 3, "uds_path": self.file("socket")}),
        }
        if self.has_disk() {
            config["drives"] = json!([drive("disk", &self.file("disk"))]);
        }
        if self.devices == Devices::All {
            File::create(self.file("scratch"))?.set_len(SCRATCH_BYTES)?;
            let scratch = drive("scratch", &self.file("scratch"));
            config["drives"] = json!([drive("disk", &self.file("disk")), scratch]);
            config["balloon"] = json!({"amount_mib": 0, "deflate_on_oom": false});
            config["entropy"] = json!({});
        }
        Ok(fs::write(self.file("config"), config.to_string())?)
    }
}

fn drive(name: &str, path: &Path) -> Value {
    json!({
        "drive_id": name,
        "path_on_host": path,
        "is_root_device": false,
        "is_read_only": false,
    })
}

/// Where the guest calls.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(listener) => listener.set_nonblocking(true),
        }
    }

    fn accept(&self, limit: Duration) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => Stream::tcp(listener.accept()?.0, limit),
            Self::Unix(listener) => Stream::unix(listener.accept()?.0, limit),
        }
    }
}

/// A running monitor, killed when it is dropped.
pub struct Machine {
    running: Running,
    listener: Listener,
    socket: PathBuf,
    limit: Duration,
    // Goes after the monitor that uses it.
    _tap: Option<Tap>,
}

impl Machine {
    /// The guest's next connection: it is up and waits for an order.
    pub fn wait(&mut self) -> Result<Stream, Trouble> {
        loop {
            if let Ok(stream) = self.listener.accept(self.limit) {
                return Ok(stream);
            }
            self.running.alive()?;
            std::thread::sleep(LOOK);
        }
    }

    /// The guest's next connection, on which it has been told what to do.
    pub fn order(&mut self, order: u8) -> Result<Stream, Trouble> {
        let mut stream = self.wait()?;
        stream.write_all(&[order])?;
        Ok(stream)
    }

    /// A connection to the guest, on which it has been told what to do.
    pub fn order_by_host(&mut self, order: u8) -> Result<Stream, Trouble> {
        self.order(b'L')?.read_exact(&mut [0])?;
        let mut stream = Stream::unix(UnixStream::connect(&self.socket)?, self.limit)?;
        writeln!(stream, "CONNECT {LISTEN_PORT}")?;
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte)?;
        }
        stream.write_all(&[order])?;
        Ok(stream)
    }

    /// Its monitor.
    pub fn id(&self) -> u32 {
        self.running.id()
    }
}

/// A tap device with the host's address, gone afterwards.
struct Tap;

impl Tap {
    fn name() -> String {
        format!("hull{}", std::process::id())
    }

    fn new() -> Result<Self, Trouble> {
        let name = Self::name();
        ip(&format!("tuntap add {name} mode tap"))?;
        let tap = Self;
        ip(&format!("addr add {HOST}/24 dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {}", Self::name()));
    }
}

/// ip(8).
fn ip(words: &str) -> Result<(), Trouble> {
    let mut ip = Command::new("ip");
    ip.args(words.split(' ')).stdin(Stdio::null());
    let failed = |why: String| Trouble::Other(format!("ip {words}: {why}"));
    let output = ip
        .output()
        .map_err(|error| failed(format!("{error}; install the package iproute2")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(said.trim().to_string())),
    }
}
