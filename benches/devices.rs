//! What devices do for a guest, beside Firecracker's: `cargo bench --bench devices [-- net]`.
//!
//! One kernel and one init (benches/devices/guest.rs) under both monitors, turn by turn, 1 vCPU,
//! 128 MiB. Of a network: TCP over a tap device in both directions, and the round trip of a byte,
//! timed on the host. A word after `--` names the rows that are wanted.
//!
//! HULL_PEER_FIRECRACKER=PATH names the peer, without which there is no comparison;
//! HULL_BENCH_RUNS=N how many machines of each kind (5). Figures are least / middle / most.
//! Nothing is asserted. It needs root, for the tap device, and a KVM as hardware has it: one that
//! emulates the guest's kernel takes minutes a megabyte. There is one in the lab: `cargo bench
//! --no-run`, run the program that it names once with the word `build`, and give it to
//! tests/lab/run.

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MEMORY_MIB: u64 = 128;
/// Longest that one machine may take.
const LIMIT: Duration = Duration::from_secs(120);
/// As the guest has them.
const BYTES: usize = 64 << 20;
const HOST: &str = "172.16.77.1";
const PORT: u16 = 7077;
const ROUND_TRIPS: u32 = 500;
const TAP: &str = "hullbench0";
const WORDS: &str = "console=ttyS0 reboot=k panic=-1 quiet";

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let wanted: Vec<&str> = wanted
        .into_iter()
        .filter(|word| !word.starts_with('-'))
        .collect();
    let guest = guest_program()?;
    if wanted == ["build"] {
        return Ok(());
    }
    let wants = |name| wanted.is_empty() || wanted.contains(&name);
    let runs = std::env::var("HULL_BENCH_RUNS").map_or(Ok(5), |runs| runs.parse())?;
    let files = Files::new(&guest)?;
    println!("{runs} machines of each kind; least / middle / most");
    if wants("net") {
        net(&files, runs)?;
    }
    Ok(())
}

/// A monitor's name and how to start the guest under it.
type Monitor = (&'static str, Command);

/// TCP over a tap device.
fn net(files: &Files, runs: usize) -> Result<()> {
    let _tap = Tap::new()?;
    let mut monitors = monitors(files)?;
    let rows = [
        "guest to host, MiB/s",
        "host to guest, MiB/s",
        "round trip, us",
    ];
    let mut figures = vec![vec![Vec::new(); monitors.len()]; rows.len()];
    for _ in 0..runs {
        for (index, (name, command)) in monitors.iter_mut().enumerate() {
            match measure_net(command) {
                Ok(measured) => {
                    for (row, figure) in figures.iter_mut().zip(measured) {
                        row[index].push(figure);
                    }
                }
                Err(error) => println!("  {name}: {error}"),
            }
        }
    }
    println!("\nTCP over a tap device");
    for (name, figures) in rows.iter().zip(&figures) {
        for ((monitor, _), figures) in monitors.iter().zip(figures) {
            row(&format!("{name}: {monitor}"), figures);
        }
        if let [own, peer] = figures.as_slice() {
            // More is better, but for a time.
            let (up, down) = match name.ends_with("us") {
                true => (peer, own),
                false => (own, peer),
            };
            ratio(up, down);
        }
    }
    Ok(())
}

/// One machine: all rows.
fn measure_net(command: &mut Command) -> Result<[f64; 3]> {
    let listener = TcpListener::bind((HOST, PORT))?;
    let machine = Machine(command.spawn()?);
    let mut buffer = vec![0; 1 << 16];

    let mut stream = order(&listener, b"S")?;
    let started = Instant::now();
    let mut left = BYTES;
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => return Err("the guest closed early".into()),
            len => left -= len.min(left),
        }
    }
    let up = mib_a_second(started.elapsed());
    drop(stream);

    let mut stream = order(&listener, b"R")?;
    let started = Instant::now();
    for _ in 0..BYTES / buffer.len() {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut buffer[..1])?;
    let down = mib_a_second(started.elapsed());
    drop(stream);

    let mut stream = order(&listener, b"P")?;
    let started = Instant::now();
    for _ in 0..ROUND_TRIPS {
        stream.write_all(b"p")?;
        stream.read_exact(&mut buffer[..1])?;
    }
    let round_trip = started.elapsed().as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS);
    drop(stream);

    drop(order(&listener, b"Q")?);
    machine.finish()?;
    Ok([up, down, round_trip])
}

/// The guest's next connection, on which it has been told what to do.
fn order(listener: &TcpListener, order: &[u8]) -> Result<TcpStream> {
    let started = Instant::now();
    listener.set_nonblocking(true)?;
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(_) if started.elapsed() > LIMIT => return Err("the guest does not call".into()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    stream.write_all(order)?;
    Ok(stream)
}

fn mib_a_second(time: Duration) -> f64 {
    BYTES as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

/// hull, and the peer if there is one.
fn monitors(files: &Files) -> Result<Vec<Monitor>> {
    let (kernel, initrd) = (files.path("vmlinux"), files.path("initrd"));
    let mut hull = Command::new(files.path("hull"));
    hull.arg("run").arg(&kernel).arg("--initrd").arg(&initrd);
    hull.args(["--cmdline", WORDS, "--memory", &format!("{MEMORY_MIB}M")]);
    hull.args(["--net", &format!("tap={TAP}")]);
    let mut monitors = vec![("hull", hull)];
    match std::env::var_os("HULL_PEER_FIRECRACKER") {
        None => println!("HULL_PEER_FIRECRACKER is not set: no comparison"),
        Some(peer) => {
            let config = files.path("config");
            let machine = serde_json::json!({
                "boot-source": {"kernel_image_path": kernel, "initrd_path": initrd, "boot_args": WORDS},
                "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
                "drives": [],
                "network-interfaces": [{"iface_id": "eth0", "host_dev_name": TAP}],
            });
            fs::write(&config, machine.to_string())?;
            let own = files.path("firecracker");
            fs::copy(&peer, &own)?;
            let mut peer = Command::new(own);
            peer.args(["--no-api", "--no-seccomp", "--config-file"]);
            peer.arg(&config);
            monitors.push(("Firecracker", peer));
        }
    }
    for (_, command) in &mut monitors {
        let silent = command.stdin(Stdio::null()).stdout(Stdio::null());
        silent.stderr(Stdio::null());
    }
    Ok(monitors)
}

/// A running monitor, killed when something fails.
struct Machine(Child);

impl Machine {
    fn finish(mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if self.0.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err("the machine does not end".into())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
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
fn guest_program() -> Result<PathBuf> {
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
struct Files(tempfile::TempDir);

impl Files {
    fn new(guest: &Path) -> Result<Self> {
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

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn row(name: &str, figures: &[f64]) {
    let sorted = sorted(figures);
    match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(least), Some(middle), Some(most)) => {
            println!("  {name:<42} {least:>9.1} / {middle:>9.1} / {most:>9.1}");
        }
        _ => println!("  {name:<42} never"),
    }
}

/// How much better hull is, by the middles.
fn ratio(up: &[f64], down: &[f64]) {
    let middle = |figures: &[f64]| sorted(figures).get(figures.len() / 2).copied();
    if let (Some(up), Some(down)) = (middle(up), middle(down)) {
        println!("  {:<42} {:.2}", "times as good as Firecracker", up / down);
    }
}

fn sorted(figures: &[f64]) -> Vec<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}
