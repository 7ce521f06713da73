//! A process of the host, to which all others are compared.

use std::io;
use std::path::PathBuf;
use std::process::Command;

use super::contract::{About, Kind, Subject};
use super::program::{LeftOut, Part, part};
use super::stage::Stage;

/// The command, started directly.
pub struct Process<'a>(About<'a>);

impl<'a> Process<'a> {
    pub fn new(stage: &'a Stage) -> Self {
        Self(About {
            stage,
            name: "process".into(),
            kind: Kind::Process,
            program: PathBuf::new(),
        })
    }
}

impl Subject for Process<'_> {
    fn about(&self) -> &About<'_> {
        &self.0
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        Ok(())
    }

    fn command(&mut self, words: &[String], _id: &str) -> io::Result<Command> {
        let stage = self.0.stage;
        let first = words.first().map_or("", String::as_str);
        stage.find(first).map_err(io::Error::other)?;
        // Not the target of a link: busybox chooses the applet by its own name.
        let mut command = Command::new(stage.root().join(first.trim_start_matches('/')));
        command.args(words.iter().skip(1));
        Ok(command)
    }

    fn parts(&self) -> Vec<Part> {
        vec![part("image", &self.0.stage.root())]
    }

    fn version(&self) -> Option<String> {
        None
    }

    fn caveats(&self) -> Vec<String> {
        vec!["started by hull; it shares only the busybox file with the other subjects".into()]
    }
}
