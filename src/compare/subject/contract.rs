//! What a subject must do, and how an instance of one runs a command.

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::program::{LeftOut, Part, find, first_line, part};
use super::stage::Stage;
use crate::compare::measure::error::RunError;
use crate::compare::measure::timed::{self, Running, Timed};
use crate::compare::measure::tree;

pub const IDLE: [&str; 4] = ["/bin/busybox", "sh", "-c", "echo up; exec sleep 100000"];
/// What [`IDLE`] prints when it is up.
pub const UP: &str = "up\n";
/// Time limit of [`try_out`]: on a KVM that emulates kernels, some monitors hang.
const TRY_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Process,
    /// Processes in namespaces of the host's kernel.
    Container,
    Machine,
}

pub struct About<'a> {
    pub stage: &'a Stage,
    /// The name that `--subjects` knows.
    pub name: String,
    pub kind: Kind,
    /// As the user named it; an existing path after [`About::find`].
    pub program: PathBuf,
}

impl<'a> About<'a> {
    pub(crate) fn new(stage: &'a Stage, name: &str, kind: Kind, program: PathBuf) -> Self {
        Self {
            stage,
            name: name.into(),
            kind,
            program,
        }
    }

    pub fn find(&mut self) -> Result<(), LeftOut> {
        self.program = find(&self.program)?;
        Ok(())
    }
}

/// What runs commands. A caller prepares it once. Each instance has an ID; its command has ended or was
/// killed before the caller clears it.
pub trait Subject {
    fn about(&self) -> &About<'_>;

    /// Finds the programs, and makes the files that instances start from.
    fn prepare(&mut self) -> Result<(), LeftOut>;

    /// A command on the host that runs `words` in a new instance named `id`. Its standard output is that of
    /// the words, and its status is 0 if theirs is. The first word is a path in the [`Stage`]'s root.
    fn command(&mut self, words: &[String], id: &str) -> io::Result<Command>;

    /// Whether the words ended with status 0, after their [`command`](Self::command) did. The guest of a
    /// monitor says so at the end of `output`, from which this is removed. The text of an error continues the
    /// sentence "it ...".
    fn judge(&self, _output: &mut Vec<u8>) -> Result<(), String> {
        Ok(())
    }

    /// All processes that an instance needs; `root` is that of its command.
    fn processes(&self, root: u32, _id: &str) -> Vec<u32> {
        tree::descendants(root)
    }

    /// Removes what is left of instance `id` after its command has ended or was killed.
    fn clear(&mut self, _id: &str) {}

    fn parts(&self) -> Vec<Part> {
        let About { stage, program, .. } = self.about();
        vec![part("program", program), part("image", &stage.root())]
    }

    fn version(&self) -> Option<String> {
        first_line(&self.about().program, "--version")
    }

    fn caveats(&self) -> Vec<String>;
}

/// Runs `words` to their end in an instance named `id`, and clears it.
pub fn run(
    subject: &mut dyn Subject,
    words: &[String],
    id: &str,
    timeout: Duration,
) -> Result<Timed, RunError> {
    let command = subject.command(words, id).map_err(RunError::Start);
    let timed = command.and_then(|mut command| timed::run(&mut command, timeout));
    ended(subject, id, timed)
}

/// Clears instance `id`, which has ended, and judges its output.
fn ended(
    subject: &mut dyn Subject,
    id: &str,
    timed: Result<Timed, RunError>,
) -> Result<Timed, RunError> {
    subject.clear(id);
    let mut timed = timed?;
    subject.judge(&mut timed.output).map_err(RunError::Judged)?;
    if timed.output.is_empty() {
        // The only output was what `judge` removed.
        (timed.first_byte, timed.last_byte) = (None, None);
    }
    Ok(timed)
}

pub(crate) struct Instance {
    id: String,
    pub running: Running,
}

impl Instance {
    pub fn processes(&self, subject: &dyn Subject) -> Vec<u32> {
        subject.processes(self.running.id(), &self.id)
    }

    /// Waits for the end of its words.
    pub fn finish(self, subject: &mut dyn Subject) -> Result<Timed, RunError> {
        ended(subject, &self.id, self.running.finish())
    }

    /// Kills the instance and clears it.
    pub fn end(self, subject: &mut dyn Subject) {
        drop(self.running);
        subject.clear(&self.id);
    }
}

/// Starts `words` in an instance named `id`, and waits until it prints `text`.
pub(crate) fn start(
    subject: &mut dyn Subject,
    words: &[String],
    text: &str,
    id: String,
    timeout: Duration,
) -> Result<Instance, RunError> {
    let command = subject.command(words, &id).map_err(RunError::Start);
    let up = command.and_then(|mut command| {
        let mut running = Running::start(&mut command, timeout, None)?;
        running.until(text)?;
        Ok(running)
    });
    if up.is_err() {
        subject.clear(&id);
    }
    up.map(|running| Instance { id, running })
}

/// Runs the simplest command, to find out whether `subject` works here.
pub fn try_out(subject: &mut dyn Subject) -> Result<(), RunError> {
    let words = words(&["/bin/busybox", "true"]);
    run(subject, &words, "try", TRY_TIMEOUT).map(drop)
}

pub fn words<S: AsRef<str>>(words: &[S]) -> Vec<String> {
    words.iter().map(|word| word.as_ref().to_owned()).collect()
}
