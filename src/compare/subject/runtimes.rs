//! runc and crun: the runtimes that container engines start containers by, without the engine.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Kind, LeftOut, Part, Stage, Subject, find, first_line, part};
use crate::compare::measure::timed::{Limits, RunError};

/// Of the try that tells whether it works here.
const TRY: Duration = Duration::from_secs(30);

/// `RUNTIME run --bundle BUNDLE ID`, the bundle as the runtime's own `spec` has it but for the command and
/// the terminal.
pub struct Runtime<'a> {
    stage: &'a Stage,
    name: String,
    program: PathBuf,
    /// What `spec` wrote.
    config: Value,
    /// Where it runs, if not where everybody does.
    apart: Option<Apart>,
}

/// A mount namespace without the second version of cgroups, which systemd mounts beside controllers of the
/// first ("hybrid mode"): crun refuses to run with both in its sight.
struct Apart {
    /// Has the namespace, until its standard input is closed.
    keeper: Child,
}

impl Apart {
    fn new() -> io::Result<Self> {
        let script = "umount /sys/fs/cgroup/unified && echo ready && exec cat";
        let mut command = Command::new("unshare");
        command.args(["--mount", "/bin/sh", "-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut keeper = command.stderr(Stdio::null()).spawn()?;
        let stdout = keeper.stdout.take();
        let apart = Self { keeper };
        let mut line = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        match line.is_empty() {
            true => Err(io::Error::other("no namespace to run it in")),
            false => Ok(apart),
        }
    }

    /// The start of a command that runs there.
    fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.keeper.id()));
        command
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

impl<'a> Runtime<'a> {
    pub fn new(stage: &'a Stage, name: &str, program: PathBuf) -> Self {
        Self {
            stage,
            name: name.into(),
            program,
            config: Value::Null,
            apart: None,
        }
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.stage.path(&format!("{}.{id}", self.name))
    }

    fn of(&self, verb: &[&str]) -> Command {
        let mut command = match &self.apart {
            Some(apart) => {
                let mut command = apart.command();
                command.arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        let state = self.stage.path(&format!("{}.state", self.name));
        command.arg("--root").arg(state).args(verb);
        command
    }

    fn try_once(&mut self) -> Result<(), RunError> {
        let limits = Limits {
            time: TRY,
            ..Limits::default()
        };
        let words = ["/bin/busybox", "true"].map(String::from);
        super::run(self, &words, "try", limits).map(drop)
    }
}

impl Subject for Runtime<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        Kind::Container
    }

    fn prepare(&mut self) -> Result<(), LeftOut> {
        self.program = find(&self.program)?;
        let bundle = self.bundle("spec");
        fs::create_dir(&bundle)?;
        let output = Command::new(&self.program)
            .arg("spec")
            .current_dir(&bundle)
            .output()?;
        let refused = || {
            let text = String::from_utf8_lossy(&output.stderr);
            LeftOut::Unfit(format!("its `spec` fails: {}", text.trim()))
        };
        let text = fs::read(bundle.join("config.json")).map_err(|_| refused())?;
        self.config = serde_json::from_slice(&text).map_err(io::Error::from)?;
        self.config["process"]["terminal"] = json!(false);
        self.config["root"] = json!({"path": self.stage.root(), "readonly": true});
        let mut tried = self.try_once();
        if matches!(&tried, Err(RunError::Failed { stderr, .. }) if stderr.contains("hybrid mode"))
            && let Ok(apart) = Apart::new()
        {
            self.apart = Some(apart);
            tried = self.try_once();
        }
        tried.map_err(|error| LeftOut::Unfit(format!("it {error}")))
    }

    fn command(&mut self, words: &[String], id: &str) -> io::Result<Command> {
        let bundle = self.bundle(id);
        fs::create_dir_all(&bundle)?;
        self.config["process"]["args"] = json!(words);
        fs::write(bundle.join("config.json"), self.config.to_string())?;
        let mut command = self.of(&["run", "--bundle"]);
        command.arg(bundle).arg(id);
        Ok(command)
    }

    fn clear(&mut self, id: &str) {
        let mut delete = self.of(&["delete", "--force", id]);
        let _ = delete.stdout(Stdio::null()).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(self.bundle(id));
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
        let mut caveats = vec![
            "the runtime alone: an engine (docker, podman, containerd) adds its own time and memory"
                .into(),
            format!("as `{} spec` has it: no seccomp filter, which engines add", self.name),
        ];
        if self.apart.is_some() {
            caveats.push(
                "this machine has cgroups in hybrid mode, which it refuses: it runs where the second \
                 version of them is not mounted; entering there (nsenter) is in its times and calls"
                    .into(),
            );
        }
        caveats
    }
}
