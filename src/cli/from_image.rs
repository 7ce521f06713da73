//! The flags of `hull run` for an image, with the meaning that docker gives them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::ValueEnum;

use super::bar::Bar;
use super::flagged;
use super::headings::IMAGE;
use super::health::Health;
use super::mounts::{self, Mount};
use super::output::say;
use super::shape::Given;
use crate::config::machine::parse_variable;
use crate::config::{Draft, Machine, file};
use crate::disk::Source;
use crate::fleet::kept::Kept;
use crate::image::{self, Healthcheck, How, Pull, Step, Store};
use crate::launch::image::{Mounted, Wishes, set};
use crate::launch::publish::AnyPort;
use crate::net::Publish;
use crate::net::config::port;
use crate::share;
use crate::volume::{DEFAULT_SIZE, Own, parse_size};

/// Most bytes of a file of variables.
const MAX_VARIABLES: u64 = 1 << 20;

#[derive(clap::Args)]
#[command(next_help_heading = IMAGE)]
pub struct FromImage {
    /// Start from an image: a name at a registry (alpine, ghcr.io/x/y:tag), an OCI layout, an archive of
    /// `docker save` or a root file system as ./PATH, - for one on standard input, or
    /// docker-daemon:NAME. CMD replaces the image's; memory is half of the host's and CPUs up to 4
    /// unless given. Example: --image alpine
    #[arg(
        long,
        value_name = "REF",
        conflicts_with_all = ["initrd", "root_disk", "print_config", "config"]
    )]
    image: Option<String>,
    /// Whether the image is fetched again: missing (if it is not here), always or never [default:
    /// missing]
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        hide_possible_values = true,
        requires = "image"
    )]
    pull: Option<When>,
    /// A registry on this host is asked without TLS.
    #[arg(long, requires = "image")]
    insecure: bool,
    /// The program in place of the image's entrypoint and arguments; "" for none.
    #[arg(long, value_name = "CMD", requires = "image")]
    entrypoint: Option<OsString>,
    /// Variables for CMD, one NAME=VALUE or NAME a line; lines with # are left out. May be repeated.
    #[arg(long, value_name = "FILE", requires = "image")]
    env_file: Vec<PathBuf>,
    /// A folder of the host in the guest, as --share has it; or a volume by its name, which is made if it is
    /// missing; or, as /PATH alone, a volume that is gone with the machine. May be repeated. Examples: -v
    /// .:/src:ro, -v data:/var/lib/data
    #[arg(
        short = 'v',
        long = "volume",
        value_name = "SRC:DST[:ro]",
        value_parser = mounts::parse,
        requires = "image"
    )]
    volumes: Vec<Mount>,
    /// What CMD writes to the image's files goes to a disk of this size, 8M to 16T, and not to the guest's memory.
    /// It is gone with the machine; with -d at hull rm.
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = parse_size,
        conflicts_with = "read_only",
        requires = "image"
    )]
    disk_size: Option<u64>,
    /// An empty folder in memory, with options of tmpfs such as size=64m. May be repeated.
    #[arg(long, value_name = "PATH[:OPTIONS]", requires = "image")]
    tmpfs: Vec<String>,
    /// A port of the host, on all its addresses unless one is given, that leads to one of the guest; a free
    /// one is chosen where none is given. May be repeated. Example: -p 8080:80
    #[arg(
        short = 'p',
        long = "publish",
        value_name = "[[ADDR:]HOST:]GUEST[/udp]",
        value_parser = parse_port,
        requires = "image"
    )]
    ports: Vec<Port>,
    #[command(flatten)]
    more: super::image_flags::More,
    /// The guest's name in its network; --name or hull when left out.
    #[arg(long, value_name = "NAME", value_parser = parse_hostname, requires = "image")]
    hostname: Option<String>,
    /// A line more in /etc/hosts. May be repeated.
    #[arg(long, value_name = "NAME:ADDR", value_parser = parse_host, requires = "image")]
    add_host: Vec<(String, String)>,
    /// CMD can write to no file of the image.
    #[arg(long, requires = "image")]
    read_only: bool,
    #[command(flatten)]
    networks: super::network_flags::NetworkFlags,
    /// CMD as root may do everything in the guest; without it, what container engines allow.
    #[arg(long, requires = "image")]
    privileged: bool,
    // The last one, as clap would give its heading to those behind it.
    #[command(flatten)]
    health: Health,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum When {
    Missing,
    Always,
    Never,
}

impl From<When> for Pull {
    fn from(when: When) -> Self {
        match when {
            When::Missing => Self::Missing,
            When::Always => Self::Always,
            When::Never => Self::Never,
        }
    }
}

impl FromImage {
    /// Add the folders of the host that the flags name.
    ///
    /// # Errors
    /// One is no folder.
    pub fn add_shares(&self, draft: &mut Draft) -> anyhow::Result<()> {
        let mut shares = self.volumes.iter();
        let added = shares.try_for_each(|mount| mount.add_share(draft));
        added.map_err(|reason| anyhow!("--volume: {reason}"))
    }

    /// The names of its volumes.
    pub fn volumes(&self) -> Vec<String> {
        let names = self.volumes.iter().filter_map(Mount::name);
        names.map(String::from).collect()
    }

    /// The machine of `draft`; it starts from the image, if one is named. `given` says what of its
    /// shape is, and `kept` whether it is in the background: its disks are in its folder, and there is recorded how
    /// its health is checked.
    ///
    /// # Errors
    /// There is no such machine, or the image cannot be had.
    pub fn machine(&self, draft: Draft, given: Given, kept: bool) -> anyhow::Result<Machine> {
        let mut machine = draft.machine().map_err(flagged::config)?;
        let check = self.set(&mut machine, given, kept)?;
        if let Some(name) = machine.name.as_ref().filter(|_| kept) {
            self.health.keep(name, check.as_ref())?;
        }
        Ok(machine)
    }

    /// Have `machine` start from the image, if one is named; how that says its health is checked.
    fn set(
        &self,
        machine: &mut Machine,
        given: Given,
        kept: bool,
    ) -> anyhow::Result<Option<Healthcheck>> {
        let Some(text) = &self.image else {
            return Ok(None);
        };
        let command = machine.command.get_or_insert_default();
        for path in &self.env_file {
            for variable in variables(path)? {
                // What -e says wins.
                let name = variable.as_bytes().split(|byte| *byte == b'=').next();
                let name = String::from_utf8_lossy(name.unwrap_or_default());
                if !command.has_variable(&name) {
                    command.set_variable(variable);
                }
            }
        }
        let store = Store::open()?;
        let how = How {
            pull: self.pull.map_or(Pull::default(), Pull::from),
            insecure: self.insecure,
        };
        let image = fetch(&store, text, how)?;
        let (upper, volumes) = self.disks(machine, &image, kept)?;
        let wishes = Wishes {
            upper,
            volumes,
            entrypoint: self.entrypoint.clone(),
            hostname: self.hostname.clone(),
            hosts: self.add_host.clone(),
            read_only: self.read_only,
            memory: self
                .tmpfs
                .iter()
                .map(|text| folder_in_memory(text))
                .collect(),
            ports: self.ports.iter().filter_map(Port::fixed).collect(),
            any_ports: self.ports.iter().filter_map(Port::any).collect(),
            alone: self.networks.alone()?,
            networks: self.networks.shared(),
            privileged: self.privileged,
            default_kernel: !given.kernel,
            default_memory: !given.memory,
            default_cpus: !given.cpus,
            ..Wishes::default()
        };
        let wishes = self.more.add_to(wishes);
        set(machine, &image, &store, &wishes, &|line| say(line)).map_err(flagged::error)?;
        Ok(image.execution.healthcheck)
    }

    /// The disk for what is written, if it is one, and those of volumes.
    fn disks(
        &self,
        machine: &Machine,
        image: &image::Image,
        kept: bool,
    ) -> anyhow::Result<(Option<Source>, Vec<Mounted>)> {
        let folder = match machine.name.as_ref().filter(|_| kept) {
            Some(name) => Some(Kept::open(name)?.path().to_path_buf()),
            None => None,
        };
        let own = Own::new(folder, image.id.hex());
        let upper = self.disk_size.map(|bytes| own.disk("disk", bytes, true));
        let upper = upper
            .transpose()
            .map_err(|error| anyhow!("--disk-size: {error}"))?;
        let in_memory: Vec<_> = self.tmpfs.iter().map(|it| folder_in_memory(it).0).collect();
        let is_taken = |path: &str| {
            in_memory.iter().any(|it| it == path)
                || machine
                    .all()
                    .any(|it: &share::Config| it.guest_path == path)
        };
        let of_image: Vec<_> = image.execution.volumes.iter().flatten().collect();
        let of_image: Vec<_> = of_image.into_iter().map(|(path, _)| path.clone()).collect();
        let size = self.disk_size.unwrap_or(DEFAULT_SIZE);
        let volumes = mounts::disks(&self.volumes, &of_image, &is_taken, &own, size)?;
        Ok((upper, volumes))
    }
}

/// The image `text`, with a bar while it comes.
pub fn fetch(store: &Store, text: &str, how: How) -> anyhow::Result<image::Image> {
    let mut bar = Bar::new("image");
    let mut show = |step: Step| {
        let (done, of) = step.bytes;
        let share = done as f64 / of.max(done).max(1) as f64;
        let (layer, layers) = step.layer;
        let text = format!(
            "{} layer {layer} of {layers}: {}",
            step.what,
            step.digest.short()
        );
        bar.step(share, &text);
    };
    image::get(store, text, how, &mut show).map_err(|error| anyhow!("image {text}: {error}"))
}

fn folder_in_memory(text: &str) -> (String, String) {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    (path.into(), options.into())
}

/// The variables of a file.
fn variables(path: &Path) -> anyhow::Result<Vec<OsString>> {
    let refused = |reason: String| anyhow!("--env-file {}: {reason}", path.display());
    let file = file::open(path, MAX_VARIABLES).map_err(refused)?;
    let text = std::io::read_to_string(file).map_err(|error| refused(error.to_string()))?;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim_start) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let parsed = parse_variable(OsStr::new(line));
        found.extend(parsed.map_err(|reason| refused(format!("{line:?}: {reason}")))?);
    }
    Ok(found)
}

/// A port of -p.
#[derive(Clone, Copy)]
enum Port {
    Fixed(Publish),
    Any(AnyPort),
}

impl Port {
    fn fixed(&self) -> Option<Publish> {
        match self {
            Self::Fixed(port) => Some(*port),
            Self::Any(_) => None,
        }
    }

    fn any(&self) -> Option<AnyPort> {
        match self {
            Self::Any(port) => Some(*port),
            Self::Fixed(_) => None,
        }
    }
}

/// A port as docker has it: on all addresses unless one is named.
fn parse_port(text: &str) -> Result<Port, String> {
    let any = |address: &str, guest: &str| {
        // A number that is replaced.
        let publish = port(&format!("{address}:1:{guest}"))?;
        Ok(Port::Any(AnyPort {
            address: publish.address,
            guest: publish.guest,
            protocol: publish.protocol,
        }))
    };
    match text.split(':').collect::<Vec<_>>().as_slice() {
        [guest] | ["", guest] => any("0.0.0.0", guest),
        [address, "", guest] => any(address, guest),
        [_, _] => port(&format!("0.0.0.0:{text}")).map(Port::Fixed),
        _ => port(text).map(Port::Fixed),
    }
}

fn parse_hostname(text: &str) -> Result<String, String> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    match (1..=crate::agent::MAX_HOSTNAME).contains(&text.len()) && text.bytes().all(inner) {
        true => Ok(text.into()),
        false => Err("a host name has 1 to 64 letters, digits, - and .".into()),
    }
}

fn parse_host(text: &str) -> Result<(String, String), String> {
    let wrong = || String::from("write NAME:ADDR, such as db:10.0.2.2");
    let (name, address) = text.split_once([':', '=']).ok_or_else(wrong)?;
    let address: std::net::IpAddr = address
        .trim_matches(['[', ']'])
        .parse()
        .map_err(|_| wrong())?;
    Ok((parse_hostname(name)?, address.to_string()))
}
