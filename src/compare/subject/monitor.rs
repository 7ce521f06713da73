//! What the virtual machine monitors have in common.
//!
//! Each takes the same [`Machine`] in the form of its own command line: hull's kernel, its initial RAM disk with
//! the init of [`guest`], one processor, the default memory of `hull run` and a serial console.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::contract::{About, Kind, Subject, try_out};
use super::guest;
use super::program::{LeftOut, Part, find, first_line, part};
use super::stage::{Stage, StageError};
use crate::compare::measure::error::RunError;

/// The kernel's command line under all monitors: a quiet serial console, without the kernel's last words,
/// which would be part of the command's output; an end by triple fault, which every monitor takes for one
/// (QEMU's microvm has no keyboard controller and knows no other); no probes of the keyboard controller,
/// which Firecracker's own default command line leaves out, too; no mitigations of processors' flaws, as in
/// a machine that hull starts by itself.
const CMDLINE: &str = "console=ttyS0 reboot=t panic=-1 quiet loglevel=0 \
    i8042.noaux i8042.nomux i8042.dumbkbd mitigations=off";

pub struct Machine {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub cmdline: String,
    pub devices: Devices,
}

/// The devices beside the serial console. Only hull and Firecracker take them.
#[derive(Clone, Default)]
pub struct Devices {
    pub tap: Option<String>,
    /// The path of a vsock device's socket on the host; the guest has CID 3.
    pub vsock: Option<PathBuf>,
    pub disk: Option<PathBuf>,
    pub all: Option<AllDevices>,
}

/// A balloon, an entropy source and a scratch disk; under hull also a shared folder and a virtio console.
#[derive(Clone)]
pub struct AllDevices {
    /// A file of [`SCRATCH_BYTES`], for a monitor without scratch disks.
    pub scratch: PathBuf,
    /// A folder, shared read-only.
    pub share: PathBuf,
}

/// The default size of hull's scratch disk.
pub const SCRATCH_BYTES: u64 = 64 << 20;

impl Machine {
    /// A machine without further devices. `arguments` are added to the command line.
    pub fn new(kernel: PathBuf, initrd: PathBuf, arguments: &str) -> Self {
        Self {
            kernel,
            initrd,
            cmdline: format!("{CMDLINE} {arguments}").trim_end().into(),
            devices: Devices::default(),
        }
    }

    /// A machine with `initrd`, which contains an init of [`guest`].
    pub fn with_bare_init(kernel: PathBuf, initrd: PathBuf) -> Self {
        Self::new(kernel, initrd, &format!("rdinit=/{}", guest::INIT))
    }
}

pub struct Launch<'a> {
    pub program: &'a Path,
    pub machine: &'a Machine,
    /// Has the files of the instance.
    pub stage: &'a Stage,
    pub id: &'a str,
    /// Its own seccomp filters do not fit its C library.
    pub without_filters: bool,
}

pub struct Monitor {
    pub name: &'static str,
    /// The names of its program, the most common one first.
    pub programs: &'static [&'static str],
    /// The argument that makes the program print its version.
    pub version_flag: &'static str,
    /// Whether it boots only bzImages.
    pub needs_bzimage: bool,
    pub caveat: Option<&'static str>,
    /// The same after a run without its own seccomp filters, if it can do without them.
    pub caveat_without_filters: Option<&'static str>,
    /// The command that runs a machine with its console on standard output.
    pub command: fn(&Launch) -> io::Result<Command>,
}

pub fn instance_file(stage: &Stage, monitor: &Monitor, id: &str) -> PathBuf {
    stage.path(&format!("{}.{id}", monitor.name))
}

/// Whether a filter ended the monitor. Firecracker ends with this status when one traps a system call.
fn is_filtered(error: &RunError) -> bool {
    const BAD_SYSCALL: i32 = 148;
    let RunError::Failed(status, _) = error else {
        return false;
    };
    status.code() == Some(BAD_SYSCALL) || status.signal() == Some(libc::SIGSYS)
}

pub struct Monitored<'a> {
    about: About<'a>,
    monitor: &'static Monitor,
    without_filters: bool,
    kernel: PathBuf,
    /// The initial RAM disk of the last command.
    image: PathBuf,
}

impl<'a> Monitored<'a> {
    /// `program` is a path of the user.
    pub fn new(stage: &'a Stage, monitor: &'static Monitor, program: Option<&Path>) -> Self {
        let program = program.unwrap_or(Path::new("")).into();
        Self {
            about: About::new(stage, monitor.name, Kind::Machine, program),
            monitor,
            without_filters: false,
            kernel: PathBuf::new(),
            image: PathBuf::new(),
        }
    }

    fn find(&self) -> Result<PathBuf, LeftOut> {
        if !self.about.program.as_os_str().is_empty() {
            return find(&self.about.program);
        }
        let names = self.monitor.programs;
        let mut found = names.iter().map(|name| find(Path::new(name)));
        found
            .find(Result::is_ok)
            .unwrap_or_else(|| Err(LeftOut::Missing(names.join(" or "))))
    }

    fn find_kernel(&self) -> Result<PathBuf, LeftOut> {
        let unfit = |error: StageError| LeftOut::Unfit(error.to_string());
        match (self.monitor.needs_bzimage, &self.about.stage.bzimage) {
            (false, _) => self.about.stage.vmlinux().map_err(unfit),
            (true, Some(kernel)) if kernel.is_file() => Ok(kernel.clone()),
            (true, Some(kernel)) => Err(LeftOut::Unfit(format!(
                "{} is not a file; give hull's kernel as a bzImage with --bzimage",
                kernel.display()
            ))),
            (true, None) => Err(LeftOut::Unfit(
                "it boots only bzImages: give hull's kernel as one with --bzimage".into(),
            )),
        }
    }

    /// The initial RAM disk that runs `words`, common to all monitors.
    fn initrd(&self, words: &[String]) -> io::Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        words.hash(&mut hasher);
        let name = format!("initrd.{:x}", hasher.finish());
        let first = words.first().map_or("", String::as_str);
        self.about.stage.find(first).map_err(io::Error::other)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let stage = self.about.stage;
        let initrd = stage.initrd(&name, || guest::runs(first, &words));
        initrd.map_err(io::Error::other)
    }
}

impl Subject for Monitored<'_> {
    fn about(&self) -> &About<'_> {
        &self.about
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        self.about.program = self.find()?;
        self.kernel = self.find_kernel()?;
        // hull works wherever it measures.
        if self.monitor.name == "hull" {
            return Ok(());
        }
        let mut tried = try_out(self);
        let has_filters = self.monitor.caveat_without_filters.is_some();
        if has_filters && matches!(&tried, Err(error) if is_filtered(error)) {
            self.without_filters = true;
            tried = try_out(self);
        }
        tried.map_err(|error| LeftOut::Unfit(format!("it {error}")))
    }

    fn command(&mut self, words: &[String], id: &str) -> io::Result<Command> {
        self.image = self.initrd(words)?;
        let machine = Machine::with_bare_init(self.kernel.clone(), self.image.clone());
        let About { stage, program, .. } = &self.about;
        let mut command = (self.monitor.command)(&Launch {
            program,
            machine: &machine,
            stage,
            id,
            without_filters: self.without_filters,
        })?;
        // kvmtool keeps its sockets in HOME.
        command.env("HOME", stage.path("tmp"));
        command.env("TMPDIR", stage.path("tmp"));
        Ok(command)
    }

    fn judge(&self, output: &mut Vec<u8>) -> Result<(), String> {
        guest::judge(output)
    }

    fn clear(&mut self, id: &str) {
        let _ = fs::remove_file(instance_file(self.about.stage, self.monitor, id));
    }

    fn parts(&self) -> Vec<Part> {
        vec![
            part("program", &self.about.program),
            part("kernel", &self.kernel),
            part("image", &self.image),
        ]
    }

    fn version(&self) -> Option<String> {
        first_line(&self.about.program, self.monitor.version_flag)
    }

    fn caveats(&self) -> Vec<String> {
        let mut caveats = vec![
            "hull's kernel and initial RAM disk, with an init that only runs the command; on a serial \
             console, where each byte causes an exit or more"
                .into(),
        ];
        let caveat = if self.without_filters {
            self.monitor.caveat_without_filters
        } else {
            self.monitor.caveat
        };
        caveats.extend(caveat.map(Into::into));
        caveats
    }
}
