//! Volumes and folders of a service.

use super::error::FileError;
use super::reader::{Reader, Text, unsupported};
use super::yaml::{Kind, Value};

/// A mount of a service.
#[derive(Default)]
struct Mount {
    kind: Option<String>,
    source: Option<String>,
    target: Option<String>,
    read_only: bool,
    size: Option<String>,
}

/// A mount as `hull run` has it.
pub enum Mounted {
    /// A flag and its value.
    Flag(&'static str, String),
    /// A volume by its name in the file, with the path in the machine and the mode.
    Volume(Text, String),
}

/// The mounts of `value`.
///
/// # Errors
/// One is none.
pub fn read(reader: &Reader<'_>, value: &Value) -> Result<Vec<Mounted>, FileError> {
    let list = match &value.kind {
        Kind::Null => &[],
        Kind::List(list) => list.as_slice(),
        _ => return Err(FileError::at(value.line, "volumes of a service is a list")),
    };
    let one = |value: &Value| {
        let mount = match &value.kind {
            Kind::Map(_) => long(reader, value)?,
            _ => short(&reader.text(value, "volumes")?)?,
        };
        mounted(reader, mount, value.line)
    };
    list.iter().map(one).collect()
}

/// `SOURCE:TARGET[:MODE]` or `TARGET`.
fn short(text: &Text) -> Result<Mount, FileError> {
    let mut mount = Mount::default();
    let parts: Vec<&str> = text.text.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [target] => (None, target, ""),
        [source, target] => (Some(source), target, ""),
        [source, target, mode] => (Some(source), target, *mode),
        _ => return Err(text.wrong("write SOURCE:TARGET or SOURCE:TARGET:ro")),
    };
    for word in mode.split(',').filter(|word| !word.is_empty()) {
        match word {
            "ro" => mount.read_only = true,
            // Labels of SELinux and hints for other hosts mean nothing to a guest.
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            _ => return Err(text.wrong(format!("{word} is not supported; remove it"))),
        }
    }
    mount.source = source.map(ToString::to_string);
    mount.target = Some((*target).into());
    Ok(mount)
}

fn long(reader: &Reader<'_>, value: &Value) -> Result<Mount, FileError> {
    let mut mount = Mount::default();
    for entry in reader.map(value, "a volume")? {
        let text = || Ok(Some(reader.text(&entry.value, &entry.key)?.text));
        match entry.key.as_str() {
            "type" => mount.kind = text()?,
            "source" => mount.source = text()?,
            "target" => mount.target = text()?,
            "read_only" => mount.read_only = reader.flag(&entry.value, "read_only")?,
            "tmpfs" => {
                for entry in reader.map(&entry.value, "tmpfs")? {
                    match entry.key.as_str() {
                        "size" => mount.size = Some(reader.text(&entry.value, "size")?.text),
                        _ => return Err(unsupported(entry, "volumes: tmpfs:")),
                    }
                }
            }
            "consistency" => {}
            _ => return Err(unsupported(entry, "volumes:")),
        }
    }
    Ok(mount)
}

fn mounted(reader: &Reader<'_>, mount: Mount, line: usize) -> Result<Mounted, FileError> {
    let wrong = |reason: &str| Err(FileError::at(line, reason));
    let Some(target) = mount.target.filter(|it| it.starts_with('/')) else {
        return wrong("a volume's target is an absolute path in the machine");
    };
    let mode = if mount.read_only { ":ro" } else { "" };
    let folder = |source: &str| {
        let path = reader.path(source);
        Ok(Mounted::Flag("--volume", format!("{path}:{target}{mode}")))
    };
    match (mount.kind.as_deref(), mount.source) {
        (Some("tmpfs"), _) => {
            let size = mount.size.map(|size| format!(":size={size}"));
            let size = size.unwrap_or_default();
            Ok(Mounted::Flag("--tmpfs", format!("{target}{size}")))
        }
        (Some("bind"), Some(source)) => folder(&source),
        (None, Some(source)) if source.starts_with(['/', '.', '~']) => folder(&source),
        (None | Some("volume"), Some(text)) => Ok(Mounted::Volume(
            Text { line, text },
            format!("{target}{mode}"),
        )),
        (None | Some("volume"), None) => Ok(Mounted::Flag("--volume", target)),
        (Some("bind"), None) => wrong("a bind has a source"),
        (Some(_), _) => wrong("a volume's type is volume, bind or tmpfs"),
    }
}
