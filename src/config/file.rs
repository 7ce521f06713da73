//! A machine in a file, JSON or TOML: the keys are the long names of flags, a device is the text of
//! its flag or a table of its options.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::draft::Draft;
use super::error::ConfigError;
use super::machine::{self, Command, Device, Kernel, Machine};
use super::table::Table;
use super::{balloon, vsock};
use crate::{disk, net, share};

/// Most bytes of a file that are read.
const MAX_BYTES: u64 = 1 << 20;

/// All keys, as they are listed where one is unknown.
pub(super) const KEYS: [&str; 20] = [
    "name",
    "cpus",
    "memory",
    "kernel",
    "initrd",
    "boot",
    "cmdline",
    "console",
    "kernel-log",
    "root-disk",
    "disk",
    "overlay",
    "scratch",
    "net",
    "share",
    "rng",
    "balloon",
    "vsock",
    "break",
    "command",
];
/// Keys of a command that is written as a table.
const COMMAND_KEYS: [&str; 4] = ["argv", "env", "cwd", "tty"];
/// A scratch disk as a table.
const SCRATCH: Table = Table::new("scratch", &["size"], &[]);

/// What the file `path` says.
///
/// # Errors
/// It cannot be read, or as [`parse`].
pub fn read(path: &Path) -> Result<Draft, ConfigError> {
    let failed = |error| ConfigError::Read {
        path: path.into(),
        error,
    };
    let mut options = File::options();
    // The open of a FIFO without a writer would block; reading one gives an empty file.
    options
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32);
    let file = options.open(path).map_err(failed)?;
    let mut text = String::new();
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(ConfigError::TooLarge {
            path: path.into(),
            limit: MAX_BYTES,
        });
    }
    parse(&text)
}

/// What `text` says: JSON if it begins with a brace, else TOML. Both parsers refuse what is nested
/// deeper than a hundred times or so.
///
/// # Errors
/// It is neither, has an unknown key, or a value that its key does not take.
pub fn parse(text: &str) -> Result<Draft, ConfigError> {
    let syntax = |format, reason: String| ConfigError::Syntax { format, reason };
    let map: Map<String, Value> = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|error| syntax("JSON", error.to_string()))?
    } else {
        toml::from_str(text).map_err(|error| syntax("TOML", error.to_string()))?
    };
    let mut draft = Draft::default();
    for (key, value) in &map {
        set(&mut draft, key, value)?;
    }
    Ok(draft)
}

fn set(draft: &mut Draft, key: &str, value: &Value) -> Result<(), ConfigError> {
    match key {
        "name" => draft.name = Some(with(value, key, machine::parse_name)?),
        "cpus" => draft.cpus = Some(with(value, key, machine::parse_cpus)?),
        "memory" => draft.memory = Some(with(value, key, machine::parse_memory)?),
        "kernel" => draft.kernel = Some(with(value, key, str::parse)?),
        "initrd" => draft.initrd = Some(with(value, key, str::parse)?),
        "boot" => draft.boot = Some(with(value, key, str::parse)?),
        "cmdline" => draft.cmdline = Some(string(value, key)?.into()),
        "console" => draft.console = Some(with(value, key, str::parse)?),
        "kernel-log" => draft.kernel_log = Some(switch(value, key)?),
        "root-disk" => {
            let root = device(value, key, &disk::config::TABLE, disk::Config::parse_root)?;
            draft.root_disk = Some(root);
        }
        "disk" => draft.disks = devices(value, key, &disk::config::TABLE, str::parse)?,
        "overlay" => {
            let table = &disk::config::TABLE;
            draft.overlays = devices(value, key, table, disk::Config::parse_overlay)?;
        }
        "scratch" => {
            draft.scratches = devices(value, key, &SCRATCH, disk::Config::parse_scratch)?;
        }
        "net" => draft.nets = devices(value, key, &net::config::TABLE, str::parse)?,
        "share" => draft.shares = devices(value, key, &share::config::TABLE, str::parse)?,
        "rng" => draft.rng = Some(switch(value, key)?),
        "balloon" => {
            draft.balloon = match value {
                Value::Bool(wanted) => wanted.then(Default::default),
                _ => Some(device(value, key, &balloon::TABLE, str::parse)?),
            }
        }
        "vsock" => draft.vsock = Some(device(value, key, &vsock::TABLE, str::parse)?),
        "break" => draft.faults = list(value, key, |value, place| with(value, place, str::parse))?,
        "command" => draft.command = Some(command(value, key)?),
        _ => return Err(ConfigError::unknown_key(key, key, KEYS.into_iter())),
    }
    Ok(())
}

fn wrong(place: &str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        place: place.into(),
        reason: reason.into(),
    }
}

fn string<'a>(value: &'a Value, place: &str) -> Result<&'a str, ConfigError> {
    let text = value
        .as_str()
        .ok_or_else(|| wrong(place, "it is a string"))?;
    if text.contains('\0') {
        return Err(wrong(place, "it has no NUL"));
    }
    Ok(text)
}

/// A string, or a number as if it were one, parsed as its flag is.
fn with<T, E: ToString>(
    value: &Value,
    place: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<T, ConfigError> {
    let number = value.as_number().map(ToString::to_string);
    let text = match &number {
        Some(number) => number,
        None => string(value, place)?,
    };
    parse(text).map_err(|error| wrong(place, format!("{text}: {}", error.to_string())))
}

fn switch(value: &Value, place: &str) -> Result<bool, ConfigError> {
    match value {
        Value::Bool(on) => Ok(*on),
        Value::String(text) if text == "on" => Ok(true),
        Value::String(text) if text == "off" => Ok(false),
        _ => Err(wrong(place, "it is true or false")),
    }
}

/// One value or a list of them.
fn list<T>(
    value: &Value,
    place: &str,
    parse: impl Fn(&Value, &str) -> Result<T, ConfigError>,
) -> Result<Vec<T>, ConfigError> {
    let Value::Array(values) = value else {
        return Ok(vec![parse(value, place)?]);
    };
    let each = values.iter().enumerate();
    each.map(|(index, value)| parse(value, &format!("{place}[{index}]")))
        .collect()
}

fn devices<T>(
    value: &Value,
    place: &str,
    table: &Table,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, ConfigError> {
    list(value, place, |value, place| {
        device(value, place, table, &parse)
    })
}

/// A device as the text of its flag, or as a table of its options.
fn device<T>(
    value: &Value,
    place: &str,
    table: &Table,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, ConfigError> {
    match value {
        Value::Object(options) => with(&table.text(options, place)?.into(), place, parse),
        Value::String(_) | Value::Number(_) => with(value, place, parse),
        _ => Err(wrong(place, "it is a string, or a table of options")),
    }
}

fn command(value: &Value, place: &str) -> Result<Command, ConfigError> {
    let words = |value: &Value, place: &str| {
        list(
            value,
            place,
            |value, place| Ok(string(value, place)?.into()),
        )
    };
    let Value::Object(table) = value else {
        let argv = words(value, place)?;
        return Ok(Command {
            argv,
            ..Command::default()
        });
    };
    let mut command = Command::default();
    for (key, value) in table {
        let place = format!("{place}.{key}");
        match key.as_str() {
            "argv" => command.argv = words(value, &place)?,
            "env" => command.env = words(value, &place)?,
            "cwd" => command.cwd = string(value, &place)?.into(),
            "tty" => command.tty = Some(switch(value, &place)?),
            _ => {
                return Err(ConfigError::unknown_key(
                    &place,
                    key,
                    COMMAND_KEYS.into_iter(),
                ));
            }
        }
    }
    Ok(command)
}

/// A machine as [`parse`] reads it; the fields are the keys, in the order in which they are printed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Written {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    cpus: u8,
    memory: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernel: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    initrd: Option<String>,
    boot: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    cmdline: String,
    console: String,
    kernel_log: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root_disk: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    disk: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    overlay: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    scratch: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    net: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    share: Vec<String>,
    rng: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    balloon: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vsock: Option<String>,
    #[serde(rename = "break", default, skip_serializing_if = "Vec::is_empty")]
    faults: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<Value>,
}

/// `machine` as the content of a file.
///
/// # Errors
/// A path or an argument is not UTF-8.
pub fn write(machine: &Machine) -> Result<Written, ConfigError> {
    let machine = machine.clone();
    let path = |path: &Path| utf8(path.as_os_str());
    let mut written = Written {
        name: machine.name,
        cpus: machine.cpus,
        memory: super::size::exact(machine.memory_bytes),
        kernel: match &machine.kernel {
            Kernel::Embedded => None,
            Kernel::File(file) => Some(path(file)?),
        },
        initrd: machine.initrd.as_deref().map(path).transpose()?,
        boot: machine.boot.to_string(),
        cmdline: machine.cmdline,
        console: machine.console.to_string(),
        kernel_log: machine.kernel_log,
        root_disk: None,
        disk: Vec::new(),
        overlay: Vec::new(),
        scratch: Vec::new(),
        net: Vec::new(),
        share: Vec::new(),
        rng: false,
        balloon: None,
        vsock: None,
        faults: machine.faults.iter().map(ToString::to_string).collect(),
        command: machine.command.as_ref().map(write_command).transpose()?,
    };
    for device in &machine.devices {
        written.add(device)?;
    }
    Ok(written)
}

impl Written {
    /// The JSON of the file.
    pub fn text(&self) -> String {
        // It fails for maps whose keys are no strings.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    fn add(&mut self, device: &Device) -> Result<(), ConfigError> {
        match device {
            Device::Rng => self.rng = true,
            Device::Balloon(balloon) => self.balloon = Some(balloon.to_string()),
            Device::Disk(disk) => {
                if let disk::Source::Image(image) = &disk.source {
                    utf8(image.as_os_str())?;
                }
                for path in &disk.backing {
                    utf8(path.as_os_str())?;
                }
                match disk.flag() {
                    "root-disk" => self.root_disk = Some(disk.to_string()),
                    "scratch" => self.scratch.push(disk.to_string()),
                    "overlay" => self.overlay.push(disk.to_string()),
                    _ => self.disk.push(disk.to_string()),
                }
            }
            Device::Net(net) => self.net.push(net.to_string()),
            Device::Share(share) => {
                utf8(share.folder.as_os_str())?;
                self.share.push(share.to_string());
            }
            Device::Vsock(vsock) => {
                utf8(vsock.socket.as_os_str())?;
                self.vsock = Some(vsock.to_string());
            }
        }
        Ok(())
    }
}

/// A list of words, or a table if there is more to say.
fn write_command(command: &Command) -> Result<Value, ConfigError> {
    let words = |words: &[std::ffi::OsString]| -> Result<Vec<Value>, ConfigError> {
        words.iter().map(|word| Ok(utf8(word)?.into())).collect()
    };
    let argv = words(&command.argv)?;
    if command.env.is_empty() && command.cwd.is_empty() && command.tty.is_none() {
        return Ok(argv.into());
    }
    let mut table = Map::new();
    table.insert("argv".into(), argv.into());
    if !command.env.is_empty() {
        table.insert("env".into(), words(&command.env)?.into());
    }
    if !command.cwd.is_empty() {
        table.insert("cwd".into(), utf8(&command.cwd)?.into());
    }
    if let Some(tty) = command.tty {
        table.insert("tty".into(), tty.into());
    }
    Ok(table.into())
}

fn utf8(text: &std::ffi::OsStr) -> Result<String, ConfigError> {
    let known = text.to_str().map(String::from);
    known.ok_or_else(|| ConfigError::NotUtf8 {
        text: text.to_string_lossy().into(),
    })
}
