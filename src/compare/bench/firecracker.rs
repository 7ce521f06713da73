//! Firecracker over its API socket: HTTP/1.1, a connection for each request.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use super::Bench;
use super::hull::{SETTLE, idle_initrd, idle_words};
use super::restore::{Clone, Saved};
use super::turns::Trouble;
use crate::compare::measure::stream::Stream;
use crate::compare::measure::timed::{self, Running};
use crate::compare::subject::MEMORY_MIB;
use crate::compare::subject::guest::{LINE, TYPED};

/// How it is run here, and in machines.rs.
pub const CAVEAT: &str = "with its own seccomp filters; not in its jailer";
/// Bytes of a complaint that are read.
const MOST: usize = 4096;

/// The program, and the idle guest that it has saved.
pub struct Firecracker<'a> {
    bench: &'a Bench,
    program: &'a Path,
}

impl<'a> Firecracker<'a> {
    /// Nothing saved yet.
    pub fn new(bench: &'a Bench, program: &'a Path) -> Self {
        Self { bench, program }
    }

    fn start(&self, name: &str, input: &str) -> Result<(Running, PathBuf), Trouble> {
        let socket = self.socket(name);
        let _ = fs::remove_file(&socket); // of the one before, which was killed
        let mut command = Command::new(self.program);
        command.arg("--api-sock").arg(&socket);
        let running = Running::start_with(&mut command, self.bench.limits, input)?;
        Ok((running, socket))
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.bench.path(&format!("firecracker.{name}"))
    }

    /// Save what runs behind `socket`, as `[state, memory]`.
    fn order_save(&self, socket: &Path, [state, memory]: [PathBuf; 2]) -> Result<(), Trouble> {
        let create = json!({"snapshot_path": state, "mem_file_path": memory});
        self.request(socket, "PUT", "snapshot/create", &create)
    }

    fn request(
        &self,
        socket: &Path,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Result<(), Trouble> {
        let stream = Stream::unix(UnixStream::connect(socket)?, self.bench.limits.time)?;
        exchange(stream, method, path, body)
    }

    fn files(&self, which: &str) -> [PathBuf; 2] {
        ["state", "memory"].map(|part| self.bench.path(&format!("firecracker.{which}.{part}")))
    }
}

impl Saved for Firecracker<'_> {
    fn save(&mut self) -> Result<(), Trouble> {
        let (mut running, socket) = self.start("first", "")?;
        running.connect(&socket)?;
        for (path, body) in machine(self.bench)? {
            self.request(&socket, "PUT", path, &body)?;
        }
        let start = json!({"action_type": "InstanceStart"});
        self.request(&socket, "PUT", "actions", &start)?;
        running.until(LINE)?;
        timed::pause(SETTLE)?;
        self.request(&socket, "PATCH", "vm", &json!({"state": "Paused"}))?;
        self.order_save(&socket, self.files("saved"))
    }

    fn go_on(&mut self, name: &str) -> Result<Clone, Trouble> {
        let (mut running, socket) = self.start(name, TYPED)?;
        let [state, memory] = self.files("saved");
        let load = json!({
            "snapshot_path": state,
            "mem_backend": {"backend_type": "File", "backend_path": memory},
            "resume_vm": true,
        });
        let stream = running.connect(&socket)?;
        exchange(stream, "PUT", "snapshot/load", &load)?;
        let answered = running.elapsed();
        Ok(Clone { running, answered })
    }

    fn save_again(&mut self, name: &str) -> Result<[f64; 2], Trouble> {
        let socket = self.socket(name);
        let started = Instant::now();
        self.request(&socket, "PATCH", "vm", &json!({"state": "Paused"}))?;
        self.order_save(&socket, self.files("again"))?;
        self.request(&socket, "PATCH", "vm", &json!({"state": "Resumed"}))?;
        // It stands still from the first request to the last.
        Ok([started.elapsed().as_secs_f64() * 1e3; 2])
    }

    fn first_run(&mut self, _: &str, _: Clone) -> Result<Option<f64>, Trouble> {
        Ok(None)
    }

    fn caveats(&self) -> Vec<String> {
        vec![CAVEAT.into()]
    }
}

/// What it is told of a machine with the idle guest, resource by resource.
pub fn machine(bench: &Bench) -> Result<[(&'static str, Value); 2], Trouble> {
    let boot = json!({
        "kernel_image_path": bench.stage.vmlinux()?,
        "initrd_path": idle_initrd(bench)?,
        "boot_args": idle_words(),
    });
    let machine = json!({"vcpu_count": 1, "mem_size_mib": MEMORY_MIB});
    Ok([("boot-source", boot), ("machine-config", machine)])
}

/// A request on a new connection, and its answer.
fn exchange(mut stream: Stream, method: &str, path: &str, body: &Value) -> Result<(), Trouble> {
    let body = body.to_string();
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let head = head_of_answer(&mut stream)?;
    if head.starts_with("HTTP/1.1 20") {
        return Ok(());
    }
    // What is wrong stands in the body.
    let length = head.to_ascii_lowercase();
    let length = length
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let mut rest = vec![0; length.unwrap_or(0).min(MOST)];
    stream.read_exact(&mut rest)?;
    let rest = String::from_utf8_lossy(&rest);
    Err(Trouble::Other(format!("{method} /{path}: {}", rest.trim())))
}

fn head_of_answer(stream: &mut Stream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
