//! runc and crun: the runtimes of container engines, without the engine.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::contract::{About, Kind, Subject, try_out};
use super::program::LeftOut;
use super::stage::Stage;
use crate::compare::measure::error::RunError;

/// `RUNTIME run --bundle BUNDLE ID`. The bundle is that of the runtime's own `spec`, except for the command,
/// the root and the terminal.
pub struct Runtime<'a> {
    about: About<'a>,
    config: Value,
    namespace: Option<Namespace>,
}

/// A mount namespace without version 2 of cgroups, which systemd mounts beside the controllers of version 1
/// ("hybrid mode"). crun refuses to run where both are mounted.
struct Namespace {
    /// A process in the namespace, which ends when its standard input is closed.
    keeper: Child,
}

impl Namespace {
    fn new() -> io::Result<Self> {
        let script = "umount /sys/fs/cgroup/unified && echo ready && exec cat";
        let mut command = Command::new("unshare");
        command.args(["--mount", "/bin/sh", "-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut keeper = command.stderr(Stdio::null()).spawn()?;
        let stdout = keeper.stdout.take();
        let namespace = Self { keeper };
        let mut line = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        if line.is_empty() {
            return Err(io::Error::other("no mount namespace"));
        }
        Ok(namespace)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

impl<'a> Runtime<'a> {
    pub fn new(stage: &'a Stage, name: &str, program: PathBuf) -> Self {
        Self {
            about: About::new(stage, name, Kind::Container, program),
            config: Value::Null,
            namespace: None,
        }
    }

    fn bundle(&self, id: &str) -> PathBuf {
        let About { stage, name, .. } = &self.about;
        stage.path(&format!("{name}.{id}"))
    }

    fn invoke(&self, words: &[&str]) -> Command {
        let About { name, program, .. } = &self.about;
        let mut command = match &self.namespace {
            Some(Namespace { keeper }) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--mount=/proc/{}/ns/mnt", keeper.id()));
                command.arg(program);
                command
            }
            None => Command::new(program),
        };
        let state = self.about.stage.path(&format!("{name}.state"));
        command.arg("--root").arg(state).args(words);
        command
    }
}

impl Subject for Runtime<'_> {
    fn about(&self) -> &About<'_> {
        &self.about
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        self.about.find()?;
        let bundle = self.bundle("spec");
        fs::create_dir(&bundle)?;
        let mut spec = Command::new(&self.about.program);
        let output = spec.arg("spec").current_dir(&bundle).output()?;
        let refused = || {
            let text = String::from_utf8_lossy(&output.stderr);
            LeftOut::Unfit(format!("its `spec` fails: {}", text.trim()))
        };
        let text = fs::read(bundle.join("config.json")).map_err(|_| refused())?;
        self.config = serde_json::from_slice(&text).map_err(io::Error::from)?;
        self.config["process"]["terminal"] = json!(false);
        self.config["root"] = json!({"path": self.about.stage.root(), "readonly": true});
        let mut tried = try_out(self);
        if matches!(&tried, Err(RunError::Failed(_, stderr)) if stderr.contains("hybrid mode"))
            && let Ok(namespace) = Namespace::new()
        {
            self.namespace = Some(namespace);
            tried = try_out(self);
        }
        tried.map_err(|error| LeftOut::Unfit(format!("it {error}")))
    }

    fn command(&mut self, words: &[String], id: &str) -> io::Result<Command> {
        let bundle = self.bundle(id);
        fs::create_dir_all(&bundle)?;
        self.config["process"]["args"] = json!(words);
        fs::write(bundle.join("config.json"), self.config.to_string())?;
        let mut command = self.invoke(&["run", "--bundle"]);
        command.arg(bundle).arg(id);
        Ok(command)
    }

    fn clear(&mut self, id: &str) {
        let mut delete = self.invoke(&["delete", "--force", id]);
        let _ = delete.stdout(Stdio::null()).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(self.bundle(id));
    }

    fn caveats(&self) -> Vec<String> {
        let name = &self.about.name;
        let mut caveats = vec![
            "the runtime only: an engine (docker, podman, containerd) adds its own time and memory"
                .into(),
            format!("with the defaults of `{name} spec`: no seccomp filter, which engines add"),
        ];
        if self.namespace.is_some() {
            caveats.push(
                "this machine has cgroups in hybrid mode, which it refuses: it runs in a mount namespace \
                 without version 2 of cgroups; its times and calls include entering it (nsenter)"
                    .into(),
            );
        }
        caveats
    }
}
