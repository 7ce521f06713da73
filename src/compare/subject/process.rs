//! A process of the host, the measure of all others.

use std::io;
use std::process::Command;

use super::{Kind, LeftOut, Part, Stage, Subject, part};

/// The command, started directly.
pub struct Process<'a> {
    stage: &'a Stage,
}

impl<'a> Process<'a> {
    pub fn new(stage: &'a Stage) -> Self {
        Self { stage }
    }
}

impl Subject for Process<'_> {
    fn name(&self) -> &str {
        "process"
    }

    fn kind(&self) -> Kind {
        Kind::Process
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        Ok(())
    }

    fn command(&mut self, words: &[String], _id: &str) -> io::Result<Command> {
        let first = words.first().map_or("", String::as_str);
        self.stage.find(first).map_err(io::Error::other)?;
        // By its own name, which may be a link's: busybox is told by it what to do.
        let mut command = Command::new(self.stage.root().join(first.trim_start_matches('/')));
        command.args(words.iter().skip(1));
        Ok(command)
    }

    fn parts(&self) -> Vec<Part> {
        vec![part("image", &self.stage.root())]
    }

    fn version(&self) -> Option<String> {
        None
    }

    fn caveats(&self) -> Vec<String> {
        vec!["it is started by hull, of whose file system it has only the same busybox".into()]
    }
}
