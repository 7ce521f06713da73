//! Machines whose guest serves requests, one byte each.
//!
//! The guest is guest/bench with hull's kernel, 1 vCPU and 128 MiB. It connects to the host for each request.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::error::BenchError;
use super::plan::{Bench, Kind, Program};
use crate::compare::measure::stream::Stream;
use crate::compare::measure::timed::Running;
use crate::compare::subject::guest::with_init;
use crate::compare::subject::monitor::{AllDevices, Devices, Launch, Machine, SCRATCH_BYTES};
use crate::guest;

const DISK_BYTES: usize = 128 << 20;
/// Addresses and ports as guest/bench has them.
const HOST: &str = "172.16.77.1";
const PORT: u16 = 7077;
const LISTEN_PORT: u32 = 7078;
/// Interval at which a connection of the guest is looked for.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Equipment {
    Tap,
    Vsock,
    Disk,
    /// A vsock device, a disk and all others but a tap device, which only root can create.
    All,
}

/// A monitor, hull or Firecracker, that starts machines.
pub struct Machines<'a> {
    bench: &'a Bench,
    program: &'a Program,
    equipment: Equipment,
    started: usize,
}

impl<'a> Machines<'a> {
    pub fn new(
        bench: &'a Bench,
        program: &'a Program,
        equipment: Equipment,
    ) -> Result<Self, BenchError> {
        if matches!(program.kind, Kind::Other | Kind::Container) {
            return Err(BenchError::Other("its devices are not measured".into()));
        }
        Ok(Self {
            bench,
            program,
            equipment,
            started: 0,
        })
    }

    pub fn prepare(&mut self) -> Result<(), BenchError> {
        fs::write(self.initrd(), with_init(Vec::new(), "init", guest::BENCH)?)?;
        if self.has_disk() {
            // Neither zeroes nor holes, which cost less than data.
            fs::write(self.file("disk"), vec![b'd'; DISK_BYTES])?;
            File::create(self.file("scratch"))?.set_len(SCRATCH_BYTES)?;
        }
        Ok(())
    }

    pub fn start(&mut self) -> Result<RunningMachine, BenchError> {
        let tap = match self.equipment {
            Equipment::Tap => Some(Tap::new()?),
            _ => None,
        };
        let accept = self.listen()?;
        let mut command = self.command()?;
        Ok(RunningMachine {
            running: Running::start(&mut command, self.bench.timeout, None)?,
            accept,
            socket: self.file("socket"),
            timeout: self.bench.timeout,
            _tap: tap,
        })
    }

    fn listen(&self) -> Result<Accept, BenchError> {
        let timeout = self.bench.timeout;
        if self.equipment == Equipment::Tap {
            let listener = TcpListener::bind((HOST, PORT))?;
            listener.set_nonblocking(true)?;
            return Ok(Box::new(move || {
                let (socket, _) = listener.accept()?;
                // A byte is sent at once.
                socket.set_nodelay(true)?;
                Stream::new(socket, timeout)
            }));
        }
        let port = self.file(&format!("socket_{PORT}"));
        for path in [&self.file("socket"), &port] {
            // The machine before may have left it.
            let _ = fs::remove_file(path);
        }
        let listener = UnixListener::bind(port)?;
        listener.set_nonblocking(true)?;
        Ok(Box::new(move || Stream::new(listener.accept()?.0, timeout)))
    }

    fn command(&mut self) -> Result<Command, BenchError> {
        let stage = &self.bench.stage;
        let is_tap = self.equipment == Equipment::Tap;
        let arguments = if is_tap { "" } else { "vsock" };
        let mut machine = Machine::new(stage.vmlinux()?, self.initrd(), arguments);
        machine.devices = Devices {
            tap: is_tap.then(Tap::name),
            vsock: (!is_tap).then(|| self.file("socket")),
            disk: self.has_disk().then(|| self.file("disk")),
            all: (self.equipment == Equipment::All).then(|| AllDevices {
                scratch: self.file("scratch"),
                share: stage.root(),
            }),
        };
        self.started += 1;
        let id = format!("bench-{}-{}", std::process::id(), self.started);
        Ok((self.program.monitor()?.command)(&Launch {
            program: &self.program.path,
            machine: &machine,
            stage,
            id: &id,
            without_filters: false,
        })?)
    }

    fn initrd(&self) -> PathBuf {
        self.bench.path("initrd.bench")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.bench.path(&format!("{}.{name}", self.program.name))
    }

    fn has_disk(&self) -> bool {
        matches!(self.equipment, Equipment::Disk | Equipment::All)
    }
}

type Accept = Box<dyn Fn() -> io::Result<Stream>>;

/// A running monitor. Dropping it kills the monitor.
pub struct RunningMachine {
    running: Running,
    accept: Accept,
    /// The vsock device's socket.
    socket: PathBuf,
    timeout: Duration,
    // Dropped after the monitor, which uses it.
    _tap: Option<Tap>,
}

impl RunningMachine {
    /// Waits for the guest's next connection, by which it is up and ready for a request.
    pub fn wait(&mut self) -> Result<Stream, BenchError> {
        loop {
            if let Ok(stream) = (self.accept)() {
                return Ok(stream);
            }
            self.running.check_alive()?;
            std::thread::sleep(ACCEPT_INTERVAL);
        }
    }

    pub fn request(&mut self, request: u8) -> Result<Stream, BenchError> {
        let mut stream = self.wait()?;
        stream.write_all(&[request])?;
        Ok(stream)
    }

    pub fn request_by_host(&mut self, request: u8) -> Result<Stream, BenchError> {
        self.request(b'L')?.read_exact(&mut [0])?;
        let mut stream = Stream::new(UnixStream::connect(&self.socket)?, self.timeout)?;
        writeln!(stream, "CONNECT {LISTEN_PORT}")?;
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte)?;
        }
        stream.write_all(&[request])?;
        Ok(stream)
    }

    pub fn id(&self) -> u32 {
        self.running.id()
    }
}

/// A tap device with the host's address. Dropping it removes the device.
struct Tap;

impl Tap {
    fn name() -> String {
        format!("hull{}", std::process::id())
    }

    /// Remove the devices of benches that were killed.
    fn remove_left_over() {
        let Ok(entries) = fs::read_dir("/sys/class/net") else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name
                .strip_prefix("hull")
                .and_then(|pid| pid.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = ip(&format!("link del {name}"));
            }
        }
    }

    fn new() -> Result<Self, BenchError> {
        Self::remove_left_over();
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

fn ip(words: &str) -> Result<(), BenchError> {
    let mut ip = Command::new("ip");
    let output = ip.args(words.split(' ')).stdin(Stdio::null()).output();
    let failed = |why: String| BenchError::Other(format!("ip {words}: {why}"));
    let output =
        output.map_err(|error| failed(format!("{error}; install the package iproute2")))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(failed(message.trim().into()))
}
