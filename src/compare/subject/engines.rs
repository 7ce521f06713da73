//! docker and podman: engines, with an image of the same root.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Kind, LeftOut, Part, Stage, Subject, find, first_line, part};
use crate::compare::measure::timed::{self, Limits};
use crate::compare::measure::tree;

/// `ENGINE run --rm --network none IMAGE CMD`
pub struct Engine<'a> {
    stage: &'a Stage,
    name: String,
    program: PathBuf,
    /// The image, once it is made.
    image: Option<String>,
}

impl<'a> Engine<'a> {
    pub fn new(stage: &'a Stage, name: &str, program: PathBuf) -> Self {
        Self {
            stage,
            name: name.into(),
            program,
            image: None,
        }
    }

    fn ask(&self, words: &[&str]) -> Result<(), LeftOut> {
        ask(&self.program, words)
    }

    fn quietly(&self, words: &[&str]) -> Option<String> {
        let output = Command::new(&self.program).args(words).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    }
}

impl Subject for Engine<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        Kind::Container
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        self.program = find(&self.program)?;
        self.ask(&["info"])?;
        let image = format!("hull-compare:{}", std::process::id());
        let archive = self.stage.path("root.tar");
        let root = self.stage.root();
        let [root, archive] = [root, archive].map(|path| path.to_string_lossy().into_owned());
        ask(Path::new("tar"), &["-cf", &archive, "-C", &root, "."])?;
        // Before it is there: an import that is ended may leave it.
        self.image = Some(image.clone());
        self.ask(&["import", &archive, &image])?;
        Ok(())
    }

    fn command(&mut self, words: &[String], id: &str) -> io::Result<Command> {
        let image = self
            .image
            .as_deref()
            .ok_or_else(|| io::Error::other("no image"))?;
        let mut command = Command::new(&self.program);
        command.args(["run", "--rm", "--network", "none", "--name", id]);
        command.arg(image).args(words);
        Ok(command)
    }

    /// The client, the container, and the shim or monitor over it. The engine's daemon is not there: it
    /// serves all containers.
    fn processes(&self, root: u32, id: &str) -> Vec<u32> {
        let mut processes = tree::descendants(root);
        let inside = self.quietly(&["inspect", "--format", "{{.State.Pid}}", id]);
        if let Some(pid) = inside.and_then(|text| text.parse().ok()) {
            processes.extend(tree::parent(pid).filter(|parent| *parent > 1));
            processes.extend(tree::descendants(pid));
        }
        processes.sort_unstable();
        processes.dedup();
        processes
    }

    fn clear(&mut self, id: &str) {
        let _ = self.quietly(&["rm", "--force", id]);
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
        vec!["its daemon's memory and files, which serve all containers, are not counted".into()]
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        if let Some(image) = &self.image {
            let _ = self.quietly(&["rmi", image]);
        }
    }
}

/// Have `program` do something, in a time in which any engine does that.
fn ask(program: &Path, words: &[&str]) -> Result<(), LeftOut> {
    let done = timed::run(Command::new(program).args(words), Limits::default());
    done.map(drop).map_err(|error| {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        LeftOut::Unfit(format!("`{name} {}` {error}", words[0]))
    })
}
