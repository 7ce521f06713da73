//! [`Machine`]: all that a user can ask of a machine, as plain values.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::cpus::Cpus;
use super::device::{self, Device, Part};
use super::error::ConfigError;
use super::fault::Fault;
use super::jail::Jail;
use super::limits::Limits;
use super::lockdown::Lockdown;
use super::size;
use super::stop::Stop;
use super::text;
use crate::boot::{Topology, Via};
use crate::disk;
use crate::fleet;

/// Least memory of a guest: what the boot tables and a payload need.
pub const MIN_MEMORY: u64 = 2 << 20;
/// Most memory of a guest: 1 TiB fits every CPU's physical addresses.
pub const MAX_MEMORY: u64 = 1 << 40;
/// Memory of a guest unless the user says otherwise.
pub const DEFAULT_MEMORY: u64 = 128 << 20;

/// A machine as it was asked for: no handle, no listener, nothing of this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// What other commands of hull call it; its process id if `None`.
    pub name: Option<String>,
    /// vCPUs, 1 to [`crate::memory::layout::MAX_CPUS`].
    pub cpus: u8,
    /// How they are arranged.
    #[serde(default)]
    pub topology: Topology,
    /// Guest memory in bytes, [`MIN_MEMORY`] to [`MAX_MEMORY`], whole pages of 4096.
    pub memory_bytes: u64,
    /// The kernel to boot.
    pub kernel: Kernel,
    /// Which entry of the kernel is used.
    pub boot: Via,
    /// The initial RAM disk's file; the one inside hull if `None`.
    pub initrd: Option<PathBuf>,
    /// The user's words for the kernel command line; they win over hull's.
    pub cmdline: String,
    /// What the kernel's messages and its terminal are on.
    pub console: Console,
    /// Whether the kernel's messages go to standard error while a command runs.
    pub kernel_log: bool,
    /// Its virtio devices. Disks, networks and shares are numbered in their order.
    pub devices: Vec<Device>,
    /// What hull's init runs. `None`: nothing was asked for, which is a shell where hull's init
    /// runs.
    pub command: Option<Command>,
    /// What is wrong with the machine on purpose.
    pub faults: Vec<Fault>,
    /// Which rights hull gives up. It belongs to a run: neither a snapshot nor a template has it.
    #[serde(skip)]
    pub lockdown: Lockdown,
    /// The jail that hull enters, if any; it belongs to a run, too.
    #[serde(skip)]
    pub jail: Option<Jail>,
    /// What the host gives hull at most; it belongs to a run, too.
    #[serde(skip)]
    pub limits: Limits,
    /// How its command is asked to end; it belongs to a run, too.
    #[serde(skip)]
    pub stop: Stop,
}

/// What a machine boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kernel {
    /// The kernel inside hull.
    #[serde(rename = "embedded")]
    Tiny,
    /// A file: ELF vmlinux, bzImage, PVH kernel or flat payload.
    File(PathBuf),
    /// hull's other kernel, which has more and lies beside the program.
    Full,
}

impl Kernel {
    /// Those of hull's own with their names.
    const OWN: [(&str, Self); 2] = [("tiny", Self::Tiny), ("full", Self::Full)];

    /// Parse the name of one of hull's own kernels.
    pub fn own(text: &str) -> Option<Self> {
        let found = Self::OWN.into_iter().find(|(name, _)| *name == text);
        found.map(|(_, kernel)| kernel)
    }

    /// Whether it is one of hull's own.
    pub fn is_own(&self) -> bool {
        !matches!(self, Self::File(_))
    }
}

/// The name of one of hull's own, or else a path.
impl From<OsString> for Kernel {
    fn from(text: OsString) -> Self {
        let own = text.to_str().and_then(Self::own);
        own.unwrap_or_else(|| Self::File(text.into()))
    }
}

/// What a guest kernel's console is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Console {
    /// COM1, which every kernel has a driver for: several exits a character.
    #[default]
    Serial,
    /// hvc0 of the virtio console: one exit a line.
    Virtio,
}

/// A command for hull's init.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program, looked up in the guest's PATH if it has no slash, and its arguments.
    #[serde(with = "text::list")]
    pub argv: Vec<OsString>,
    /// `NAME=value` each. The guest adds PATH and HOME where they are missing, and TERM on a terminal.
    #[serde(with = "text::list")]
    pub env: Vec<OsString>,
    /// Working directory; empty for the root directory.
    #[serde(with = "text")]
    pub cwd: OsString,
    /// The user, as `NAME|UID[:GROUP|GID]` of the guest's; empty for root.
    #[serde(with = "text")]
    pub user: OsString,
    /// Whether it runs on a terminal instead of three pipes; if `None`, whether hull does.
    pub tty: Option<bool>,
    /// The image on whose files it runs. It belongs to a run: a machine that was saved has it mounted.
    #[serde(skip)]
    pub root: Option<Root>,
}

/// An image as the root file system of a command, and what is mounted in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// The [`disk::Config::id`] of the disk for what is written; memory if `None`.
    pub upper: Option<String>,
    /// The command finds the root read-only.
    pub read_only: bool,
    /// The guest's name in its network, 1 to 64 bytes.
    pub hostname: String,
    /// The content of /etc/hosts.
    pub hosts: String,
    /// Lines for /etc/resolv.conf; without a name server among them, behind those of the networks.
    pub resolver: String,
    /// What the command may do as root: bit N for capability N (capabilities(7)).
    pub capabilities: u64,
    /// Folders in memory: path and options of tmpfs(5).
    pub memory: Vec<(String, String)>,
    /// Disks with an ext4, mounted: [`disk::Config::id`], path, and whether read-only.
    pub disks: Vec<(String, String, bool)>,
}

impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serial => "serial",
            Self::Virtio => "virtio",
        })
    }
}

impl FromStr for Console {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "serial" => Ok(Self::Serial),
            "virtio" => Ok(Self::Virtio),
            _ => Err("a console is serial or virtio".into()),
        }
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            name: None,
            cpus: 1,
            topology: Topology::default(),
            memory_bytes: DEFAULT_MEMORY,
            kernel: Kernel::Tiny,
            boot: Via::Auto,
            initrd: None,
            cmdline: String::new(),
            console: Console::Serial,
            kernel_log: false,
            devices: Vec::new(),
            command: None,
            faults: Vec::new(),
            lockdown: Lockdown::default(),
            jail: None,
            limits: Limits::default(),
            stop: Stop::default(),
        }
    }
}

impl Machine {
    /// Its vCPUs and their arrangement.
    pub fn cpus(&self) -> Cpus {
        Cpus {
            count: self.cpus,
            topology: self.topology,
        }
    }

    /// Have these vCPUs.
    pub fn set_cpus(&mut self, cpus: Cpus) {
        self.cpus = cpus.count;
        self.topology = cpus.topology;
    }

    /// Its devices of one kind, in order: `machine.all::<disk::Config>()`.
    pub fn all<T: Part>(&self) -> impl Iterator<Item = &T> + Clone {
        device::all(&self.devices)
    }

    /// The disk with the guest's root file system, if any.
    pub fn root_disk(&self) -> Option<&disk::Config> {
        self.all().find(|disk: &&disk::Config| disk.root)
    }

    /// Whether it names a program for hull's init.
    pub fn has_command(&self) -> bool {
        let command = self.command.as_ref();
        command.is_some_and(|command| !command.argv.is_empty())
    }

    /// Whether `fault` is built in.
    pub fn has_fault(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// The machine before it knows of its first command and of the devices that it learns of with
    /// the command: what machines that begin with the same template have in common. Files are left
    /// out; a template depends on what they hold and not on their names.
    pub fn before_command(&self) -> Self {
        Self {
            name: None,
            kernel: match self.kernel {
                Kernel::File(_) => Kernel::Tiny,
                ref own => own.clone(),
            },
            initrd: None,
            devices: self
                .devices
                .iter()
                .filter_map(Device::before_command)
                .collect(),
            command: None,
            // A new setting makes another template until it is clear that none depends on it.
            ..self.clone()
        }
    }

    /// Refuse limits below what the machine needs.
    ///
    /// # Errors
    /// [`ConfigError::Machine`].
    pub fn check_limits(&self) -> Result<(), ConfigError> {
        let devices = self.devices.len();
        let checked = self.limits.check(self.memory_bytes, self.cpus, devices);
        checked.map_err(|reason| ConfigError::machine("limit", reason))
    }

    /// Refuse what can be seen to be wrong without looking at the host's files.
    ///
    /// # Errors
    /// [`ConfigError::Machine`] with the setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        if let Some(name) = &self.name {
            fleet::check_name(name).map_err(|reason| ConfigError::machine("name", reason))?;
        }
        let cpus = self.cpus().check();
        cpus.map_err(|reason| ConfigError::machine("cpus", reason))?;
        check_memory(self.memory_bytes).map_err(|reason| ConfigError::machine("memory", reason))?;
        device::check(&self.devices, self.memory_bytes)?;
        self.check_limits()?;
        let with_root = self.root_disk().is_some();
        if with_root && self.initrd.is_some() {
            let reason = "excludes an initial RAM disk: the guest starts from one of them";
            return Err(ConfigError::machine("root-disk", reason));
        }
        // Without an irqchip KVM has every vCPU run at once, the others from their reset vector.
        if self.has_fault(Fault::NoIrqchip) && self.cpus > 1 {
            return Err(ConfigError::machine(
                "break",
                format!(
                    "no-irqchip: a CPU is started by another's local APIC, and there is none; have \
                     1 CPU and not {}",
                    self.cpus
                ),
            ));
        }
        Ok(())
    }
}

impl Command {
    /// Set a variable, `NAME=value`, in place of an earlier value.
    pub fn set_variable(&mut self, variable: OsString) {
        let name = name_of(&variable).to_vec();
        self.env.retain(|other| name_of(other) != name);
        self.env.push(variable);
    }

    /// Whether the variable `name` is set.
    pub fn has_variable(&self, name: &str) -> bool {
        self.env
            .iter()
            .any(|other| name_of(other) == name.as_bytes())
    }
}

fn name_of(variable: &OsStr) -> &[u8] {
    let bytes = variable.as_encoded_bytes();
    bytes.split(|byte| *byte == b'=').next().unwrap_or_default()
}

/// Parse the size of a guest's memory. It is rounded down to whole pages.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let wrong = || format!("not a size; write {}, from 2M to 1T", size::FORM);
    let bytes = size::parse(text).ok_or_else(wrong)?;
    check_memory(bytes)
        .map(|bytes| bytes & !0xfff)
        .map_err(|error| error + &size::as_bytes(text))
}

fn check_memory(bytes: u64) -> Result<u64, String> {
    if (MIN_MEMORY..=MAX_MEMORY).contains(&bytes) {
        Ok(bytes)
    } else {
        Err("a guest has 2M to 1T of memory".into())
    }
}

/// Parse a command's user.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn parse_user(text: &str) -> Result<OsString, String> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        // Without a user it is root.
        [_] | [_, _] if parts.last() != Some(&"") => Ok(text.into()),
        _ => Err("write NAME or UID, and :GROUP or :GID behind it for another group".into()),
    }
}

/// Parse a command's folder in the guest.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn parse_folder(text: &str) -> Result<OsString, String> {
    match text.starts_with('/') {
        true => Ok(text.into()),
        false => Err(format!("the path in the guest is absolute: write /{text}")),
    }
}

/// Parse a variable of a command, `NAME=VALUE`; of `NAME` alone the value is this process's, and `None` if
/// it has none.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn parse_variable(text: &OsStr) -> Result<Option<OsString>, String> {
    if name_of(text).is_empty() {
        return Err("write NAME=VALUE, or NAME for the value that hull itself has".into());
    }
    if text.as_encoded_bytes().contains(&b'=') {
        return Ok(Some(text.into()));
    }
    Ok(std::env::var_os(text).map(|value| {
        let mut variable = text.to_os_string();
        variable.push("=");
        variable.push(value);
        variable
    }))
}

/// Parse a machine's name.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn parse_name(text: &str) -> Result<String, String> {
    fleet::check_name(text).map(|()| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Balloon;

    #[test]
    fn memory_has_limits_and_whole_pages() {
        assert_eq!(parse_memory("128M"), Ok(128 << 20));
        assert_eq!(parse_memory("2097153"), Ok(2 << 20));
        for bad in ["", "0", "1M", "999T", "12Q", "-1", "99999999999999999999"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_template_does_not_depend_on_name_command_files_and_late_devices() {
        let plain = Machine {
            devices: vec![Device::Rng],
            ..Machine::default()
        };
        let full = Machine {
            name: Some("web".into()),
            kernel: Kernel::File("/k".into()),
            initrd: Some("/i".into()),
            devices: vec![
                Device::Rng,
                Device::Net("user".parse().expect("a network")),
                Device::Vsock("cid=3,socket=/v".parse().expect("a vsock")),
            ],
            command: Some(Command::default()),
            ..Machine::default()
        };
        assert_eq!(full.before_command(), plain);
        assert_eq!(plain.before_command(), plain);
        let more = Machine {
            cpus: 2,
            ..full.clone()
        };
        assert_ne!(more.before_command(), plain);
        let with_balloon = Machine {
            devices: vec![Device::Rng, Device::Balloon(Balloon::default())],
            ..full
        };
        assert_ne!(with_balloon.before_command(), plain);
    }
}
