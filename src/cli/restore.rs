//! `hull restore`: one machine or several from a snapshot.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context;
use rustix::process::{Signal, set_parent_process_death_signal};

use super::machine::{self, Reports};
use super::shape::Wall;
use super::{flagged, jail, logger, seccomp};
use crate::config::Vsock;
use crate::config::machine::parse_name;
use crate::disk::Moved;
use crate::launch::{self, Changes, copies};
use crate::net::config::{self, parse_mac};
use crate::net::{Mac, Publish};
use crate::vmm::snapshot::Saved;
use crate::vmm::{self, Streams};

/// Most copies that one command makes.
const MAX_COPIES: u16 = 1000;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull restore /srv/web                      run it here, on this terminal
  hull restore /srv/web --name web2          under another name
  hull restore /srv/web --name w -n 10       ten machines, w-1 to w-10
  hull restore /srv/web -n 3 --publish 8080:80   which publish 8080 to 8082
  hull restore /srv/web --disk data=/new/data.img   with its image moved")]
pub struct Restore {
    /// The snapshot's folder.
    dir: PathBuf,
    /// A name for the machine; with -n, the beginning of their names.
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    name: Option<String>,
    /// Number of copies, each its own process without an input; hull waits for all.
    #[arg(
        short = 'n',
        long = "copies",
        value_name = "COUNT",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_COPIES))
    )]
    copies: Option<u16>,
    /// Another address for a network's interface; given again for the next network.
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    mac: Vec<Mac>,
    /// Another CID and socket for the vsock device.
    #[arg(long, value_name = "cid=N,socket=PATH")]
    vsock: Option<Vsock>,
    /// Where a disk's image is now; given again for the next disk. ID is the disk's serial number,
    /// which is the image's file name without its ending unless it was given by id=.
    #[arg(long, value_name = "ID=PATH[,backing=FILE]")]
    disk: Vec<Moved>,
    /// Publish this port in place of those that the machine has published, or none; may be repeated.
    /// With -n, each copy publishes the port above that of the copy before.
    #[arg(long, value_name = "[ADDR:]HOST:GUEST[/udp]|none", value_parser = parse_publish)]
    publish: Vec<Port>,
    /// Restore a snapshot of another user's that uses disks, networks, folders or sockets of the host:
    /// its owner chose them. Without this hull lists them and refuses.
    #[arg(long)]
    trust: bool,
    /// Check all of the saved memory first.
    #[arg(long)]
    verify: bool,
    /// Restore it paused, until hull resume.
    #[arg(long)]
    paused: bool,
    /// The number of this copy, of those that -n starts.
    #[arg(long, hide = true)]
    copy: Option<u16>,
    #[command(flatten)]
    wall: Wall,
    #[command(flatten)]
    jail: jail::Containment,
    #[command(flatten)]
    seccomp: seccomp::Flag,
    #[command(flatten)]
    reports: Reports,
}

impl Restore {
    /// Restore it and wait until the guest has ended; the status to exit with.
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
        let mut config = self.config(saved, 1)?;
        if let Some(status) = jail::supervise(&mut config)? {
            return Ok(status);
        }
        self.seccomp.apply(config.machine.lockdown)?;
        let reports = self.reports.open()?;
        let signals = machine::signals()?;
        let tty = machine::tty(&config)?;
        let ended = vmm::run(&config, Streams::own(tty.clone()), signals, timeline, None);
        if let Some(tty) = &tty {
            tty.give_back();
        }
        let (end, report) = ended.map_err(|error| flagged::restored(error, &config.machine))?;
        let reported = reports.tell(&report);
        Ok(machine::status(launch::status(end), reported))
    }

    fn config(&self, saved: Saved, copies: u16) -> anyhow::Result<vmm::Config> {
        let ports = || self.publish.iter().filter_map(|Port(port)| *port).collect();
        let changes = Changes {
            disks: self.disk.clone(),
            publish: (!self.publish.is_empty()).then(ports),
            name: self.name.clone(),
            macs: self.mac.clone(),
            vsock: self.vsock.clone(),
            paused: self.paused,
            copy: self.copy,
            copies,
            trust: self.trust,
        };
        let mut config = launch::restore(saved, &self.dir, &changes).map_err(flagged::error)?;
        self.wall.set(&mut config.machine);
        self.jail.set(&mut config.machine);
        config.machine.check_limits().map_err(flagged::config)?;
        Ok(config)
    }

    fn start_copies(&self, copies: u16) -> anyhow::Result<u8> {
        // Refused once, and not by each of them.
        self.config(Saved::open(&self.dir)?, copies)?;
        let folder = self.dir.file_name().unwrap_or_default().to_string_lossy();
        let name = self.name.clone().unwrap_or_else(|| folder.into_owned());
        let program = std::env::current_exe().context("cannot find hull's own program")?;
        let start = |copy| {
            let mut command = Command::new(&program);
            command.arg("restore").arg(&self.dir);
            command.args(["--name", &format!("{name}-{copy}")]);
            command.args(["--copy", &format!("{copy}")]);
            for moved in &self.disk {
                command.args(["--disk", &moved.to_string()]);
            }
            for Port(port) in &self.publish {
                let port = port.map(|port| port.to_string());
                let port = port
                    .as_deref()
                    .map_or("none", |port| port.trim_start_matches("publish="));
                command.args(["--publish", port]);
            }
            command.args(self.paused.then_some("--paused"));
            command.args(self.wall.flags());
            command.args(self.jail.arguments());
            command.args(self.trust.then_some("--trust"));
            command.args(self.seccomp.arguments());
            command.args(logger::flags());
            command.stdin(Stdio::null());
            command.spawn()
        };
        copies::run(copies, machine::signals()?, start).map_err(flagged::error)
    }
}

/// A port of `--publish`, or that there is to be none.
#[derive(Clone, Copy)]
struct Port(Option<Publish>);

fn parse_publish(text: &str) -> Result<Port, String> {
    match text {
        "none" => Ok(Port(None)),
        text => config::port(text).map(|port| Port(Some(port))),
    }
}
