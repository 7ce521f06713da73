//! hull itself: a machine that goes on from a template, and one that boots.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::monitors::{MEMORY_MIB, Machine, Monitor};
use super::{Kind, LeftOut, Part, Stage, Subject, part};

/// `hull run -- CMD`, with or without `--cold`.
pub struct Hull<'a> {
    stage: &'a Stage,
    name: String,
    program: PathBuf,
}

/// `hull run --name ID`, with a cache and records of its own: templates of the user's are neither used nor
/// pushed out.
pub fn run(stage: &Stage, program: &Path, id: &str) -> Command {
    let mut command = Command::new(program);
    command.env("HULL_CACHE", stage.path("cache"));
    command.env("XDG_RUNTIME_DIR", stage.path("run"));
    command.env("TMPDIR", stage.path("tmp"));
    command.args(["run", "--name", id]);
    command
}

impl<'a> Hull<'a> {
    pub fn new(stage: &'a Stage, name: &str) -> Self {
        Self {
            stage,
            name: name.into(),
            program: PathBuf::new(),
        }
    }

    fn is_warm(&self) -> bool {
        self.name == "hull-warm"
    }
}

impl Subject for Hull<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        Kind::Machine
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        self.program = std::env::current_exe()?;
        match std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
        {
            Ok(_) => Ok(()),
            Err(error) => Err(LeftOut::Unfit(format!(
                "/dev/kvm: {error}; see hull doctor"
            ))),
        }
    }

    fn command(&mut self, words: &[String], id: &str) -> io::Result<Command> {
        let mut command = run(self.stage, &self.program, id);
        if !self.is_warm() {
            command.arg("--cold");
        }
        command.arg("--").args(words);
        Ok(command)
    }

    fn parts(&self) -> Vec<Part> {
        let mut parts = vec![part("program, kernel and image", &self.program)];
        if self.is_warm() {
            parts.push(part("template", &self.stage.path("cache")));
        }
        parts
    }

    fn version(&self) -> Option<String> {
        Some(format!("hull {}", env!("CARGO_PKG_VERSION")))
    }

    fn caveats(&self) -> Vec<String> {
        match self.is_warm() {
            true => {
                vec!["starts from a machine that has booted before; the warm-up made it".into()]
            }
            false => Vec::new(),
        }
    }
}

/// `hull run KERNEL`, with the machine that the other monitors have.
pub struct Bare;

impl Monitor for Bare {
    fn name(&self) -> &'static str {
        "hull"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["hull"]
    }

    fn command(&self, program: &Path, machine: &Machine, scratch: &Path) -> io::Result<Command> {
        let mut command = Command::new(program);
        let stage = scratch.parent().unwrap_or(scratch);
        command.env("HULL_CACHE", stage.join("cache"));
        command.env("XDG_RUNTIME_DIR", stage.join("run"));
        command.arg("run").arg(&machine.kernel);
        command.arg("--initrd").arg(&machine.initrd);
        command.args(["--cmdline", &machine.cmdline]);
        command.args(["--memory", &format!("{MEMORY_MIB}M")]);
        Ok(command)
    }

    /// It runs wherever it is measured, however slowly.
    fn is_tried(&self) -> bool {
        false
    }

    fn caveats(&self) -> Vec<String> {
        Vec::new()
    }
}
