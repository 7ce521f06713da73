//! The cost of a shared folder: `cargo bench --bench shares`.
//!
//! A guest walks a tree of 10,000 files, packs it, and asks git for its status, each time with
//! empty caches, after mounting the share again. The host measures the times between the lines that
//! the guest prints before and after.
//!
//! HULL_PEER_VIRTIOFSD=PATH runs the same guest (kernel, initial RAM disk, 1 vCPU, 256 MiB) also
//! under QEMU (microvm) with a virtiofsd for each share, in turns; HULL_PEER_QEMU=PATH
//! names a QEMU that is not `qemu-system-x86_64`, HULL_PEER_VIRTIOFSD_ARGS="WORDS" the
//! arguments of virtiofsd besides its socket and folder. HULL_BENCH_RUNS=N sets the number of runs (3);
//! HULL_BENCH_SHOW shows the output of the guests. Nothing is asserted. git is that of the host, from a
//! share of /usr; without git, its job is left out.
//!
//! The lab has a KVM like that of hardware: build with `cargo bench --no-run` and pass the program
//! that it names to tests/lab/run.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hull::compare::statistics::{Ratio, Summary};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Time limit of one guest.
const LIMIT: Duration = Duration::from_secs(300);
const FOLDERS: usize = 100;
const FILES: usize = 100;
/// A job, and the command of the guest in the share.
const JOBS: [(&str, &str); 5] = [
    ("find", "find . | wc -l"),
    ("find, with attributes", "find . -size +9999999 | wc -l"),
    ("find again", "find . -size +9999999 | wc -l"),
    ("tar", "tar c . | wc -c"),
    ("git status", "git status --short | wc -l"),
];
/// It uses the caches that the job before has filled.
const AGAIN: usize = 2;
/// It needs git in the guest.
const GIT: usize = 4;

fn main() -> Result<()> {
    let runs = std::env::var("HULL_BENCH_RUNS").map_or(Ok(3), |runs| runs.parse())?;
    let bench = Bench::new()?;
    let files = FOLDERS * FILES;
    println!("a tree of {files} files; {runs} runs each; ms: least / middle / most");
    let mut subjects = vec![("hull", Vec::new())];
    match std::env::var_os("HULL_PEER_VIRTIOFSD") {
        Some(_) => subjects.push(("QEMU and virtiofsd", Vec::new())),
        None => println!("HULL_PEER_VIRTIOFSD is not set: no comparison"),
    }
    for _ in 0..runs {
        for (name, times) in &mut subjects {
            times.push(match *name {
                "hull" => bench.hull()?,
                _ => bench.peer()?,
            });
        }
    }
    for (index, (job, _)) in JOBS.iter().enumerate() {
        println!("\n{job}");
        let times = |runs: &Vec<Vec<f64>>| -> Vec<f64> {
            runs.iter()
                .filter_map(|times| times.get(index).copied())
                .collect()
        };
        for (name, of) in &subjects {
            row(name, &times(of));
        }
        if let [(_, ours), (_, peers)] = &subjects[..]
            && let Some(ratio) = Ratio::of(&times(ours), &times(peers))
        {
            println!("  hull / QEMU and virtiofsd: {ratio}");
        }
    }
    Ok(())
}

/// The times of all runs.
fn row(name: &str, times: &[f64]) {
    match Summary::of(times) {
        Some(of) => {
            let Summary {
                least,
                median,
                most,
                ..
            } = of;
            println!("  {name:<42} {least:>9.1} / {median:>9.1} / {most:>9.1}");
        }
        None => println!("  {name:<42} never"),
    }
}

/// The tree and the files that the guests boot, in memory.
struct Bench {
    folder: tempfile::TempDir,
    git: bool,
}

impl Bench {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir_in("/dev/shm")?;
        let tree = folder.path().join("tree");
        for outer in 0..FOLDERS {
            let inner = tree.join(format!("folder{outer}"));
            fs::create_dir_all(&inner)?;
            for file in 0..FILES {
                // 100 bytes to 8 KiB, like source files.
                let text = format!("line {outer} {file}\n").repeat(10 + 7 * (file % 70));
                fs::write(inner.join(format!("file{file}.txt")), text)?;
            }
        }
        let git = |words: &[&str]| {
            let mut git = Command::new("git");
            git.args(words).current_dir(&tree).stdout(Stdio::null());
            git.status().is_ok_and(|status| status.success())
        };
        let who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"];
        let commit = [&who[..], &["commit", "-q", "-m", "all"]].concat();
        // One pack: loose objects would double the number of files.
        let steps: [&[&str]; 4] = [&["init", "-q"], &["add", "."], &commit, &["gc", "-q"]];
        let git = steps.iter().all(|step| git(step));
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest");
        fs::copy(built.join("vmlinux"), folder.path().join("vmlinux"))?;
        let mut initrd = fs::read(built.join("initramfs.cpio"))?;
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        initrd.extend(archive("bench", script(git).as_bytes())?);
        fs::write(folder.path().join("initrd"), initrd)?;
        Ok(Self { folder, git })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The tag and the folder of each share.
    fn shares(&self) -> Vec<(&'static str, PathBuf)> {
        let mut shares = vec![("tree", self.path("tree"))];
        if self.git {
            shares.push(("usr", "/usr".into()));
        }
        shares
    }

    fn hull(&self) -> Result<Vec<f64>> {
        let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
        hull.arg("run").arg(self.path("vmlinux"));
        hull.arg("--initrd").arg(self.path("initrd"));
        hull.args(["--memory", "256M", "--cmdline", WORDS]);
        for (tag, folder) in self.shares() {
            hull.arg("--share")
                .arg(format!("{}:/{tag}", folder.display()));
        }
        measure(&mut hull)
    }

    fn peer(&self) -> Result<Vec<f64>> {
        let program = std::env::var_os("HULL_PEER_VIRTIOFSD").unwrap_or_default();
        let words = std::env::var("HULL_PEER_VIRTIOFSD_ARGS").unwrap_or_default();
        let qemu = std::env::var_os("HULL_PEER_QEMU").unwrap_or("qemu-system-x86_64".into());
        let mut qemu = Command::new(qemu);
        qemu.args("-M microvm,acpi=off,memory-backend=mem -accel kvm -cpu host -m 256".split(' '))
            .args("-object memory-backend-memfd,id=mem,size=256M,share=on".split(' '))
            .args("-nodefaults -no-user-config -display none -no-reboot -serial stdio".split(' '))
            .args(["-append", WORDS])
            .arg("-kernel")
            .arg(self.path("vmlinux"))
            .arg("-initrd")
            .arg(self.path("initrd"));
        let mut servers = Vec::new();
        for (tag, folder) in self.shares() {
            let socket = self.path(tag).with_extension("sock");
            let mut server = Command::new(&program);
            server
                .arg(format!("--socket-path={}", socket.display()))
                .arg(format!("--shared-dir={}", folder.display()))
                .args(words.split_whitespace())
                .stderr(Stdio::null());
            servers.push(Running(server.spawn()?));
            let since = Instant::now();
            while !socket.exists() && since.elapsed() < Duration::from_secs(10) {
                thread::sleep(Duration::from_millis(10));
            }
            let socket = format!("socket,id={tag},path={}", socket.display());
            let device = format!("vhost-user-fs-device,chardev={tag},tag={tag},queue-size=1024");
            qemu.args(["-chardev", &socket, "-device", &device]);
        }
        measure(&mut qemu)
    }
}

/// The kernel's command line: a fast console, and the init.
const WORDS: &str = "console=ttyS0 reboot=k panic=-1 quiet rdinit=/bench";

/// The guest's script, which prints a line before and after each job.
fn script(git: bool) -> String {
    let mut script = "#!/bin/sh\n\
        export PATH=/bin:/sbin:/usr/bin:/usr/local/bin HOME=/\n\
        /bin/busybox mount -t proc proc /proc\nmount -t devtmpfs dev /dev\nmkdir -p /tree /usr\n"
        .to_string();
    if git {
        script += "mount -t virtiofs usr /usr\nln -s usr/lib /lib\nln -s usr/lib64 /lib64\n\
            git --version > /dev/null\n";
    }
    for (index, (_, command)) in JOBS.iter().enumerate() {
        if index == GIT && !git {
            continue;
        }
        let renew = match index {
            AGAIN => "cd /tree",
            _ => "cd /; umount /tree 2> /dev/null; mount -t virtiofs tree /tree; cd /tree",
        };
        script += &format!("{renew}\necho begin {index}\n{command}\necho end {index}\n");
    }
    script + "cd /\numount /tree\nreboot -f\n"
}

/// A newc archive with one executable.
fn archive(name: &str, content: &[u8]) -> Result<Vec<u8>> {
    let builder = cpio::newc::Builder::new(name).mode(0o100_755);
    let mut entry = builder.write(Vec::new(), content.len() as u32);
    std::io::Write::write_all(&mut entry, content)?;
    Ok(cpio::newc::trailer(entry.finish()?)?)
}

/// Runs a guest and measures the times between its lines.
fn measure(command: &mut Command) -> Result<Vec<f64>> {
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut child = Running(command.spawn()?);
    let stdout = child.0.stdout.take().ok_or("no pipe")?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(|line| line.ok()) {
            let _ = tell.send((Instant::now(), line));
        }
    });
    let deadline = Instant::now() + LIMIT;
    let (mut begun, mut times) = (Instant::now(), Vec::new());
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        let Ok((at, line)) = told.recv_timeout(left) else {
            break;
        };
        match line.trim().split_once(' ') {
            Some(("begin", _)) => begun = at,
            Some(("end", _)) => times.push((at - begun).as_secs_f64() * 1e3),
            _ if std::env::var_os("HULL_BENCH_SHOW").is_some() => println!("  {at:?} {line}"),
            _ => {}
        }
    }
    Ok(times)
}

/// A program that is killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
