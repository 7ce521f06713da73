//! A program of the user that runs the command in its arguments, as `runsc do` or a script does.

use std::io;
use std::path::PathBuf;
use std::process::Command;

use super::contract::{About, Kind, Subject};
use super::program::{LeftOut, Part, part};
use super::stage::Stage;

/// Runs `PATH CMD ARG...` for the command `CMD ARG...`.
pub struct Custom<'a>(About<'a>);

impl<'a> Custom<'a> {
    pub fn new(stage: &'a Stage, name: &str, program: PathBuf) -> Self {
        Self(About {
            stage,
            name: name.into(),
            kind: Kind::Process,
            program,
        })
    }
}

impl Subject for Custom<'_> {
    fn about(&self) -> &About<'_> {
        &self.0
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        self.0.find()
    }

    fn command(&mut self, words: &[String], _id: &str) -> io::Result<Command> {
        let mut command = Command::new(&self.0.program);
        command.args(words);
        Ok(command)
    }

    fn parts(&self) -> Vec<Part> {
        vec![part("program", &self.0.program)]
    }

    fn version(&self) -> Option<String> {
        None
    }

    fn caveats(&self) -> Vec<String> {
        vec!["a program of the user: hull does not know how it runs the command".into()]
    }
}
