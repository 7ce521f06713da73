//! A machine in a file, JSON or TOML: the keys are the long names of flags, a device is the text of
//! its flag or a table of its options.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;

use rustix::fs::OFlags;
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::device::{Device, Form, KINDS, Kind};
use super::draft::Draft;
use super::error::ConfigError;
use super::lockdown::Lockdown;
use super::machine::{self, Command, Kernel, Machine};
use super::size;
use super::table::Table;
use super::{jail, limits};
use crate::boot::Topology;

/// Most bytes of a file that are read.
const MAX_BYTES: u64 = 1 << 20;

/// Keys of settings, before those of devices.
const SETTINGS: [&str; 9] = [
    "name",
    "cpus",
    "memory",
    "kernel",
    "initrd",
    "boot",
    "cmdline",
    "console",
    "kernel-log",
];
/// Keys behind those of devices.
const LAST_SETTINGS: [&str; 5] = ["break", "lockdown", "jail", "limit", "command"];
/// Keys of a command that is written as a table.
const COMMAND_KEYS: [&str; 5] = ["argv", "env", "cwd", "user", "tty"];

/// All keys, in the order in which they are listed and printed.
pub(super) fn keys() -> impl Iterator<Item = &'static str> + Clone {
    let devices = KINDS.iter().map(|kind| kind.key);
    SETTINGS.into_iter().chain(devices).chain(LAST_SETTINGS)
}

/// What the file `path` says.
///
/// # Errors
/// It cannot be read, or as [`parse`].
pub fn read(path: &Path) -> Result<Draft, ConfigError> {
    let refuse = |reason: String| ConfigError::File {
        path: path.into(),
        reason,
    };
    let file = open(path, MAX_BYTES).map_err(|reason| match path.exists() {
        true => refuse(reason),
        false => refuse(format!(
            "{reason}; hull run --print-config writes such a file"
        )),
    })?;
    let mut text = String::new();
    let read = file.take(MAX_BYTES).read_to_string(&mut text);
    read.map_err(|error| refuse(error.to_string()))?;
    parse(&text)
}

/// Open a regular file of at most `max_bytes`.
///
/// # Errors
/// What is wrong with it.
pub fn open(path: &Path, max_bytes: u64) -> Result<File, String> {
    let failed = |error: io::Error| error.to_string();
    let mut options = File::options();
    // The open of a FIFO without a writer would block.
    options
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32);
    let file = options.open(path).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    let kind = about.file_type();
    match about.len() {
        _ if kind.is_fifo() => {
            Err("a pipe and not a regular file; write it to a file first".into())
        }
        _ if !kind.is_file() => Err("not a regular file".into()),
        bytes if bytes > max_bytes => Err(format!(
            "{bytes} bytes; at most {} is read",
            size::show(max_bytes)
        )),
        _ => Ok(file),
    }
}

/// What `text` says: JSON if it begins with a brace, else TOML. Both parsers refuse what is nested
/// deeper than a hundred times or so.
///
/// # Errors
/// It is neither, has an unknown key, or a value that its key does not take.
pub fn parse(text: &str) -> Result<Draft, ConfigError> {
    let syntax = |format, reason: String| ConfigError::Syntax { format, reason };
    let json = text.trim_start().starts_with('{');
    let map: Map<String, Value> = if json {
        serde_json::from_str(text).map_err(|error| syntax("JSON", error.to_string()))?
    } else {
        toml::from_str(text).map_err(|error| syntax("TOML", error.to_string()))?
    };
    let mut draft = Draft::default();
    for (key, value) in &map {
        set(&mut draft, key, value).map_err(|error| error.located(text, json))?;
    }
    Ok(draft)
}

fn set(draft: &mut Draft, key: &str, value: &Value) -> Result<(), ConfigError> {
    let machine = &mut draft.machine;
    match key {
        "name" => machine.name = Some(with(value, key, machine::parse_name)?),
        "cpus" => machine.set_cpus(with(value, key, str::parse)?),
        "memory" => machine.memory_bytes = with(value, key, machine::parse_memory)?,
        "kernel" => machine.kernel = Kernel::from(OsString::from(string(value, key)?)),
        "initrd" => machine.initrd = Some(with(value, key, str::parse)?),
        "boot" => machine.boot = with(value, key, str::parse)?,
        "cmdline" => machine.cmdline = string(value, key)?.into(),
        "console" => machine.console = with(value, key, str::parse)?,
        "kernel-log" => machine.kernel_log = switch(value, key)?,
        "break" => {
            machine.faults = list(value, key, |value, place| with(value, place, str::parse))?
        }
        "lockdown" => machine.lockdown = with(value, key, str::parse)?,
        "jail" => {
            machine.jail = match value {
                Value::Bool(wanted) => wanted.then(Default::default),
                _ => Some(options(value, key, &jail::TABLE)?),
            }
        }
        "limit" => machine.limits = options(value, key, &limits::TABLE)?,
        "command" => machine.command = Some(command(value, key)?),
        _ => {
            let kind = Kind::of(key);
            let kind = kind.ok_or_else(|| ConfigError::unknown_key(key, key, keys()))?;
            draft.devices.insert(kind.key, devices(value, kind)?);
        }
    }
    Ok(())
}

fn wrong(place: &str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        at: String::new(),
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

fn devices(value: &Value, kind: &Kind) -> Result<Vec<Device>, ConfigError> {
    let place = kind.key;
    match (&kind.form, value, kind.plain()) {
        (Form::Switch, ..) => {
            let wanted = switch(value, place)?;
            Ok(kind.plain().filter(|_| wanted).into_iter().collect())
        }
        (Form::One(_), Value::Bool(wanted), Some(plain)) => {
            Ok(wanted.then_some(plain).into_iter().collect())
        }
        (Form::One(table), ..) => Ok(vec![device(value, place, table, kind.parse)?]),
        (Form::Many(table), ..) => list(value, place, |value, place| {
            device(value, place, table, kind.parse)
        }),
    }
}

/// What a flag says, as its text or as a table of its options.
fn options<T: FromStr<Err = String>>(
    value: &Value,
    place: &str,
    table: &Table,
) -> Result<T, ConfigError> {
    match value {
        Value::Object(options) => with(&table.text(options, place)?.into(), place, str::parse),
        _ => with(value, place, str::parse),
    }
}

/// A device as the text of its flag, or as a table of its options.
fn device(
    value: &Value,
    place: &str,
    table: &Table,
    parse: fn(&str) -> Result<Device, String>,
) -> Result<Device, ConfigError> {
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
            "user" => command.user = with(value, &place, machine::parse_user)?,
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

/// A machine as [`parse`] reads it; printed in the order of `keys`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Written(Map<String, Value>);

impl Serialize for Written {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(keys().filter_map(|key| Some((key, self.0.get(key)?))))
    }
}

impl Written {
    /// What `key` has, a device or a list of them, as texts of its flag.
    pub fn texts(&self, key: &str) -> Vec<&str> {
        match self.0.get(key) {
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
            Some(one) => one.as_str().into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// The JSON of the file.
    pub fn text(&self) -> String {
        // It fails for maps whose keys are no strings.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

/// `machine` as the content of a file.
///
/// # Errors
/// A path or an argument is not UTF-8.
pub fn write(machine: &Machine) -> Result<Written, ConfigError> {
    let mut map = Map::new();
    let mut set = |key: &str, value: Value| drop(map.insert(key.into(), value));
    if let Some(name) = &machine.name {
        set("name", name.as_str().into());
    }
    set(
        "cpus",
        match machine.topology == Topology::default() {
            true => machine.cpus.into(),
            false => machine.cpus().to_string().into(),
        },
    );
    set("memory", size::exact(machine.memory_bytes).into());
    if let Some(kernel) = kernel_text(&machine.kernel)? {
        set("kernel", kernel.into());
    }
    if let Some(initrd) = &machine.initrd {
        set("initrd", utf8(initrd.as_os_str())?.into());
    }
    set("boot", machine.boot.to_string().into());
    if !machine.cmdline.is_empty() {
        set("cmdline", machine.cmdline.as_str().into());
    }
    set("console", machine.console.to_string().into());
    set("kernel-log", machine.kernel_log.into());
    for kind in &KINDS {
        let devices = machine.devices.iter();
        let devices = devices.filter(|device| device.key() == kind.key);
        let mut texts = devices.map(text).collect::<Result<Vec<_>, _>>()?;
        match kind.form {
            Form::Switch => set(kind.key, (!texts.is_empty()).into()),
            _ if texts.is_empty() => {}
            Form::One(_) => set(kind.key, texts.swap_remove(0).into()),
            Form::Many(_) => set(kind.key, texts.into()),
        }
    }
    if !machine.faults.is_empty() {
        let faults: Vec<_> = machine.faults.iter().map(ToString::to_string).collect();
        set("break", faults.into());
    }
    if machine.lockdown != Lockdown::default() {
        set("lockdown", machine.lockdown.to_string().into());
    }
    match machine.jail {
        Some(jail) if jail == Default::default() => set("jail", true.into()),
        Some(jail) => set("jail", jail.to_string().into()),
        None => {}
    }
    if !machine.limits.is_empty() {
        set("limit", machine.limits.to_string().into());
    }
    if let Some(command) = &machine.command {
        set("command", write_command(command)?);
    }
    Ok(Written(map))
}

/// The text of the flag for `device`.
fn text(device: &Device) -> Result<String, ConfigError> {
    let text = device.to_string();
    // Display replaces what is not UTF-8 in a path; serde refuses it.
    match serde_json::to_value(device) {
        Ok(_) => Ok(text),
        Err(_) => Err(ConfigError::NotUtf8 { text }),
    }
}

/// A list of words, or a table if there is more to say.
fn write_command(command: &Command) -> Result<Value, ConfigError> {
    let words = |words: &[std::ffi::OsString]| -> Result<Vec<Value>, ConfigError> {
        words.iter().map(|word| Ok(utf8(word)?.into())).collect()
    };
    let argv = words(&command.argv)?;
    let plain = Command {
        argv: command.argv.clone(),
        ..Command::default()
    };
    if *command == plain {
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
    if !command.user.is_empty() {
        table.insert("user".into(), utf8(&command.user)?.into());
    }
    if let Some(tty) = command.tty {
        table.insert("tty".into(), tty.into());
    }
    Ok(table.into())
}

/// What the key `kernel` says; nothing for the one that needs no mention.
fn kernel_text(kernel: &Kernel) -> Result<Option<String>, ConfigError> {
    let path = match kernel {
        Kernel::Tiny => return Ok(None),
        Kernel::Full => return Ok(Some("full".into())),
        Kernel::File(path) => utf8(path.as_os_str())?,
    };
    // A file that is called as a kernel of hull's.
    let is_name = Kernel::own(&path).is_some();
    Ok(Some(if is_name { format!("./{path}") } else { path }))
}

fn utf8(text: &std::ffi::OsStr) -> Result<String, ConfigError> {
    let known = text.to_str().map(String::from);
    known.ok_or_else(|| ConfigError::NotUtf8 {
        text: text.to_string_lossy().into(),
    })
}
