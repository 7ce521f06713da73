//! hull with a command, from a template or booted.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::contract::{About, Kind, Subject};
use super::program::{LeftOut, Part, part};
use super::stage::Stage;

/// `program` with its cache, its records and its temporary files in the stage: it neither uses nor evicts
/// templates of the user.
pub fn command(stage: &Stage, program: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.env("HULL_CACHE", stage.path("cache"));
    command.env("XDG_RUNTIME_DIR", stage.path("run"));
    command.env("TMPDIR", stage.path("tmp"));
    command.args(words);
    command
}

/// `hull run -- CMD`, with or without `--cold`.
pub struct Hull<'a>(About<'a>);

impl<'a> Hull<'a> {
    pub fn new(stage: &'a Stage, name: &str) -> Self {
        Self(About::new(stage, name, Kind::Machine, PathBuf::new()))
    }

    fn is_warm(&self) -> bool {
        self.0.name == "hull-warm"
    }
}

impl Subject for Hull<'_> {
    fn about(&self) -> &About<'_> {
        &self.0
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        self.0.program = std::env::current_exe()?;
        let mut open = OpenOptions::new();
        let kvm = open.read(true).write(true).open("/dev/kvm");
        let unfit = |error| LeftOut::Unfit(format!("/dev/kvm: {error}; see hull doctor"));
        kvm.map(drop).map_err(unfit)
    }

    fn command(&mut self, words: &[String], id: &str) -> io::Result<Command> {
        let mut command = command(self.0.stage, &self.0.program, &["run", "--name", id]);
        if !self.is_warm() {
            command.arg("--cold");
        }
        command.arg("--").args(words);
        Ok(command)
    }

    fn parts(&self) -> Vec<Part> {
        let mut parts = vec![part("program, kernel and image", &self.0.program)];
        if self.is_warm() {
            parts.push(part("template", &self.0.stage.path("cache")));
        }
        parts
    }

    fn version(&self) -> Option<String> {
        Some(format!("hull {}", env!("CARGO_PKG_VERSION")))
    }

    fn caveats(&self) -> Vec<String> {
        let caveat = "starts from a template, which the warm-up made";
        let caveat = self.is_warm().then(|| caveat.into());
        caveat.into_iter().collect()
    }
}
