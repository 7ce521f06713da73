//! The flags of `hull run` for an image, with the meaning that docker gives them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::ValueEnum;

use super::bar::Bar;
use super::flagged;
use super::headings::IMAGE;
use super::output::say;
use crate::config::machine::parse_variable;
use crate::config::{Draft, Machine, device, file};
use crate::image::{self, How, Pull, Step, Store};
use crate::launch::image::{Wishes, set};
use crate::net::Publish;
use crate::net::config::port;

/// Most bytes of a file of variables.
const MAX_VARIABLES: u64 = 1 << 20;
/// Options of docker's volumes that say nothing to a virtual machine.
const IGNORED: [&str; 7] = [
    "rw",
    "z",
    "Z",
    "cached",
    "delegated",
    "consistent",
    "private",
];

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
    /// A folder of the host in the guest, as --share has it. May be repeated. Example: -v .:/src:ro
    #[arg(
        short = 'v',
        long = "volume",
        value_name = "SRC:DST[:ro]",
        requires = "image"
    )]
    volumes: Vec<String>,
    /// An empty folder in memory, with options of tmpfs such as size=64m. May be repeated.
    #[arg(long, value_name = "PATH[:OPTIONS]", requires = "image")]
    tmpfs: Vec<String>,
    /// A port of the host, on all its addresses unless one is given, that leads to one of the guest. May
    /// be repeated. Example: -p 8080:80
    #[arg(
        short = 'p',
        long = "publish",
        value_name = "[ADDR:]HOST:GUEST[/udp]",
        value_parser = parse_port,
        requires = "image"
    )]
    ports: Vec<Publish>,
    /// The guest's name in its network; --name or hull when left out.
    #[arg(long, value_name = "NAME", value_parser = parse_hostname, requires = "image")]
    hostname: Option<String>,
    /// A line more in /etc/hosts. May be repeated.
    #[arg(long, value_name = "NAME:ADDR", value_parser = parse_host, requires = "image")]
    add_host: Vec<(String, String)>,
    /// CMD can write to no file of the image.
    #[arg(long, requires = "image")]
    read_only: bool,
    /// none: no network; without it, as --net user.
    #[arg(long, value_name = "none", value_parser = parse_network, requires = "image")]
    network: Option<()>,
    /// CMD as root may do everything in the guest; without it, what container engines allow.
    #[arg(long, requires = "image")]
    privileged: bool,
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
        for text in &self.volumes {
            let parsed = share(text).and_then(|shared| device::parse("share", &shared));
            let share = parsed.map_err(|reason| anyhow!("--volume {text}: {reason}"))?;
            draft.devices.entry("share").or_default().push(share);
        }
        Ok(())
    }

    /// The machine of `draft`; it starts from the image, if one is named. `given` says whether memory and
    /// vCPUs are.
    ///
    /// # Errors
    /// There is no such machine, or the image cannot be had.
    pub fn machine(&self, draft: Draft, given: (bool, bool)) -> anyhow::Result<Machine> {
        let mut machine = draft.machine().map_err(flagged::config)?;
        self.set(&mut machine, given)?;
        Ok(machine)
    }

    fn set(&self, machine: &mut Machine, given: (bool, bool)) -> anyhow::Result<()> {
        let Some(text) = &self.image else {
            return Ok(());
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
        let wishes = Wishes {
            entrypoint: self.entrypoint.clone(),
            hostname: self.hostname.clone(),
            hosts: self.add_host.clone(),
            read_only: self.read_only,
            memory: self
                .tmpfs
                .iter()
                .map(|text| folder_in_memory(text))
                .collect(),
            ports: self.ports.clone(),
            alone: self.network.is_some(),
            privileged: self.privileged,
            default_memory: !given.0,
            default_cpus: !given.1,
        };
        set(machine, &image, &store, &wishes, &|line| say(line)).map_err(flagged::error)
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

/// A volume of docker's as a share: without the options that do not matter.
fn share(text: &str) -> Result<String, String> {
    let (source, rest) = text
        .split_once(":/")
        .ok_or("write SRC:/path or SRC:/path:ro")?;
    if !source.starts_with(['/', '.', '~']) {
        return Err(format!(
            "{source:?} is no folder; write a path with a slash, such as ./{source}"
        ));
    }
    let (path, options) = rest.split_once(':').unwrap_or((rest, ""));
    let options = options
        .split(',')
        .filter(|it| !it.is_empty() && !IGNORED.contains(it));
    let options: String = options.map(|option| format!(":{option}")).collect();
    Ok(format!("{source}:/{path}{options}"))
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

/// A port as docker has it: on all addresses unless one is named.
fn parse_port(text: &str) -> Result<Publish, String> {
    match text.matches(':').count() {
        0 => Err(format!("write HOST:GUEST, such as {text}:{text}")),
        1 => port(&format!("0.0.0.0:{text}")),
        _ => port(text),
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

fn parse_network(text: &str) -> Result<(), String> {
    match text {
        "none" => Ok(()),
        _ => Err("it is none; the kinds of networks are those of --net".into()),
    }
}
