//! Firecracker over its API socket: HTTP/1.1, a connection for each request.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::files::{Files, MEMORY_MIB};
use super::guest::{LINE, TYPED};
use super::process::Process;
use super::{Result, SETTLE};

/// What its log says after a restore, before and behind the figure.
const LOGGED: [&str; 2] = ["'load snapshot' VMM action took ", " us"];

/// The program, and what it has for its guests.
pub struct Firecracker<'a> {
    files: &'a Files,
    program: PathBuf,
}

impl<'a> Firecracker<'a> {
    pub fn new(files: &'a Files, program: &Path) -> Result<Self> {
        Ok(Self {
            program: files.copy(program)?,
            files,
        })
    }

    /// Boot to the end of the command, from a configuration file.
    pub fn cold(&self) -> Result<f64> {
        let config = self.files.path("fc.json");
        let mut machine = json!({ "drives": [] });
        for (path, body) in self.machine("command") {
            machine[path] = body;
        }
        fs::write(&config, machine.to_string())?;
        let mut command = self.command();
        command.args(["--no-api", "--config-file"]).arg(config);
        Process::start(&mut command, &self.files.path("err"))?.end("hi\n")
    }

    /// Boot the idle guest, and save it.
    pub fn save(&self) -> Result<()> {
        let (mut process, socket) = self.with_socket(None)?;
        for (path, body) in self.machine("idle") {
            request(&mut process, &socket, "PUT", path, &body)?;
        }
        let start = json!({"action_type": "InstanceStart"});
        request(&mut process, &socket, "PUT", "actions", &start)?;
        process.until(LINE)?;
        std::thread::sleep(SETTLE);
        request(
            &mut process,
            &socket,
            "PATCH",
            "vm",
            &json!({"state": "Paused"}),
        )?;
        let [state, memory] = self.saved();
        let create = json!({"snapshot_path": state, "mem_file_path": memory});
        request(&mut process, &socket, "PUT", "snapshot/create", &create)
    }

    /// Load and resume: when the request was answered, and when the guest echoed a character.
    pub fn restore(&self, log: Option<&Path>) -> Result<[f64; 2]> {
        let (mut process, socket) = self.with_socket(log)?;
        process.write(TYPED)?;
        let [state, memory] = self.saved();
        let load = json!({
            "snapshot_path": state,
            "mem_backend": {"backend_type": "File", "backend_path": memory},
            "resume_vm": true,
        });
        request(&mut process, &socket, "PUT", "snapshot/load", &load)?;
        let answered = process.ms();
        Ok([answered, process.until(TYPED)?])
    }

    /// What it says itself that loading took, of which its own start is no part.
    pub fn own_figure(&self) -> Result<f64> {
        let log = self.files.path("fc.log");
        fs::write(&log, "")?;
        self.restore(Some(&log))?;
        let text = fs::read_to_string(&log)?;
        let figure = text
            .split_once(LOGGED[0])
            .and_then(|(_, rest)| rest.split_once(LOGGED[1]));
        let (microseconds, _) = figure.ok_or_else(|| {
            let last = text.lines().last().unwrap_or("nothing");
            format!("its log has no figure, but ends with: {last}")
        })?;
        Ok(microseconds.trim().parse::<f64>()? / 1e3)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--no-seccomp");
        command
    }

    fn with_socket(&self, log: Option<&Path>) -> Result<(Process, PathBuf)> {
        let socket = self.files.path("fc.sock");
        let _ = fs::remove_file(&socket); // of the one before, which was killed
        let mut command = self.command();
        command.arg("--api-sock").arg(&socket);
        if let Some(log) = log {
            command.args(["--level", "Debug", "--log-path"]).arg(log);
        }
        let process = Process::start(&mut command, &self.files.path("err"))?;
        Ok((process, socket))
    }

    fn machine(&self, guest: &str) -> [(&'static str, Value); 2] {
        let boot = json!({
            "kernel_image_path": self.files.kernel(),
            "initrd_path": self.files.path(guest),
            "boot_args": self.files.words(),
        });
        let machine = json!({"vcpu_count": 1, "mem_size_mib": MEMORY_MIB});
        [("boot-source", boot), ("machine-config", machine)]
    }

    fn saved(&self) -> [PathBuf; 2] {
        ["fc.state", "fc.memory"].map(|name| self.files.path(name))
    }
}

fn request(
    process: &mut Process,
    socket: &Path,
    method: &str,
    path: &str,
    body: &Value,
) -> Result<()> {
    let mut stream = process.connect(socket)?;
    let body = body.to_string();
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let answer = head_of_answer(&mut stream)?;
    match answer.starts_with("HTTP/1.1 20") {
        true => Ok(()),
        false => {
            // What is wrong stands in the body, which is there by now or soon.
            stream.set_read_timeout(Some(Duration::from_millis(200)))?;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            let rest = String::from_utf8_lossy(&rest).into_owned();
            Err(format!("{method} /{path}: {rest}").into())
        }
    }
}

fn head_of_answer(stream: &mut UnixStream) -> Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
