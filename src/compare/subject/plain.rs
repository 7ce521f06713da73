//! The subjects that need no preparation: a process, bubblewrap, and a program of the user.

use std::io;
use std::path::PathBuf;
use std::process::Command;

use super::contract::{About, Kind, Subject};
use super::program::{LeftOut, Part, first_line, part};
use super::stage::Stage;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// hull: the process to which all others are compared.
    Process,
    /// bubblewrap, in namespaces without a runtime or an engine: `bwrap --unshare-all ... CMD`.
    Bwrap,
    /// A program of the user with the command in its arguments, as `runsc do` or a script does: `PATH CMD ARG...`.
    Custom,
}

pub struct Plain<'a> {
    about: About<'a>,
    way: Way,
}

impl<'a> Plain<'a> {
    pub fn new(stage: &'a Stage, name: &str, program: PathBuf, way: Way) -> Self {
        let kind = match way {
            Way::Bwrap => Kind::Container,
            Way::Process | Way::Custom => Kind::Process,
        };
        let about = About::new(stage, name, kind, program);
        Self { about, way }
    }
}

impl Subject for Plain<'_> {
    fn about(&self) -> &About<'_> {
        &self.about
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        if self.way == Way::Process {
            return Ok(());
        }
        self.about.find()
    }

    fn command(&mut self, words: &[String], _id: &str) -> io::Result<Command> {
        let About { stage, program, .. } = &self.about;
        let mut command = Command::new(program);
        match self.way {
            Way::Process => {
                let first = words.first().map_or("", String::as_str);
                stage.find(first).map_err(io::Error::other)?;
                // Not the target of a link: busybox chooses the applet by its own name.
                command = Command::new(stage.root().join(first.trim_start_matches('/')));
                command.args(words.iter().skip(1));
            }
            Way::Bwrap => {
                command.args(["--unshare-all", "--die-with-parent", "--bind"]);
                command.arg(stage.root()).arg("/");
                command.args(["--proc", "/proc", "--dev", "/dev", "--clearenv"]);
                command.args(["--setenv", "PATH", "/bin:/sbin", "--"]);
                command.args(words);
            }
            Way::Custom => {
                command.args(words);
            }
        }
        Ok(command)
    }

    fn parts(&self) -> Vec<Part> {
        let program = part("program", &self.about.program);
        let image = part("image", &self.about.stage.root());
        match self.way {
            Way::Process => vec![image],
            Way::Bwrap => vec![program, image],
            Way::Custom => vec![program],
        }
    }

    fn version(&self) -> Option<String> {
        let is_known = self.way == Way::Bwrap;
        is_known.then(|| first_line(&self.about.program, "--version"))?
    }

    fn caveats(&self) -> Vec<String> {
        let caveat = match self.way {
            Way::Process => {
                "started by hull; it shares only the busybox file with the other subjects"
            }
            Way::Bwrap => {
                "namespaces only: by default bwrap sets up no cgroup and no seccomp filter"
            }
            Way::Custom => "a program of the user: hull does not know how it runs the command",
        };
        vec![caveat.into()]
    }
}
