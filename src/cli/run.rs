//! `hull run`: makes a machine from flags and a file, runs it, and prints what came of it.

use std::ffi::OsString;
use std::path::PathBuf;

use super::detach::{Begun, Detach};
use super::devices::Devices;
use super::headings::{DEVICES, KERNEL, MACHINE, OUTPUT};
use super::machine::{self, Reports};
use super::output::print;
use super::profile::{self, Open};
use super::shape::Shape;
use super::tracing::{self, Writer};
use super::{flagged, from_image, gdb, jail, process, seccomp};
use crate::boot::Via;
use crate::config::{Console, Draft, Fault, Machine, file};
use crate::launch::{self, Launch, Outcome};
use crate::vmm::Streams;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull run                                   a shell in a virtual machine
  hull run -- uname -a                       one command; its status is hull's
  hull run bzImage --kernel-log -- free -m   the same with your own kernel
  hull run vmlinux --initrd my.cpio          your own system on its console
  hull run --image alpine                    an image of a container
  hull run -e A=1 -u 1000 -w /tmp -- env     its environment, user and folder
  hull run --share .:/src:ro -- ls /src      the guest reads your folder
  hull run --vsock cid=3,socket=/tmp/v       sockets between guest and host
  hull run --net user,publish=8080:80        a network; port 80 is 8080 here
  hull run --config web.toml --memory 1G     a machine in a file, with changes")]
pub struct Run {
    #[command(flatten)]
    shape: Shape,
    // Before groups of flags with a heading, which clap would give it, too.
    /// What to run in the guest, with its arguments; a shell when left out. It gets standard input,
    /// of which up to 128 KiB are taken before it reads them; see --no-stdin.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
    /// Read the machine from a file, JSON or TOML: the keys are the long names of the flags of
    /// Machine, Kernel and Devices, kernel, kernel-log and command; a device is the text of its
    /// flag or a table of its options. Flags win over the file. Example: --config web.toml
    #[arg(long, value_name = "FILE", help_heading = MACHINE)]
    config: Option<PathBuf>,
    /// Print the machine as JSON that --config reads, and run nothing.
    #[arg(long, help_heading = MACHINE)]
    print_config: bool,
    /// Boot: neither start from a template nor make one.
    #[arg(long, help_heading = MACHINE)]
    cold: bool,
    #[command(flatten)]
    process: process::Process,
    #[command(flatten)]
    detach: Detach,
    #[command(flatten)]
    image: from_image::FromImage,
    #[command(flatten)]
    devices: Devices,
    #[command(flatten)]
    gdb: gdb::Gdb,
    /// Make this part of the machine wrong, to see what it is for (guest/lessons): no-irqchip,
    /// no-mptable, bad-e820, no-serial-irq or wrong-cpuid. May be repeated. Example: --break
    /// no-mptable
    #[arg(
        long = "break",
        value_name = "PART",
        value_enum,
        hide_possible_values = true,
        help_heading = MACHINE
    )]
    faults: Vec<Fault>,
    /// How the kernel is entered: auto (Linux by its 64-bit protocol, other kernels by PVH; a
    /// bzImage is unpacked on the host), pvh, or guest (a bzImage unpacks itself) [default: auto]
    #[arg(
        long,
        value_name = "WAY",
        value_enum,
        hide_possible_values = true,
        help_heading = KERNEL
    )]
    boot: Option<Via>,
    /// The kernel's console, on which it prints and, without CMD, reads input: serial (COM1) or
    /// virtio (hvc0, one exit a line instead of several a character; the kernel needs its driver
    /// built in). CMD has its own streams. Example: --console virtio [default: serial]
    #[arg(
        long,
        value_name = "serial|virtio",
        value_enum,
        hide_possible_values = true,
        help_heading = DEVICES
    )]
    console: Option<Console>,
    /// Print the kernel's messages on standard error.
    #[arg(long, help_heading = OUTPUT)]
    kernel_log: bool,
    #[command(flatten)]
    jail: jail::Containment,
    #[command(flatten)]
    seccomp: seccomp::Flag,
    #[command(flatten)]
    reports: Reports,
    #[command(flatten)]
    profile: profile::Flags,
    #[command(flatten)]
    tracing: tracing::Tracing,
}

impl Run {
    /// Run a machine until the guest has ended; the status to exit with.
    pub fn execute(self) -> anyhow::Result<u8> {
        let (started, timeline) = machine::clock();
        let (name, running) = match self.detach.begin(&self.process, self.image.volumes())? {
            Begun::Machine(name, running) => (name, running),
            Begun::Done(status) => return Ok(status),
        };
        self.process.leave_stdin()?;
        let (machine, mut config) = timeline.span("flags and files", || {
            let machine = self.devices.hold(self.machine(name, running.is_some())?)?;
            if self.print_config {
                return Ok((machine, None));
            }
            let config = launch::prepare(machine.clone(), machine::terminal());
            anyhow::Ok((machine, Some(config.map_err(flagged::error)?)))
        })?;
        let Some(config) = &mut config else {
            return print(file::write(&machine)?.text().as_bytes()).map(|()| 0);
        };
        config.attachments.started = running;
        if let Some(status) = jail::supervise(config)? {
            return Ok(status);
        }
        self.seccomp.apply(machine.lockdown)?;
        let reports = self.reports.open()?;
        let profile = self.profile.open(config.images.symbols.clone())?;
        config.attachments.profile = profile.as_ref().map(|open| open.profile.clone());
        let tracing = self.tracing.set_up(config, started)?;
        let signals = machine::signals()?;
        // After the signals are caught: a signal must not leave the socket behind.
        let mut gdb = self.gdb.listen(&machine.kernel)?;
        machine::say_faults(&machine.faults);
        let tty = machine::tty(config)?;
        let launch = Launch {
            cold: self.cold,
            pooled: !self.reports.wanted() && !self.seccomp.is_given(),
            streams: Streams::own(tty.clone()),
            tell: &|line| machine::say_on(tty.as_deref(), line),
        };
        let debugger = gdb.as_mut().map(|gdb| gdb as _);
        let outcome = launch::run(config, &launch, signals, timeline, debugger);
        if let Some(tty) = &tty {
            tty.give_back();
        }
        // Also after a failure, which the profile may explain.
        let profiled = profile.is_none_or(Open::tell);
        let traced = tracing.is_none_or(Writer::finish);
        match outcome.map_err(|error| flagged::of_kernel(error, &machine.kernel))? {
            Outcome::Pooled(status) => Ok(status),
            Outcome::Ran(end, report) => {
                let reported = reports.tell(&report) && profiled && traced;
                Ok(machine::status(launch::status(end), reported))
            }
        }
    }

    /// The machine that the flags and the file describe; whether its files are kept in the background.
    fn machine(&self, name: Option<String>, kept: bool) -> anyhow::Result<Machine> {
        let mut draft = match &self.config {
            None => Draft::default(),
            Some(path) => file::read(path).map_err(|error| flagged::file(error, path))?,
        };
        draft.devices.extend(self.devices.given());
        self.image.add_shares(&mut draft)?;
        let machine = &mut draft.machine;
        self.shape.set(machine);
        self.jail.set(machine);
        machine.name = name.or(machine.name.take());
        machine.boot = self.boot.unwrap_or(machine.boot);
        machine.console = self.console.unwrap_or(machine.console);
        machine.kernel_log |= self.kernel_log;
        if !self.faults.is_empty() {
            machine.faults.clone_from(&self.faults);
        }
        self.process.set(machine, &self.command);
        self.image.machine(draft, self.shape.given(), kept)
    }
}
