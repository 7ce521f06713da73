//! runc and crun: the runtimes that container engines start containers by, without the engine.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Kind, LeftOut, Part, Stage, Subject, find, first_line, part};

/// `RUNTIME run --bundle BUNDLE ID`, the bundle as the runtime's own `spec` has it but for the command and
/// the terminal.
pub struct Runtime<'a> {
    stage: &'a Stage,
    name: String,
    program: PathBuf,
    /// What `spec` wrote.
    config: Value,
}

impl<'a> Runtime<'a> {
    pub fn new(stage: &'a Stage, name: &str, program: PathBuf) -> Self {
        Self {
            stage,
            name: name.into(),
            program,
            config: Value::Null,
        }
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.stage.path(&format!("{}.{id}", self.name))
    }

    fn of(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        let state = self.stage.path(&format!("{}.state", self.name));
        command.arg("--root").arg(state).args(verb);
        command
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
        Ok(())
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
        vec![
            "the runtime alone: an engine (docker, podman, containerd) adds its own time and memory"
                .into(),
            format!("as `{} spec` has it: no seccomp filter, which engines add", self.name),
        ]
    }
}
