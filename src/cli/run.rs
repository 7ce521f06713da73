//! `hull run`: flags to a [`vmm::Config`], and what came of it to messages and a status.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, FromArgMatches, ValueEnum};
use rustix::fs::OFlags;

use super::devices::{DEVICES, Devices, Switch};
use super::machine::{self, Reports};
use super::warm::Warm;
use super::{fault, gdb, net, pooled, profile, say, share, trace};
use crate::agent::{Exec, WindowSize};
use crate::boot::{self, Format, Via};
use crate::guest;
use crate::memory::image::Image;
use crate::memory::layout::MAX_CPUS;
use crate::symbols;
use crate::vmm::fault::{Fault, Faults};
use crate::vmm::timeline::Timeline;
use crate::vmm::{self, Console, Start, Terminal};

const MIB: u64 = 1 << 20;
/// Least memory of a guest: what the boot tables and a payload need.
const MEMORY_LEAST: u64 = 2 * MIB;
/// Most memory of a guest: 1 TiB fits every CPU's physical addresses.
const MEMORY_MOST: u64 = 1 << 40;
/// Memory of a guest unless the user says otherwise.
pub(super) const MEMORY_DEFAULT: &str = "128M";
/// Headings of the flags in `hull run --help`.
const MACHINE: &str = "Machine";
const KERNEL: &str = "Kernel";
pub(super) const OUTPUT: &str = "Output";
/// Largest kernel or initrd that is read.
const FILE_MOST: u64 = 1 << 30;
/// Where hull's init lies in a foreign initial RAM disk.
const FOREIGN_INIT: &str = "hull-init";

/// The flags.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull run                                   a shell in a virtual machine
  hull run -- uname -a                       one command; its status is hull's
  hull run bzImage --kernel-log -- free -m   the same under a kernel of yours
  hull run vmlinux --initrd my.cpio          a system of yours on its console
  hull run --share .:/src:ro -- ls /src      the guest reads a folder of yours
  hull run --vsock cid=3,socket=/tmp/v       sockets between guest and host
  hull run --net user,publish=8080:80        a network; its 80 is our 8080")]
pub struct Run {
    #[command(flatten)]
    shape: Shape,
    /// Boot afresh: neither go on from a template nor make one.
    #[arg(long, help_heading = MACHINE)]
    cold: bool,
    /// A name, by which hull ps, stop and inspect know the machine; its process id when left out.
    #[arg(long, value_name = "NAME", value_parser = name, help_heading = MACHINE)]
    name: Option<String>,
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
    /// Which way into the kernel: auto (by the 64-bit Linux protocol, other kernels by PVH; a
    /// bzImage is unpacked on the host), pvh, or guest (a bzImage unpacks itself).
    #[arg(
        long,
        value_name = "WAY",
        value_enum,
        default_value_t = Boot::Auto,
        hide_possible_values = true,
        help_heading = KERNEL
    )]
    boot: Boot,
    /// What the kernel prints on and, without CMD, is typed on: serial (COM1) or virtio (hvc0: a line
    /// costs one exit, not some a character; for kernels with its driver built in). The streams of
    /// CMD do not go through it. Example: --console virtio
    #[arg(
        long,
        value_name = "serial|virtio",
        value_enum,
        default_value_t = KernelConsole::Serial,
        hide_possible_values = true,
        help_heading = DEVICES
    )]
    console: KernelConsole,
    /// Print the kernel's messages on standard error.
    #[arg(long, help_heading = OUTPUT)]
    kernel_log: bool,
    #[command(flatten)]
    reports: Reports,
    #[command(flatten)]
    profile: profile::Flags,
    #[command(flatten)]
    tracing: trace::Tracing,
    /// What to run in the guest, with its arguments; a shell when left out.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// What a machine is made of, devices apart.
#[derive(clap::Args)]
pub struct Shape {
    /// ELF vmlinux, bzImage, PVH kernel or flat payload, told apart by content; the kernel inside
    /// hull when left out.
    kernel: Option<PathBuf>,
    /// Initial RAM disk; hull's own when left out. Without CMD its own init runs, on the serial
    /// console.
    #[arg(long, value_name = "FILE", help_heading = KERNEL)]
    initrd: Option<PathBuf>,
    /// Words for the kernel command line; they win over hull's.
    #[arg(
        long,
        value_name = "STR",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true,
        help_heading = KERNEL
    )]
    cmdline: String,
    /// vCPUs, 1 to 32.
    #[arg(
        long,
        value_name = "N",
        default_value = "1",
        value_parser = cpus,
        allow_negative_numbers = true,
        help_heading = MACHINE
    )]
    cpus: u8,
    /// Guest memory: bytes, or with K, M, G or T; 2M to 1T.
    #[arg(
        long,
        value_name = "SIZE",
        default_value = MEMORY_DEFAULT,
        value_parser = memory_size,
        allow_negative_numbers = true,
        help_heading = MACHINE
    )]
    memory: u64,
}

/// Consoles for a kernel.
#[derive(Clone, Copy, ValueEnum)]
enum KernelConsole {
    /// COM1.
    Serial,
    /// hvc0.
    Virtio,
}

/// Ways into a kernel.
#[derive(Clone, Copy, ValueEnum)]
enum Boot {
    /// A bzImage is unpacked on the host; Linux by its 64-bit protocol, others by PVH.
    Auto,
    /// By the PVH entry.
    Pvh,
    /// A bzImage unpacks itself in the guest.
    Guest,
}

impl Run {
    /// Start a machine, come back when the guest has ended, and say with which status to exit.
    pub fn execute(self) -> anyhow::Result<u8> {
        let (started, timeline) = machine::clock();
        let mut config = timeline.span("flags and files", || self.config())?;
        let reports = self.reports.open()?;
        let profile = self.profile.open(config.symbols.clone())?;
        config.profile = profile.as_ref().map(|open| open.profile.clone());
        let tracing = self.tracing.set_up(&mut config, started)?;
        let mut signals = machine::signals()?;
        // No signal must leave its socket behind.
        let mut gdb = self.gdb.listen(self.shape.kernel.as_deref())?;
        fault::tell(&config.faults.0);
        let watched = gdb.is_some() || profile.is_some() || tracing.is_some();
        let mut warm = None;
        if !self.cold && !watched && self.is_warm(&config) {
            match self.begin_warm(&mut config, &mut signals, &timeline)? {
                Begun::Ended(status) => return Ok(status),
                Begun::Here(template) => warm = template,
            }
        }
        let debugger = gdb.as_mut().map(|gdb| gdb as _);
        let mut result = machine::run(&config, timeline.clone(), signals, debugger)?;
        if let (Err(error), Some(warm)) = (&result, &mut warm)
            && warm.failed(error, &mut config)
        {
            result = machine::run(&config, timeline, machine::signals()?, None)?;
        }
        if let Some(warm) = warm {
            warm.finish();
        }
        // However the guest ended: where its time went may tell why.
        if let Some(profile) = profile {
            say(&profile
                .write()
                .unwrap_or_else(|error| format!("{error:#}; the profile is lost")));
        }
        if let Some(tracing) = tracing {
            tracing.finish();
        }
        let (end, report) = match (result, &self.shape.kernel) {
            (Ok(ended), _) => ended,
            (Err(error), Some(kernel)) => {
                return Err(error).with_context(|| kernel.display().to_string());
            }
            (Err(error), None) => return Err(error.into()),
        };
        reports.tell(&report)?;
        Ok(machine::status(end))
    }

    /// Whether the machine may go on from a template: hull's init runs its command, and nobody wants
    /// to see it boot.
    fn is_warm(&self, config: &vmm::Config) -> bool {
        let unseen = matches!(
            config.console,
            Console::Agent {
                kernel_log: false,
                ..
            }
        );
        unseen && config.story.is_none()
    }

    /// Run the command in a machine of a pool, or have one here begin with a template.
    fn begin_warm(
        &self,
        config: &mut vmm::Config,
        signals: &mut vmm::Signals,
        timeline: &Timeline,
    ) -> anyhow::Result<Begun> {
        let mut warm = timeline.span("which template", || self.warm(config));
        if let Some(warm) = &mut warm {
            let pooled = !self.reports.wanted() && pooled::fits(config);
            if pooled && let Some(status) = pooled::run(warm.key(), config, signals)? {
                return Ok(Begun::Ended(status));
            }
            timeline.span("template", || warm.prepare(config));
        }
        Ok(Begun::Here(warm.map(Box::new)))
    }

    /// The template for a machine of `config`, if it can have one.
    pub(super) fn warm(&self, config: &vmm::Config) -> Option<Warm> {
        let kernel = self.shape.kernel.as_deref().map(Path::to_string_lossy);
        Warm::of(config, &kernel.unwrap_or("inside hull".into()))
    }

    /// To run `command` in a machine of this `shape`, all else as it is without a flag.
    pub(super) fn of(shape: Shape, command: Vec<OsString>) -> anyhow::Result<Self> {
        let flags = Self::augment_args(clap::Command::new("run"));
        let mut run = Self::from_arg_matches(&flags.try_get_matches_from(["run"])?)?;
        run.shape = shape;
        run.command = command;
        Ok(run)
    }

    /// The machine that is wanted.
    ///
    /// # Errors
    /// What cannot be had.
    pub(super) fn config(&self) -> anyhow::Result<vmm::Config> {
        fault::check(&self.faults, self.shape.cpus)?;
        let inside = guest::embedded();
        let (kernel, symbols) = match &self.shape.kernel {
            Some(path) => {
                let kernel = open("kernel", path)?;
                let symbols = match system_map_beside(path) {
                    Some(map) => symbols::Source::SystemMap(map),
                    None => symbols::Source::Elf(kernel.clone()),
                };
                (kernel, Some(symbols))
            }
            None => {
                let inside = guest::required()?;
                let symbols = symbols::Source::SystemMap(Image::Packed(inside.system_map));
                (Image::Packed(inside.vmlinux), Some(symbols))
            }
        };
        let mut cmdline = self.shape.cmdline.clone();
        let mut initrd = Vec::new();
        // What no kernel is, is told when it is loaded.
        // That the one inside is, is known without unpacking any of it.
        let inside_runs = self.shape.kernel.is_none();
        let linux = inside_runs || boot::detect(&kernel).map_or(true, Format::is_linux);
        if !linux && !self.command.is_empty() {
            bail!("only Linux runs a command, and this kernel is none; leave out what follows --");
        }
        net::check(&self.devices.nets)?;
        if let Some(balloon) = &self.devices.balloon
            && balloon.target_bytes >= self.shape.memory
        {
            bail!(
                "--balloon={} MiB: the guest has {} MiB in all and needs some; ask for less, or \
                 give it more with --memory",
                balloon.target_bytes / MIB,
                self.shape.memory / MIB
            );
        }
        let mut agent = linux;
        if let Some(root) = &self.devices.root_disk {
            if !self.command.is_empty() {
                bail!("--root-disk runs its own init; leave out what follows --, or use --disk");
            }
            let access = if root.read_only { "ro" } else { "rw" };
            cmdline = format!("root=/dev/vda {access} {cmdline}");
        }
        match (&self.shape.initrd, &inside) {
            _ if self.devices.root_disk.is_some() => agent = false,
            (Some(path), _) if self.command.is_empty() => {
                initrd.push(open("--initrd", path)?);
                agent = false;
            }
            (Some(path), _) => {
                initrd.push(open("--initrd", path)?);
                let own = guest::required()?.initramfs.unpack()?;
                initrd.push(foreign_init(&own)?.into());
                cmdline = format!("rdinit=/{FOREIGN_INIT} {cmdline}");
            }
            (None, _) if !linux => {}
            (None, Some(inside)) => initrd.push(Image::Packed(inside.initramfs)),
            (None, None) if self.command.is_empty() => agent = false,
            (None, None) => bail!(guest::GuestError::None),
        }
        let shares = share::name(self.devices.shares.clone()).map_err(anyhow::Error::msg)?;
        let console = match agent {
            true => self.agent_console(&shares),
            false => Console::Kernel,
        };
        Ok(vmm::Config {
            start: Start::Boot,
            paused: false,
            name: self.name.clone(),
            ready_with: None,
            kernel,
            initrd,
            cmdline,
            via: match self.boot {
                Boot::Auto => Via::Auto,
                Boot::Pvh => Via::Pvh,
                Boot::Guest => Via::Guest,
            },
            memory_bytes: self.shape.memory,
            cpus: self.shape.cpus,
            disks: self.devices.all_disks()?,
            nets: self.devices.nets.clone(),
            shares,
            rng: linux && self.devices.rng == Switch::On,
            late_devices: false,
            balloon: self.devices.balloon,
            console,
            terminal: match self.console {
                KernelConsole::Serial => Terminal::Serial,
                KernelConsole::Virtio => Terminal::Virtio,
            },
            symbols,
            profile: None,
            story: None,
            vsock: self.devices.vsock.clone(),
            trace: None,
            explain_exits: None,
            faults: Faults(self.faults.clone()),
        })
    }

    /// hull's init runs the command, on a terminal when hull has one.
    fn agent_console(&self, shares: &[crate::share::Config]) -> Console {
        let mut mounts: Vec<_> = shares.iter().map(share::mount).collect();
        // What is mounted at /a after /a/b would hide it.
        mounts.sort_by_key(|mount| mount.path.len());
        let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        let size = rustix::termios::tcgetwinsize(io::stdin()).ok();
        let size = size.filter(|_| terminal);
        let term = std::env::var_os("TERM").filter(|_| terminal);
        Console::Agent {
            exec: Exec {
                argv: match self.command.as_slice() {
                    [] => vec!["/bin/sh".into()],
                    command => command.to_vec(),
                },
                env: term.into_iter().map(term_variable).collect(),
                cwd: OsString::new(),
                networks: Vec::new(),
                tty: size.map(|size| WindowSize {
                    rows: size.ws_row,
                    cols: size.ws_col,
                }),
                mounts,
            },
            kernel_log: self.kernel_log,
        }
    }
}

/// How a run begins that may be warm.
enum Begun {
    /// In a machine of a pool, which has ended.
    Ended(u8),
    /// In this process, with this template or none.
    Here(Option<Box<Warm>>),
}

/// A file that a flag asks for a report in: made before the boot, so that nobody waits for a run
/// whose report has no place; removed again if there is no report.
pub(super) struct ReportFile<'a> {
    flag: &'static str,
    path: &'a Path,
    file: File,
    written: bool,
}

impl<'a> ReportFile<'a> {
    pub(super) fn create(flag: &'static str, path: &'a Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("{flag} {}", path.display()))?;
        Ok(Self {
            flag,
            path,
            file,
            written: false,
        })
    }

    pub(super) fn write(mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let written = io::Write::write_all(&mut self.file, bytes);
        self.written = written.is_ok();
        written.with_context(|| format!("{} {}", self.flag, self.path.display()))
    }
}

impl Drop for ReportFile<'_> {
    fn drop(&mut self) {
        let file = self
            .file
            .metadata()
            .is_ok_and(|metadata| metadata.is_file());
        if !self.written && file {
            let _ = std::fs::remove_file(self.path);
        }
    }
}

fn term_variable(term: OsString) -> OsString {
    let mut variable = OsString::from("TERM=");
    variable.push(term);
    variable
}

/// An archive to append to a foreign one: hull's init, taken from hull's own.
fn foreign_init(initramfs: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut rest = io::Cursor::new(initramfs);
    loop {
        let mut entry = cpio::newc::Reader::new(rest).context("hull's initramfs is damaged")?;
        if entry.entry().is_trailer() {
            bail!("hull's initramfs has no /init; build hull again with `make build`");
        }
        if entry.entry().name().trim_start_matches(['.', '/']) != "init" {
            rest = entry.finish()?;
            continue;
        }
        let mut init = Vec::new();
        entry.read_to_end(&mut init)?;
        let builder = cpio::newc::Builder::new(FOREIGN_INIT).mode(0o100_755);
        let mut writer = builder.write(Vec::new(), init.len() as u32);
        io::Write::write_all(&mut writer, &init)?;
        return Ok(cpio::newc::trailer(writer.finish()?)?);
    }
}

/// The System.map in the kernel's folder, when there is one that can be read.
fn system_map_beside(kernel: &Path) -> Option<Image> {
    open("System.map", &kernel.with_file_name("System.map")).ok()
}

/// Parse a machine's name.
pub(super) fn name(text: &str) -> Result<String, String> {
    crate::fleet::check_name(text).map(|()| text.into())
}

/// Parse the number of vCPUs.
fn cpus(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(cpus @ 1..=MAX_CPUS) => Ok(cpus),
        _ => Err(format!("a guest has 1 to {MAX_CPUS} vCPUs")),
    }
}

/// Parse a size. Binary units; at least 2 MiB, at most 1 TiB, whole pages.
pub(super) fn memory_size(text: &str) -> Result<u64, String> {
    match size(text) {
        Some(bytes @ MEMORY_LEAST..=MEMORY_MOST) => Ok(bytes & !0xfff),
        Some(_) => Err("a guest has 2M to 1T of memory".into()),
        None => Err("not a size; write bytes, or a number with K, M, G or T, from 2M to 1T".into()),
    }
}

/// Parse bytes, or a number with a binary unit. What is too large for a u64 is the largest.
pub(super) fn size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(digits);
    let scale: u64 = match unit.to_ascii_uppercase().as_str() {
        _ if digits.is_empty() => return None,
        "" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        "T" | "TIB" => 1 << 40,
        _ => return None,
    };
    // Digits alone: what does not parse is too large.
    let number = digits.parse().unwrap_or(u64::MAX);
    Some(number.saturating_mul(scale))
}

/// Open a regular file of at most 1 GiB.
fn open(what: &str, path: &Path) -> anyhow::Result<Image> {
    let name = || format!("{what} {}", path.display());
    // Nonblocking: a FIFO that nobody writes would hold up the open itself.
    let nonblocking = OFlags::NONBLOCK.bits() as i32;
    let mut options = File::options();
    options.read(true).custom_flags(nonblocking);
    let file = options.open(path).with_context(name)?;
    let kind = file.metadata().with_context(name)?;
    if !kind.is_file() {
        bail!("{}: not a regular file", name());
    }
    if kind.len() > FILE_MOST {
        bail!("{}: {} bytes; at most 1 GiB is read", name(), kind.len());
    }
    Image::file(file).with_context(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units_and_limits() {
        assert_eq!(memory_size("128M"), Ok(128 << 20));
        assert_eq!(memory_size("6G"), Ok(6 << 30));
        assert_eq!(memory_size("4194304"), Ok(4 << 20));
        for bad in [
            "",
            "0",
            "1M",
            "999T",
            "12Q",
            "-1",
            "abc",
            "99999999999999999999",
            "M",
        ] {
            assert!(memory_size(bad).is_err(), "{bad}");
        }
    }
}
