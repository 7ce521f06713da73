//! A machine of an image: its root disk, and the command as a container engine puts it together.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::capabilities::Capabilities;
use super::error::LaunchError;
use super::publish::{AnyPort, choose};
use crate::agent::ALL_CAPABILITIES;
use crate::config::stop::parse_signal;
use crate::config::{Balloon, Command, ConfigError, Device, Kernel, Machine, Root};
use crate::image::{Execution, Image, Store};
use crate::kvm::processor::executes_guests;
use crate::net::networks::{NetworkError, Networks};
use crate::vmm::VmmError;
use crate::{disk, net};

/// The serial number of an image's disk.
const ROOT_DISK: &str = "hull-image";
/// The serial number of the disk for what is written.
const UPPER_DISK: &str = "hull-disk";
/// The beginning of the serial numbers of volumes.
const VOLUME: &str = "hull-volume-";
/// The label by which an image names a kernel of hull's.
const KERNEL_LABEL: &str = "dev.hull.kernel";
/// CPUs of a machine of an image, unless the user says otherwise.
const MAX_CPUS: usize = 4;
/// Most memory by default where the guest's kernel may be emulated: its boot sets up a structure for each page,
/// which takes a minute for 12 GiB there.
const MAX_EMULATED_MEMORY: u64 = 1 << 30;
/// Bytes to which the default of memory is rounded down.
const MEMORY_UNIT: u64 = 64 << 20;
/// Options of a folder in memory, as engines have them.
const MEMORY_OPTIONS: &str = "mode=1777";

/// As in [`Root`].
type MountedDisk = (String, String, bool);

/// What the user says about the image's command, beside what [`Command`] has.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// In place of the image's entrypoint and its arguments; empty for none.
    pub entrypoint: Option<OsString>,
    /// The guest's name; without one the machine's, or `hull`.
    pub hostname: Option<String>,
    /// More lines for /etc/hosts: name and address.
    pub hosts: Vec<(String, String)>,
    /// The disk for what is written, with an ext4; memory if `None`.
    pub upper: Option<disk::Source>,
    /// Disks with an ext4 that are mounted.
    pub volumes: Vec<Mounted>,
    /// The root is read-only for the command.
    pub read_only: bool,
    /// Folders in memory, each with options or an empty text.
    pub memory: Vec<(String, String)>,
    /// Ports that are published.
    pub ports: Vec<net::config::Publish>,
    /// No network.
    pub alone: bool,
    /// Networks that machines share, in place of one of its own, each with further names of the machine.
    pub networks: Vec<(String, Vec<String>)>,
    /// Those whose number on the host is chosen.
    pub any_ports: Vec<AnyPort>,
    /// Whether all ports that the image exposes are among them.
    pub publish_all: bool,
    /// The command has all capabilities.
    pub privileged: bool,
    /// Which it has otherwise.
    pub capabilities: Capabilities,
    /// Groups of the command beside its user's, names or numbers.
    pub groups: Vec<String>,
    /// Lines for /etc/resolv.conf.
    pub resolver: String,
    /// The kernel was not given: the image's label may name it.
    pub default_kernel: bool,
    /// Memory and CPUs were not given.
    pub default_memory: bool,
    /// As `default_memory`.
    pub default_cpus: bool,
}

/// A volume, and where it is mounted.
#[derive(Clone, Debug)]
pub struct Mounted {
    /// What is behind its disk.
    pub source: disk::Source,
    /// The absolute path in the guest.
    pub path: String,
    /// The guest does not write to it.
    pub read_only: bool,
}

/// Have `machine` start from `image`. `tell` gets what the user should know.
///
/// # Errors
/// The image says of itself nothing that runs, or the wishes exclude each other.
pub fn set(
    machine: &mut Machine,
    image: &Image,
    store: &Store,
    wishes: &Wishes,
    tell: &dyn Fn(&str),
) -> Result<(), LaunchError> {
    // As engines do, one that is no signal is passed over.
    let own = image.execution.stop_signal.as_deref();
    let own = own.and_then(|text| parse_signal(text).ok());
    machine.stop.signal = machine.stop.signal.or(own);
    let given = machine.command.take().unwrap_or_default();
    let hostname = hostname(machine, wishes);
    let mut command = command(&image.execution, given, wishes)?;
    if !command.has_variable("HOSTNAME") {
        command.env.push(format!("HOSTNAME={hostname}").into());
    }
    set_kernel(machine, &image.execution, wishes)?;
    set_shape(machine, wishes);
    let disk = disk::Config::of_image(store.files(image), ROOT_DISK.into());
    machine.devices.insert(0, Device::Disk(disk));
    let (upper, disks) = set_disks(machine, wishes);
    set_network(machine, ports(image, wishes)?, wishes, tell)?;
    let options = |text: &str| match text {
        "" => MEMORY_OPTIONS.into(),
        text => text.to_string(),
    };
    let memory = wishes.memory.iter();
    command.root = Some(Root {
        upper,
        read_only: wishes.read_only,
        capabilities: match wishes.privileged {
            true => ALL_CAPABILITIES,
            false => wishes.capabilities.result(),
        },
        hosts: hosts(machine, &hostname, &wishes.hosts),
        resolver: wishes.resolver.clone(),
        hostname,
        memory: memory
            .map(|(path, text)| (path.clone(), options(text)))
            .collect(),
        disks,
    });
    machine.command = Some(command);
    Ok(machine.check()?)
}

fn hostname(machine: &Machine, wishes: &Wishes) -> String {
    let given = wishes.hostname.clone().or_else(|| machine.name.clone());
    given.unwrap_or_else(|| "hull".into())
}

/// The command of the image with what the user says.
fn command(image: &Execution, given: Command, wishes: &Wishes) -> Result<Command, LaunchError> {
    let words = |list: &Option<Vec<String>>| -> Vec<OsString> {
        list.iter().flatten().map(OsString::from).collect()
    };
    // An entrypoint of the user's takes the image's arguments along.
    let (mut argv, default) = match &wishes.entrypoint {
        Some(own) if own.is_empty() => (Vec::new(), Vec::new()),
        Some(own) => (vec![own.clone()], Vec::new()),
        None => (words(&image.entrypoint), words(&image.cmd)),
    };
    argv.extend(if given.argv.is_empty() {
        default
    } else {
        given.argv
    });
    if argv.is_empty() {
        let reason = "names no command: write one behind --";
        return Err(ConfigError::machine("image", reason).into());
    }
    let mut command = Command {
        argv,
        env: words(&image.env),
        tty: given.tty,
        ..Command::default()
    };
    given
        .env
        .into_iter()
        .for_each(|variable| command.set_variable(variable));
    let or_image = |own: OsString, image: &Option<String>| match own.is_empty() {
        true => image.clone().unwrap_or_default().into(),
        false => own,
    };
    command.cwd = or_image(given.cwd, &image.working_dir);
    if !command.cwd.is_empty() && !command.cwd.as_encoded_bytes().starts_with(b"/") {
        let mut absolute = OsString::from("/");
        absolute.push(&command.cwd);
        command.cwd = absolute;
    }
    command.user = or_image(given.user, &image.user);
    if command.user.is_empty() {
        // By its number, so that it gets root's groups of the image.
        command.user = "0".into();
    }
    for group in &wishes.groups {
        command.user.push(format!(",{group}"));
    }
    Ok(command)
}

/// The kernel that the image names. A file of the host is not for an image to choose.
fn set_kernel(
    machine: &mut Machine,
    image: &Execution,
    wishes: &Wishes,
) -> Result<(), ConfigError> {
    let labels = image.labels.iter().flatten();
    let mut named = labels.filter(|(name, _)| *name == KERNEL_LABEL);
    let Some((_, name)) = named.next().filter(|_| wishes.default_kernel) else {
        return Ok(());
    };
    machine.kernel = Kernel::own(name).ok_or_else(|| {
        let reason = format!(
            "has the label {KERNEL_LABEL}={name}, which is tiny or full; --kernel says what it starts with"
        );
        ConfigError::machine("image", reason)
    })?;
    Ok(())
}

/// Memory, of which the guest gives back what it does not use, and CPUs.
fn set_shape(machine: &mut Machine, wishes: &Wishes) {
    if wishes.default_memory {
        let mut bytes = host_memory() / 2 / MEMORY_UNIT * MEMORY_UNIT;
        if !executes_guests() {
            bytes = bytes.min(MAX_EMULATED_MEMORY);
        }
        machine.memory_bytes = machine.memory_bytes.max(bytes);
        if machine.all::<Balloon>().next().is_none() {
            machine.devices.push(Device::Balloon(Balloon::default()));
        }
    }
    if wishes.default_cpus {
        let there = std::thread::available_parallelism().map_or(1, usize::from);
        machine.cpus = there.min(MAX_CPUS) as u8;
    }
}

/// Memory of this host in bytes.
fn host_memory() -> u64 {
    let about = rustix::system::sysinfo();
    about.totalram * u64::from(about.mem_unit)
}

/// Add the disks with file systems, and say what is to be mounted: the ID of the one for what is written, and of
/// each volume with its path.
fn set_disks(machine: &mut Machine, wishes: &Wishes) -> (Option<String>, Vec<MountedDisk>) {
    let mut add = |source: &disk::Source, name: String, read_only| {
        let disk = disk::Config::of_file_system(source.clone(), name.clone(), read_only);
        machine.devices.push(Device::Disk(disk));
        name
    };
    let upper = wishes.upper.as_ref();
    let upper = upper.map(|source| add(source, UPPER_DISK.into(), false));
    let volumes = wishes.volumes.iter().enumerate().map(|(index, volume)| {
        let name = add(&volume.source, format!("{VOLUME}{index}"), volume.read_only);
        (name, volume.path.clone(), volume.read_only)
    });
    (upper, volumes.collect())
}

/// The ports that are published.
fn ports(image: &Image, wishes: &Wishes) -> Result<Vec<net::Publish>, LaunchError> {
    let mut any = wishes.any_ports.clone();
    if wishes.publish_all {
        let exposed = image.execution.exposed_ports.iter().flatten();
        // As engines do, what is no port is passed over.
        any.extend(exposed.flat_map(|(text, _)| AnyPort::parse_exposed(text).unwrap_or_default()));
    }
    let chosen = choose(&any).map_err(LaunchError::system("choose a port of the host"))?;
    Ok([wishes.ports.as_slice(), &chosen].concat())
}

/// A network of this user's that publishes `ports`, if the machine has none.
fn set_network(
    machine: &mut Machine,
    ports: Vec<net::Publish>,
    wishes: &Wishes,
    tell: &dyn Fn(&str),
) -> Result<(), LaunchError> {
    if !wishes.networks.is_empty() {
        return share_networks(machine, ports, &wishes.networks);
    }
    let has_network = machine.all::<net::Config>().next().is_some();
    if has_network || wishes.alone {
        if !ports.is_empty() {
            let reason =
                "needs the network that hull makes for an image; with --net, publish= does it";
            return Err(ConfigError::machine("publish", reason).into());
        }
        return Ok(());
    }
    if !is_there("passt") {
        if !ports.is_empty() {
            let reason = "needs the program passt, which is not there; install it";
            return Err(ConfigError::machine("publish", reason).into());
        }
        tell("the machine has no network: the program passt is not there; --network none says so");
        return Ok(());
    }
    machine.devices.push(Device::Net(net::Config {
        kind: net::config::Kind::User {
            publish: ports,
            host_loopback: false,
        },
        mac: None,
        limits: disk::Limits::default(),
        policy: net::policy::Policy::default(),
    }));
    Ok(())
}

/// The networks of `wanted`; the first that leads to others publishes `ports`.
fn share_networks(
    machine: &mut Machine,
    mut ports: Vec<net::Publish>,
    wanted: &[(String, Vec<String>)],
) -> Result<(), LaunchError> {
    let failed = |error: NetworkError| VmmError::Net(error.into());
    let networks = Networks::open().map_err(failed)?;
    for (name, aliases) in wanted {
        let network = networks.find(name).map_err(failed)?;
        let publish = match network.record.internal {
            true => Vec::new(),
            false => std::mem::take(&mut ports),
        };
        machine.devices.push(Device::Net(net::Config {
            kind: net::config::Kind::Shared {
                network: name.clone(),
                aliases: aliases.clone(),
                publish,
            },
            mac: None,
            limits: disk::Limits::default(),
            policy: net::policy::Policy::default(),
        }));
    }
    if !ports.is_empty() {
        let reason = "needs a network that is not internal";
        return Err(ConfigError::machine("publish", reason).into());
    }
    Ok(())
}

/// Whether PATH has a program of this name.
fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder: PathBuf| folder.join(program).is_file())
}

/// The content of /etc/hosts, as engines write it.
fn hosts(machine: &Machine, hostname: &str, more: &[(String, String)]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    for (name, address) in more {
        text += &format!("{address}\t{name}\n");
    }
    let is_user = |it: &net::Config| matches!(it.kind, net::config::Kind::User { .. });
    let is_shared = |it: &net::Config| matches!(it.kind, net::config::Kind::Shared { .. });
    if machine.all().any(is_shared) && machine.name.as_deref() == Some(hostname) {
        return text; // the network's name server knows it
    }
    let own = match machine.all().any(is_user) {
        true => net::GUEST_ADDRESS,
        false => Ipv4Addr::new(127, 0, 1, 1),
    };
    text + &format!("{own}\t{hostname}\n")
}
