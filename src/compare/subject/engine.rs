//! docker and podman: container engines, with an image of the common root file system.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use super::contract::{About, Kind, Subject, try_out};
use super::program::LeftOut;
use super::stage::Stage;
use crate::compare::measure::error::RunError;
use crate::compare::measure::timed;
use crate::compare::measure::tree;

const TIMEOUT: Duration = Duration::from_secs(60);

/// `ENGINE run --rm --network none IMAGE CMD`
pub struct Engine<'a> {
    about: About<'a>,
    image: Option<String>,
    /// A containers.conf of our own, where podman's limits of open files are above this process's.
    limits: Option<PathBuf>,
}

impl<'a> Engine<'a> {
    pub fn new(stage: &'a Stage, name: &str, program: PathBuf) -> Self {
        let about = About::new(stage, name, Kind::Container, program);
        Self {
            about,
            image: None,
            limits: None,
        }
    }

    /// A containers.conf that asks for no more open files than this process may have.
    fn own_limits(&self) -> io::Result<PathBuf> {
        let path = self.about.stage.path("containers.conf");
        let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20);
        let text = format!("[containers]\ndefault_ulimits = [\"nofile={limit}:{limit}\"]\n");
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// What the engine prints; `None` if it fails.
    fn query(&self, words: &[&str]) -> Option<String> {
        let output = Command::new(&self.about.program).args(words).output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Subject for Engine<'_> {
    fn about(&self) -> &About<'_> {
        &self.about
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        self.about.find()?;
        let About { stage, program, .. } = &self.about;
        run(program, &["info"])?;
        let image = format!("hull-compare:{}", std::process::id());
        let [root, archive] =
            [stage.root(), stage.path("root.tar")].map(|path| path.to_string_lossy().into_owned());
        run(Path::new("tar"), &["-cf", &archive, "-C", &root, "."])?;
        // Before the import: an interrupted import may leave an image.
        self.image = Some(image.clone());
        run(program, &["import", &archive, &image])?;
        // podman asks for more open files than a container's runtime may have here.
        if self.about.name == "podman"
            && matches!(try_out(self), Err(RunError::Failed(_, told)) if told.contains("RLIMIT_NOFILE"))
        {
            self.limits = Some(self.own_limits()?);
        }
        Ok(())
    }

    fn command(&mut self, words: &[String], id: &str) -> io::Result<Command> {
        let image = self.image.as_deref();
        let image = image.ok_or_else(|| io::Error::other("no image"))?;
        let mut command = Command::new(&self.about.program);
        if let Some(limits) = &self.limits {
            command.env("CONTAINERS_CONF", limits);
        }
        command.args(["run", "--rm", "--network", "none", "--name", id]);
        command.arg(image).args(words);
        Ok(command)
    }

    /// The client, the container, and the shim or monitor above it; not the engine's daemon, which serves all
    /// containers.
    fn processes(&self, root: u32, id: &str) -> Vec<u32> {
        let mut processes = tree::descendants(root);
        let inside = self.query(&["inspect", "--format", "{{.State.Pid}}", id]);
        if let Some(pid) = inside.and_then(|text| text.parse().ok()) {
            processes.extend(tree::parent(pid).filter(|parent| *parent > 1));
            processes.extend(tree::descendants(pid));
        }
        processes.sort_unstable();
        processes.dedup();
        processes
    }

    fn clear(&mut self, id: &str) {
        let _ = self.query(&["rm", "--force", id]);
    }

    fn caveats(&self) -> Vec<String> {
        let mut caveats: Vec<String> = vec![
            "memory and files of its daemon, which serves all containers, are not counted".into(),
        ];
        if self.limits.is_some() {
            caveats.push(
                "it asks for more open files than this process may have: it runs with a containers.conf \
                 with this process's limit, and nothing else of the machine's"
                    .into(),
            );
        }
        caveats
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        if let Some(image) = &self.image {
            let _ = self.query(&["rmi", image]);
        }
    }
}

fn run(program: &Path, words: &[&str]) -> Result<(), LeftOut> {
    let done = timed::run(Command::new(program).args(words), TIMEOUT);
    done.map(drop).map_err(|error| {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        LeftOut::Unfit(format!("`{name} {}` {error}", words[0]))
    })
}
