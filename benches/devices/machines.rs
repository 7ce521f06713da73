//! The machines that are compared: what they start from, how they are started, how they end.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{LIMIT, Result};

const MEMORY_MIB: u64 = 128;
/// Bytes of the image.
const DISK_BYTES: usize = 128 << 20;
const WORDS: &str = "console=ttyS0 reboot=k panic=-1 quiet";
/// As the guest has them.
const HOST: &str = "172.16.77.1";
const PORT: u16 = 7077;
const LISTEN_PORT: u32 = 7078;
const TAP: &str = "hullbench0";

/// Which devices a machine has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Net,
    /// And a socket, for the orders.
    Disk,
    Vsock,
    All,
}

impl Kind {
    fn has(self, device: Kind) -> bool {
        self == device || self == Kind::All
    }

    fn has_vsock(self) -> bool {
        self != Kind::Net
    }
}

/// A monitor, and how to start the guest under it.
pub struct Monitor {
    pub name: &'static str,
    kind: Kind,
    command: Command,
    _tap: Option<std::rc::Rc<Tap>>,
}

/// hull, and the peer if there is one.
pub fn monitors(files: &Files, kind: Kind) -> Result<Vec<Monitor>> {
    let tap = match kind.has(Kind::Net) {
        true => Some(std::rc::Rc::new(Tap::new()?)),
        false => None,
    };
    if kind.has(Kind::Disk) {
        // Not of zeroes, nor of holes: neither costs what data costs.
        fs::write(files.path("disk"), vec![b'd'; DISK_BYTES])?;
    }
    let words = match kind.has_vsock() {
        true => format!("{WORDS} vsock"),
        false => WORDS.to_string(),
    };
    let mut commands = vec![("hull", hull(files, kind, &words))];
    match std::env::var_os("HULL_PEER_FIRECRACKER") {
        None => println!("HULL_PEER_FIRECRACKER is not set: no comparison"),
        Some(peer) => {
            let own = files.path("firecracker");
            fs::copy(&peer, &own)?;
            fs::write(files.path("config"), peers(files, kind, &words).to_string())?;
            if kind == Kind::All {
                fs::File::create(files.path("scratch"))?.set_len(64 << 20)?;
            }
            let mut peer = Command::new(own);
            peer.args(["--no-api", "--no-seccomp", "--config-file"]);
            peer.arg(files.path("config"));
            commands.push(("Firecracker", peer));
        }
    }
    let monitor = |(name, mut command): (_, Command)| {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null());
        Monitor {
            name,
            kind,
            command,
            _tap: tap.clone(),
        }
    };
    Ok(commands.into_iter().map(monitor).collect())
}

fn hull(files: &Files, kind: Kind, words: &str) -> Command {
    let mut hull = Command::new(files.path("hull"));
    hull.arg("run").arg(files.path("vmlinux"));
    hull.arg("--initrd").arg(files.path("initrd"));
    hull.args(["--cmdline", words, "--memory", &format!("{MEMORY_MIB}M")]);
    if kind.has(Kind::Net) {
        hull.args(["--net", &format!("tap={TAP}")]);
    }
    if kind.has(Kind::Disk) {
        hull.arg("--disk").arg(files.path("disk"));
    }
    if kind.has_vsock() {
        let socket = files.path("socket");
        let socket = format!("cid=3,socket={}", socket.display());
        hull.args(["--vsock", &socket]);
    }
    if kind == Kind::All {
        let share = format!("{}:/share:ro", files.0.path().display());
        hull.args(["--share", &share, "--scratch", "64M", "--balloon"]);
        hull.args(["--console", "virtio"]);
    }
    hull
}

/// Firecracker's configuration.
fn peers(files: &Files, kind: Kind, words: &str) -> Value {
    let mut config = json!({
        "boot-source": {
            "kernel_image_path": files.path("vmlinux"),
            "initrd_path": files.path("initrd"),
            "boot_args": words,
        },
        "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
        "drives": [],
    });
    let drive = |name: &str| {
        json!({
            "drive_id": name,
            "path_on_host": files.path(name),
            "is_root_device": false,
            "is_read_only": false,
        })
    };
    if kind.has(Kind::Net) {
        config["network-interfaces"] = json!([{"iface_id": "eth0", "host_dev_name": TAP}]);
    }
    if kind.has(Kind::Disk) {
        config["drives"] = json!([drive("disk")]);
    }
    if kind.has_vsock() {
        config["vsock"] = json!({"guest_cid": 3, "uds_path": files.path("socket")});
    }
    if kind == Kind::All {
        config["drives"] = json!([drive("disk"), drive("scratch")]);
        config["balloon"] = json!({"amount_mib": 0, "deflate_on_oom": false});
        config["entropy"] = json!({});
    }
    config
}

impl Monitor {
    /// Start a machine.
    pub fn start(&mut self, files: &Files) -> Result<Machine> {
        let (socket, port) = (files.path("socket"), files.path("socket_7077"));
        for path in [&socket, &port] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let listener = match self.kind.has_vsock() {
            true => Listener::Unix(UnixListener::bind(port)?),
            false => Listener::Tcp(TcpListener::bind((HOST, PORT))?),
        };
        Ok(Machine {
            process: self.command.spawn()?,
            listener,
            socket,
        })
    }
}

/// Where the guest calls.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection with the guest.
pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Listener {
    fn accept(&self) -> Result<Box<dyn Stream>> {
        let started = Instant::now();
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true)?,
            Self::Unix(listener) => listener.set_nonblocking(true)?,
        }
        loop {
            let stream = match self {
                Self::Tcp(listener) => listener.accept().and_then(|(stream, _)| tcp(stream)),
                Self::Unix(listener) => listener.accept().and_then(|(stream, _)| unix(stream)),
            };
            match stream {
                Ok(stream) => return Ok(stream),
                Err(_) if started.elapsed() > LIMIT => return Err("the guest does not call".into()),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

fn tcp(stream: TcpStream) -> std::io::Result<Box<dyn Stream>> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

fn unix(stream: UnixStream) -> std::io::Result<Box<dyn Stream>> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(Box::new(stream))
}

/// A running monitor, killed when something fails.
pub struct Machine {
    process: Child,
    listener: Listener,
    socket: PathBuf,
}

impl Machine {
    /// The guest's next connection, on which it has been told what to do.
    pub fn order(&self, order: u8) -> Result<Box<dyn Stream>> {
        let mut stream = self.listener.accept()?;
        stream.write_all(&[order])?;
        Ok(stream)
    }

    /// A connection to the guest, on which it has been told what to do.
    pub fn order_by_host(&self, order: u8) -> Result<Box<dyn Stream>> {
        self.order(b'L')?.read_exact(&mut [0])?;
        let mut stream = unix(UnixStream::connect(&self.socket)?)?;
        writeln!(stream, "CONNECT {LISTEN_PORT}")?;
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte)?;
        }
        stream.write_all(&[order])?;
        Ok(stream)
    }

    /// The guest is up and waits for an order.
    pub fn wait(&self) -> Result<Box<dyn Stream>> {
        self.listener.accept()
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The machine has been told to end.
    pub fn finish(mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if self.process.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err("the machine does not end".into())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A tap device with the host's address, gone afterwards.
struct Tap;

impl Tap {
    fn new() -> Result<Self> {
        // Of a run that was killed; mostly there is none.
        let leftover = Command::new("ip")
            .args(["link", "del", TAP])
            .stderr(Stdio::null())
            .status();
        leftover.map_err(|error| format!("ip: {error}; install the package iproute2"))?;
        ip(&format!("tuntap add {TAP} mode tap"))?;
        let tap = Self;
        ip(&format!("addr add {HOST}/24 dev {TAP}"))?;
        ip(&format!("link set {TAP} up"))?;
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {TAP}"));
    }
}

/// ip(8), of the package iproute2.
fn ip(words: &str) -> Result<()> {
    let status = Command::new("ip").args(words.split(' ')).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("ip {words}: {status}").into()),
    }
}

/// The guest's init, built again when its source is newer.
pub fn guest_program() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("benches/devices/guest.rs");
    let program = root.join("target/guest/bench");
    let changed = |path| fs::metadata(path).and_then(|file| file.modified());
    if changed(&program).is_ok_and(|built| changed(&source).is_ok_and(|source| built >= source)) {
        return Ok(program);
    }
    let codegen = "panic=abort lto=fat opt-level=s strip=symbols relocation-model=static";
    let link = "-nostartfiles -nostdlib -static -no-pie -Wl,--build-id=none,-z,noseparate-code";
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "--target", "x86_64-unknown-linux-gnu"]);
    rustc.args(codegen.split(' ').flat_map(|flag| ["-C", flag]));
    rustc.args(link.split(' ').map(|flag| format!("-Clink-arg={flag}")));
    let status = rustc.arg("-o").args([&program, &source]).status()?;
    match status.success() {
        true => Ok(program),
        false => Err(format!("rustc: {status}").into()),
    }
}

/// A folder in memory with what all machines start from.
pub struct Files(tempfile::TempDir);

impl Files {
    pub fn new(guest: &Path) -> Result<Self> {
        let files = Self(tempfile::tempdir_in("/dev/shm")?);
        fs::copy(env!("CARGO_BIN_EXE_hull"), files.path("hull"))?;
        let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest/vmlinux");
        fs::copy(&kernel, files.path("vmlinux"))
            .map_err(|error| format!("{}: {error}; run `make build` first", kernel.display()))?;
        let entries = [
            ("dev", 0o040_755, 0, Vec::new()),
            ("dev/console", 0o020_600, 5, Vec::new()),
            ("init", 0o100_755, 0, fs::read(guest)?),
        ];
        let mut archive = Vec::new();
        for (name, mode, major, content) in entries {
            let header = cpio::newc::Builder::new(name).mode(mode).rdev_major(major);
            let header = header.rdev_minor(major.min(1));
            let mut entry = header.write(archive, content.len() as u32);
            entry.write_all(&content)?;
            archive = entry.finish()?;
        }
        fs::write(files.path("initrd"), cpio::newc::trailer(archive)?)?;
        Ok(files)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
