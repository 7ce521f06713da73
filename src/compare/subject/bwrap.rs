//! bubblewrap: namespaces without a runtime or an engine.

use std::io;
use std::path::PathBuf;
use std::process::Command;

use super::{Kind, LeftOut, Part, Stage, Subject, find, first_line, part};

/// `bwrap --unshare-all ... CMD`
pub struct Bwrap<'a> {
    stage: &'a Stage,
    program: PathBuf,
}

impl<'a> Bwrap<'a> {
    pub fn new(stage: &'a Stage, program: PathBuf) -> Self {
        Self { stage, program }
    }
}

impl Subject for Bwrap<'_> {
    fn name(&self) -> &str {
        "bwrap"
    }

    fn kind(&self) -> Kind {
        Kind::Container
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        self.program = find(&self.program)?;
        Ok(())
    }

    fn command(&mut self, words: &[String], _id: &str) -> io::Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(["--unshare-all", "--die-with-parent", "--bind"]);
        command.arg(self.stage.root()).arg("/");
        command.args(["--proc", "/proc", "--dev", "/dev", "--clearenv"]);
        command
            .args(["--setenv", "PATH", "/bin:/sbin", "--"])
            .args(words);
        Ok(command)
    }

    fn parts(&self) -> Vec<Part> {
        vec![
            part("program", &self.program),
            part("image", &self.stage.root()),
        ]
    }

    fn version(&self) -> Option<String> {
        first_line(&self.program, "--version")
    }

    fn caveats(&self) -> Vec<String> {
        vec!["namespaces alone: no cgroup, no seccomp filter, unless asked for".into()]
    }
}
