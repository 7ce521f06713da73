//! The other monitors: Firecracker, Cloud Hypervisor, QEMU's microvm and kvmtool.
//!
//! They differ in how they are told the same thing, a [`Machine`]: hull's kernel, its initial RAM disk with
//! [`guest`]'s init, one processor, as much memory as `hull run` gives, a serial console, and nothing else.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Kind, LeftOut, Part, Stage, Subject, find, first_line, guest, part};
use crate::compare::measure::timed::{Limits, RunError};

/// What all monitors are told of their machine beside its files.
pub use super::stage::MEMORY_MIB;

/// Of the kernel of all of them: a quiet serial console; not even its last words, which would be in the
/// command's output; the end by triple fault, which each monitor takes for one (by QEMU's microvm, which
/// has no keyboard controller, nothing else is); and none of the keyboard controller's probes, which
/// Firecracker's own command line leaves out, too.
pub const CMDLINE: &str = "console=ttyS0 reboot=t panic=-1 quiet loglevel=0 \
    i8042.noaux i8042.nomux i8042.dumbkbd";

/// The files that a machine boots from, and its kernel's command line.
pub struct Machine {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub cmdline: String,
}

/// One of the monitors.
pub trait Monitor {
    /// As in `--subjects`.
    fn name(&self) -> &'static str;

    /// The names that its program goes by, the usual one first.
    fn programs(&self) -> &'static [&'static str];

    /// The command line by which `program` runs `machine` with its console on standard output; `scratch`
    /// names a file that may be written for it.
    ///
    /// # Errors
    /// Its configuration could not be written.
    fn command(&self, program: &Path, machine: &Machine, scratch: &Path) -> io::Result<Command>;

    /// The flag that it says its version to.
    fn version_flag(&self) -> &'static str {
        "--version"
    }

    /// Whether its kernel is a bzImage, since it takes no ELF file.
    fn takes_bzimage(&self) -> bool {
        false
    }

    /// Whether the simplest command is tried first, to see if it can take part.
    fn is_tried(&self) -> bool {
        true
    }

    /// A try at the simplest command failed so: whether it will do better now.
    fn adapt(&mut self, _error: &RunError) -> bool {
        false
    }

    /// What a reader has to know of how it is run.
    fn caveats(&self) -> Vec<String>;
}

/// Of the try that tells who cannot take part: on a KVM that emulates kernels, these stand still.
const TRY: Duration = Duration::from_secs(30);

/// A monitor as a subject.
pub struct Monitored<'a, M> {
    stage: &'a Stage,
    monitor: M,
    /// As the user named it, then where it is.
    program: Option<PathBuf>,
    kernel: PathBuf,
    /// The initial RAM disk of the command that was last asked for.
    image: PathBuf,
}

impl<'a, M: Monitor> Monitored<'a, M> {
    pub fn new(stage: &'a Stage, monitor: M, program: Option<&Path>) -> Self {
        Self {
            stage,
            monitor,
            program: program.map(Path::to_path_buf),
            kernel: PathBuf::new(),
            image: PathBuf::new(),
        }
    }

    fn find(&self) -> Result<PathBuf, LeftOut> {
        if let Some(named) = &self.program {
            return find(named);
        }
        let names = self.monitor.programs();
        let mut found = names.iter().map(|name| find(Path::new(name)));
        found.find(Result::is_ok).unwrap_or_else(|| {
            Err(LeftOut::Missing {
                program: names.join(" or "),
            })
        })
    }

    fn find_kernel(&self) -> Result<PathBuf, LeftOut> {
        let unfit = |error: super::StageError| LeftOut::Unfit(error.to_string());
        match (self.monitor.takes_bzimage(), self.stage.bzimage()) {
            (false, _) => self.stage.vmlinux().map_err(unfit),
            (true, Some(kernel)) if kernel.is_file() => Ok(kernel.into()),
            (true, Some(kernel)) => Err(LeftOut::Unfit(format!(
                "{} is no file; name hull's kernel as a bzImage with --bzimage",
                kernel.display()
            ))),
            (true, None) => Err(LeftOut::Unfit(
                "it boots bzImages alone: name one of hull's kernel with --bzimage".into(),
            )),
        }
    }

    /// The initial RAM disk that runs `words`; all monitors have the same.
    fn initrd(&self, words: &[String]) -> io::Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        words.hash(&mut hasher);
        let path = self.stage.path(&format!("initrd.{:x}", hasher.finish()));
        if path.exists() {
            return Ok(path);
        }
        let first = words.first().map_or("", String::as_str);
        self.stage.find(first).map_err(io::Error::other)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let initramfs = self.stage.initramfs().map_err(io::Error::other)?;
        let init = guest::runs(first, &words);
        fs::write(&path, guest::initrd(&initramfs, &init)?)?;
        Ok(path)
    }

    fn try_once(&mut self) -> Result<(), RunError> {
        let limits = Limits {
            time: TRY,
            ..Limits::default()
        };
        let words = ["/bin/busybox", "true"].map(String::from);
        super::run(self, &words, "try", limits).map(drop)
    }
}

impl<M: Monitor> Subject for Monitored<'_, M> {
    fn name(&self) -> &str {
        self.monitor.name()
    }

    fn kind(&self) -> Kind {
        Kind::Machine
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        self.program = Some(self.find()?);
        self.kernel = self.find_kernel()?;
        if !self.monitor.is_tried() {
            return Ok(());
        }
        let mut tried = self.try_once();
        if matches!(&tried, Err(error) if self.monitor.adapt(error)) {
            tried = self.try_once();
        }
        tried.map_err(|error| LeftOut::Unfit(format!("it {error}")))
    }

    fn command(&mut self, words: &[String], id: &str) -> io::Result<Command> {
        self.image = self.initrd(words)?;
        let machine = Machine {
            kernel: self.kernel.clone(),
            initrd: self.image.clone(),
            cmdline: format!("{CMDLINE} rdinit=/{}", guest::INIT),
        };
        let missing = || io::Error::other("it was not prepared");
        let program = self.program.as_deref().ok_or_else(missing)?;
        let scratch = self.stage.path(&format!("{}.{id}", self.name()));
        let mut command = self.monitor.command(program, &machine, &scratch)?;
        // Where kvmtool has its sockets, and others what they need for a moment.
        command.env("HOME", self.stage.path("tmp"));
        command.env("TMPDIR", self.stage.path("tmp"));
        Ok(command)
    }

    fn judge(&self, output: &mut Vec<u8>) -> Result<(), String> {
        guest::judge(output)
    }

    fn clear(&mut self, id: &str) {
        let _ = fs::remove_file(self.stage.path(&format!("{}.{id}", self.name())));
    }

    fn parts(&self) -> Vec<Part> {
        let mut parts = vec![part("kernel", &self.kernel), part("image", &self.image)];
        if let Some(program) = &self.program {
            parts.insert(0, part("program", program));
        }
        parts
    }

    fn version(&self) -> Option<String> {
        first_line(self.program.as_deref()?, self.monitor.version_flag())
    }

    fn caveats(&self) -> Vec<String> {
        let mut caveats = vec![
            "hull's kernel and initial RAM disk, with an init that runs the command and nothing else; on a \
             serial console, of which each byte is an exit or more"
                .into(),
        ];
        caveats.extend(self.monitor.caveats());
        caveats
    }
}
