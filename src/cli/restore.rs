//! `hull restore`: a machine that goes on from a snapshot, or several of them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Signal, kill_process, set_parent_process_death_signal};

use super::machine::{self, Reports};
use super::{run, vsock};
use crate::agent::{Exec, WindowSize};
use crate::net::Mac;
use crate::vmm::snapshot::{Saved, Shape};
use crate::vmm::{Config, Console, Signals, Start};

/// Most copies that one command makes.
const COPIES_MOST: u16 = 1000;

/// The flags.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull restore /srv/web                      go on here, on this terminal
  hull restore /srv/web --name web2          under another name
  hull restore /srv/web --name w -n 10       ten machines, w-1 to w-10")]
pub struct Restore {
    /// The folder that hull snapshot has made.
    dir: PathBuf,
    /// A name for the machine; with -n, the beginning of their names.
    #[arg(long, value_name = "NAME", value_parser = run::name)]
    name: Option<String>,
    /// So many copies, each a process of its own without an input; hull waits for all.
    #[arg(
        short = 'n',
        long = "copies",
        value_name = "COUNT",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(COPIES_MOST))
    )]
    copies: Option<u16>,
    /// Another address for a network's interface; given again for the next network.
    #[arg(long, value_name = "MAC", value_parser = super::net::mac)]
    mac: Vec<Mac>,
    /// Another CID and socket for the vsock device.
    #[arg(long, value_name = "cid=N,socket=PATH", value_parser = vsock::parse)]
    vsock: Option<crate::vmm::vsock::Config>,
    /// Read all of its memory first, and go on only if it is as it was written.
    #[arg(long)]
    verify: bool,
    /// Stand still until hull resume.
    #[arg(long)]
    paused: bool,
    /// Which copy this is, of one that was started by -n.
    #[arg(long, hide = true)]
    copy: Option<u16>,
    #[command(flatten)]
    reports: Reports,
}

impl Restore {
    /// Go on, and come back when the guest has ended; the status to exit with.
    pub fn execute(self) -> anyhow::Result<u8> {
        if let Some(copies) = self.copies {
            return self.start_copies(copies);
        }
        if self.copy.is_some() {
            set_parent_process_death_signal(Some(Signal::TERM))?;
        }
        let (_, timeline) = machine::clock();
        let saved = timeline.span("snapshot", || Saved::open(&self.dir))?;
        if self.verify {
            timeline.span("memory", || saved.verify())?;
        }
        let config = self.config(saved)?;
        let reports = self.reports.open()?;
        let signals = machine::signals()?;
        let ended = machine::run(&config, timeline, signals, None)?;
        let (end, report) = ended?;
        reports.tell(&report)?;
        Ok(machine::status(end))
    }

    fn config(&self, saved: Saved) -> anyhow::Result<Config> {
        let shape = &saved.shape;
        if saved.is_template() {
            bail!(
                "{} is a template without a command; hull run uses it by itself",
                self.dir.display()
            );
        }
        let mut config = Config::of_saved(&saved, console(shape));
        config.name.clone_from(&self.name);
        config.paused = self.paused;
        if self.mac.len() > config.nets.len() {
            bail!(
                "--mac: given {} times, and the machine has {} networks",
                self.mac.len(),
                config.nets.len()
            );
        }
        for (net, mac) in config.nets.iter_mut().zip(&self.mac) {
            net.mac = Some(*mac);
        }
        match (&self.vsock, &mut config.vsock) {
            (None, _) => {}
            (Some(wanted), Some(vsock)) => vsock.clone_from(wanted),
            (Some(_), None) => bail!("--vsock: the machine has no such device"),
        }
        if let Some(copy) = self.copy {
            make_own(&mut config, copy);
        }
        config.start = Start::Saved(Arc::new(saved));
        Ok(config)
    }

    fn start_copies(&self, copies: u16) -> anyhow::Result<u8> {
        // Told once, and not by each of them.
        let saved = Saved::open(&self.dir)?;
        self.config(saved)?;
        let folder = self.dir.file_name().unwrap_or_default().to_string_lossy();
        let name = self.name.clone().unwrap_or_else(|| folder.into_owned());
        let signals = machine::signals()?;
        let start = |copy| start_copy(&self.dir, &format!("{name}-{copy}"), copy, self.paused);
        let mut children = Vec::new();
        for copy in 1..=copies {
            match start(copy) {
                Ok(child) => children.push(child),
                Err(error) => {
                    children.iter_mut().for_each(|child| {
                        let _ = child.kill();
                        let _ = child.wait();
                    });
                    return Err(error);
                }
            }
        }
        wait(children, signals)
    }
}

/// What a machine of this shape talks to: hull's streams.
fn console(shape: &Shape) -> Console {
    match shape.agent {
        false => Console::Kernel,
        true => Console::Agent {
            exec: Exec {
                tty: shape.terminal_wanted.then(WindowSize::default),
                ..Exec::default()
            },
            kernel_log: false,
        },
    }
}

/// What only one of several copies on one host can have: CIDs and sockets are numbered on, and MACs
/// are random again.
fn make_own(config: &mut Config, copy: u16) {
    if let Some(vsock) = &mut config.vsock {
        vsock.cid = vsock.cid.saturating_add(u32::from(copy));
        vsock.socket.as_mut_os_string().push(format!("-{copy}"));
    }
    for net in &mut config.nets {
        net.mac = None;
    }
}

fn start_copy(dir: &Path, name: &str, copy: u16, paused: bool) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot find hull's own program")?;
    let mut command = Command::new(program);
    command.arg("restore").arg(dir).args(["--name", name]);
    command.args(["--copy", &copy.to_string()]);
    command.args(paused.then_some("--paused"));
    command.stdin(Stdio::null());
    command.spawn().context("cannot start another hull")
}

/// Hand on signals until all have ended; the first status that is none of success.
fn wait(children: Vec<Child>, mut signals: Signals) -> anyhow::Result<u8> {
    let mut status = 0;
    let mut left = children;
    while !left.is_empty() {
        for signal in signals.wait(Duration::from_millis(100)) {
            for child in &left {
                if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32)
                    && let Some(signal) = Signal::from_named_raw(signal)
                {
                    let _ = kill_process(pid, signal);
                }
            }
        }
        let mut running = Vec::new();
        for mut child in left {
            match child.try_wait().context("cannot wait for a machine")? {
                None => running.push(child),
                Some(ended) if status == 0 => status = ended.code().unwrap_or(125) as u8,
                Some(_) => {}
            }
        }
        left = running;
    }
    Ok(status)
}
