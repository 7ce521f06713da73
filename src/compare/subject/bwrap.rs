//! bubblewrap: namespaces without a runtime or an engine.

use std::io;
use std::path::PathBuf;
use std::process::Command;

use super::contract::{About, Subject};
use super::program::LeftOut;
use super::stage::Stage;

/// `bwrap --unshare-all ... CMD`
pub struct Bwrap<'a>(About<'a>);

impl<'a> Bwrap<'a> {
    pub fn new(stage: &'a Stage, program: PathBuf) -> Self {
        Self(About::container(stage, "bwrap", program))
    }
}

impl Subject for Bwrap<'_> {
    fn about(&self) -> &About<'_> {
        &self.0
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        self.0.find()
    }

    fn command(&mut self, words: &[String], _id: &str) -> io::Result<Command> {
        let mut command = Command::new(&self.0.program);
        command.args(["--unshare-all", "--die-with-parent", "--bind"]);
        command.arg(self.0.stage.root()).arg("/");
        command.args(["--proc", "/proc", "--dev", "/dev", "--clearenv"]);
        command.args(["--setenv", "PATH", "/bin:/sbin", "--"]);
        command.args(words);
        Ok(command)
    }

    fn caveats(&self) -> Vec<String> {
        vec!["namespaces only: by default bwrap sets up no cgroup and no seccomp filter".into()]
    }
}
