//! Firecracker over its API socket: HTTP/1.1, with a connection for each request.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use super::error::BenchError;
use super::plan::{Bench, Program};
use super::resumed::{ResumedGuest, SETTLE_TIME, SavedGuest, idle_machine};
use crate::compare::measure::stop::pause;
use crate::compare::measure::stream::Stream;
use crate::compare::measure::timed::Running;
use crate::compare::subject::guest::{LINE, TYPED};
use crate::compare::subject::monitors::firecracker_config;

const MAX_MESSAGE: usize = 4096;

/// The idle guest as a snapshot of Firecracker.
pub struct Snapshot<'a> {
    bench: &'a Bench,
    program: &'a Program,
}

impl<'a> Snapshot<'a> {
    pub fn new(bench: &'a Bench, program: &'a Program) -> Self {
        Self { bench, program }
    }

    fn start(&self, name: &str, input: Option<&str>) -> Result<(Running, PathBuf), BenchError> {
        let socket = self.socket(name);
        // A killed Firecracker leaves its socket.
        let _ = fs::remove_file(&socket);
        let mut command = Command::new(&self.program.path);
        command.arg("--api-sock").arg(&socket);
        let running = Running::start(&mut command, self.bench.timeout, input)?;
        Ok((running, socket))
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.bench.path(&format!("firecracker.{name}"))
    }

    fn request(
        &self,
        socket: &Path,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Result<(), BenchError> {
        let stream = Stream::new(UnixStream::connect(socket)?, self.bench.timeout)?;
        exchange(stream, method, path, body)
    }

    fn files(&self, which: &str) -> [PathBuf; 2] {
        ["state", "memory"].map(|part| self.bench.path(&format!("firecracker.{which}.{part}")))
    }

    fn save_to(&self, socket: &Path, which: &str) -> Result<(), BenchError> {
        self.request(socket, "PATCH", "vm", &json!({"state": "Paused"}))?;
        let [state, memory] = self.files(which);
        let create = json!({"snapshot_path": state, "mem_file_path": memory});
        self.request(socket, "PUT", "snapshot/create", &create)
    }
}

impl SavedGuest for Snapshot<'_> {
    fn save(&mut self) -> Result<(), BenchError> {
        let (mut running, socket) = self.start("first", None)?;
        running.connect(&socket)?;
        let config = firecracker_config(&idle_machine(self.bench)?);
        for resource in ["boot-source", "machine-config"] {
            self.request(&socket, "PUT", resource, &config[resource])?;
        }
        let start = json!({"action_type": "InstanceStart"});
        self.request(&socket, "PUT", "actions", &start)?;
        running.until(LINE)?;
        pause(SETTLE_TIME)?;
        self.save_to(&socket, "saved")
    }

    fn restore(&mut self, name: &str) -> Result<ResumedGuest, BenchError> {
        let (mut running, socket) = self.start(name, Some(TYPED))?;
        let [state, memory] = self.files("saved");
        let load = json!({
            "snapshot_path": state,
            "mem_backend": {"backend_type": "File", "backend_path": memory},
            "resume_vm": true,
        });
        let stream = running.connect(&socket)?;
        exchange(stream, "PUT", "snapshot/load", &load)?;
        let answered = running.elapsed();
        Ok(ResumedGuest { running, answered })
    }

    fn save_again(&mut self, name: &str) -> Result<[f64; 2], BenchError> {
        let socket = self.socket(name);
        let started = Instant::now();
        self.save_to(&socket, "again")?;
        self.request(&socket, "PATCH", "vm", &json!({"state": "Resumed"}))?;
        // The guest is paused from the first request to the last.
        Ok([started.elapsed().as_secs_f64() * 1e3; 2])
    }

    fn first_run(&mut self, _: &str, _: ResumedGuest) -> Result<Option<f64>, BenchError> {
        Ok(None)
    }
}

fn exchange(mut stream: Stream, method: &str, path: &str, body: &Value) -> Result<(), BenchError> {
    let body = body.to_string();
    write!(
        stream,
        "{method} /{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    if head.starts_with("http/1.1 20") {
        return Ok(());
    }
    // The body has the error message.
    let mut fields = head.lines();
    let length =
        fields.find_map(|field| field.strip_prefix("content-length:")?.trim().parse().ok());
    let mut message = vec![0; MAX_MESSAGE.min(length.unwrap_or(0))];
    stream.read_exact(&mut message)?;
    let message = String::from_utf8_lossy(&message);
    let message = message.trim();
    Err(BenchError::Other(format!("{method} /{path}: {message}")))
}
