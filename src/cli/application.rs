//! What the verbs for applications share: which file is meant, other commands of hull, and what machines write.

use std::io::{PipeReader, Read, pipe};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::output::print;
use crate::compose::{Opened, Wanted};

#[derive(clap::Args)]
pub struct Application {
    /// The file; compose.yaml, compose.yml, docker-compose.yaml or docker-compose.yml of this folder when left out.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The project's name in place of the file's, or of its folder's.
    #[arg(short, long, value_name = "NAME")]
    project_name: Option<String>,
}

impl Application {
    /// Read the file, with the services of these profiles.
    ///
    /// # Errors
    /// Something in it is wrong.
    pub fn read(self, profiles: Vec<String>) -> anyhow::Result<Opened> {
        Ok(Opened::read(&Wanted {
            path: self.file,
            name: self.project_name,
            profiles,
        })?)
    }
}

/// Run another command of hull in `folder`.
///
/// # Errors
/// It fails, with what it says.
pub fn hull(folder: &Path, arguments: &[impl AsRef<str>]) -> anyhow::Result<()> {
    let mut hull = Command::new("/proc/self/exe");
    hull.args(arguments.iter().map(AsRef::as_ref))
        .current_dir(folder)
        .stdin(Stdio::null());
    let done = hull.output().context("hull cannot be started")?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        let lines = said.lines().map(|line| line.trim_start_matches("error: "));
        bail!("{}", lines.collect::<Vec<_>>().join("; "));
    }
    Ok(())
}

/// What one machine writes, as it comes.
struct Follower {
    name: String,
    child: Child,
    output: PipeReader,
    line: Vec<u8>,
}

/// Print what machines write, each line behind the name of its service, until they have ended, or SIGINT or SIGTERM
/// comes. `machines` has services and machines. Returns whether it was a signal.
///
/// # Errors
/// Standard output cannot be written.
pub fn follow(machines: &[(String, String)], go_on: bool) -> anyhow::Result<bool> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, stopped.clone())?;
    }
    let width = machines.iter().map(|(service, _)| service.len()).max();
    let mut all = Vec::new();
    for (service, machine) in machines {
        let mut hull = Command::new("/proc/self/exe");
        hull.arg("logs").args(go_on.then_some("-f")).arg(machine);
        // Both streams in one pipe keep their order.
        let (output, writer) = pipe()?;
        hull.stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let child = hull.spawn()?;
        drop(hull);
        all.push(Follower {
            name: format!("{service:width$} | ", width = width.unwrap_or(0)),
            child,
            output,
            line: Vec::new(),
        });
    }
    let followed = print_all(&mut all, &stopped);
    for follower in &mut all {
        let _ = follower.child.kill();
        let _ = follower.child.wait();
    }
    followed.map(|()| stopped.load(Ordering::Relaxed))
}

fn print_all(all: &mut Vec<Follower>, stopped: &AtomicBool) -> anyhow::Result<()> {
    let mut ended = Vec::new();
    while !all.is_empty() && !stopped.load(Ordering::Relaxed) {
        let mut fds: Vec<PollFd<'_>> = all
            .iter()
            .map(|it| PollFd::from_borrowed_fd(it.output.as_fd(), PollFlags::IN))
            .collect();
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (follower, ready) in all.iter_mut().zip(ready) {
            if ready && !follower.pass_on()? {
                ended.push(follower.name.clone());
            }
        }
        for name in ended.drain(..) {
            if let Some(at) = all.iter().position(|it| it.name == name) {
                let mut follower = all.remove(at);
                let _ = follower.child.wait();
            }
        }
    }
    Ok(())
}

impl Follower {
    /// Print the lines that are there; false at the end.
    fn pass_on(&mut self) -> anyhow::Result<bool> {
        let mut bytes = [0; 16 << 10];
        let len = self.output.read(&mut bytes)?;
        self.line.extend(bytes.get(..len).unwrap_or_default());
        if len == 0 && !self.line.is_empty() {
            self.line.push(b'\n');
        }
        let whole = self.line.iter().rposition(|byte| *byte == b'\n');
        let rest = self.line.split_off(whole.map_or(0, |at| at + 1));
        let mut text = Vec::new();
        for line in self.line.split_inclusive(|byte| *byte == b'\n') {
            text.extend_from_slice(self.name.as_bytes());
            text.extend_from_slice(line);
        }
        self.line = rest;
        print(&text)?;
        Ok(len > 0)
    }
}
