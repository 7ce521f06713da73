//! A program of the user's that runs what it is given as arguments, as `runsc do` or a script does.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Kind, LeftOut, Part, Subject, find, part};

/// `PATH CMD ARG...`
pub struct Custom {
    name: String,
    program: PathBuf,
}

impl Custom {
    pub fn new(name: &str, program: &Path) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
        }
    }
}

impl Subject for Custom {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        Kind::Process
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        self.program = find(&self.program)?;
        Ok(())
    }

    fn command(&mut self, words: &[String], _id: &str) -> io::Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(words);
        Ok(command)
    }

    fn parts(&self) -> Vec<Part> {
        vec![part("program", &self.program)]
    }

    fn version(&self) -> Option<String> {
        None
    }

    fn caveats(&self) -> Vec<String> {
        vec!["a program of the user's: hull does not know how it runs the command".into()]
    }
}
