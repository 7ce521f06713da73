//! A disk's configuration, and how it is typed: `PATH[,OPTION]..`; a scratch disk is only a size.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::size;
use crate::config::table::{Separators, Table};
use crate::devices::rate::Limits;
use crate::devices::virtio::block::MAX_NAME;

/// A disk in a file as a table.
pub const TABLE: Table = Table::new(
    "disk",
    &["path"],
    &["ro", "overlay", "id", "cache", "rate", "format", "backing"],
    Separators::DoubledCommas,
);

/// Sizes of a scratch disk: 1 MiB to 16 TiB.
const SCRATCH_SIZES: RangeInclusive<u64> = 1 << 20..=1 << 44;
/// What follows the path of a disk, for messages.
const OPTIONS: &str = "ro, overlay, id=NAME, cache=writeback|unsafe, format=raw|qcow2, \
                       backing=FILE and rate=RATE";

/// When what the guest wrote and flushed is safe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cache {
    /// When a flush has been answered it is on the host's disk.
    #[default]
    Writeback,
    /// Never: flushes are answered and nothing else. For disks that are not needed afterwards.
    Unsafe,
}

/// What is behind a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// An image, or a block device.
    Image(PathBuf),
    /// So many bytes of zeroes, a multiple of 512, in a file without a name: gone when hull is.
    Scratch(u64),
    /// Files one after the other, each filled up to a whole sector; the guest only reads.
    Joined(Vec<PathBuf>),
    /// An empty ext4 of so many bytes, [`super::ext4::SIZES`], in a file without a name: gone when hull is.
    Ext4(u64),
}

impl Source {
    /// What a disk without an image is called.
    pub(super) const SCRATCH: &str = "scratch";

    pub(super) fn name(&self) -> String {
        let path = match self {
            Self::Image(path) => path.as_path(),
            Self::Scratch(_) | Self::Ext4(_) => Path::new(Self::SCRATCH),
            Self::Joined(paths) => paths.first().map_or(Path::new(""), PathBuf::as_path),
        };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let printable = stem.chars().filter(char::is_ascii_graphic);
        printable.take(MAX_NAME).collect()
    }
}

/// A disk as the user asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// What is behind it, or nothing: the image's path or a scratch disk's size.
    pub source: Source,
    /// The guest may not write.
    pub read_only: bool,
    /// The serial number that the guest sees, 20 bytes at most; `None`: the image's file name
    /// without its ending.
    pub name: Option<String>,
    /// When writes are safe.
    pub cache: Cache,
    /// What the image is; `None`: told by how it begins.
    pub format: Option<Format>,
    /// The images that a qcow2 image is based on, the nearest first.
    pub backing: Vec<PathBuf>,
    /// Nothing is written to the image: the guest's writes go to a temporary one.
    pub overlay: bool,
    /// How fast it may be; an empty one is no limit.
    pub limits: Limits,
    /// The kernel mounts it as its root file system, and runs the init on it.
    pub root: bool,
}

/// How an image holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// Byte N of the disk is byte N of the file.
    Raw,
    /// QEMU's format, of the versions 2 and 3.
    Qcow2,
}

impl Config {
    /// A disk with that behind it, and no option.
    fn of(source: Source) -> Self {
        Self {
            source,
            read_only: false,
            name: None,
            cache: Cache::default(),
            format: None,
            backing: Vec::new(),
            overlay: false,
            limits: Limits::default(),
            root: false,
        }
    }

    /// The disk of an image: `files` one after the other, as the guest's root.
    pub fn of_image(files: Vec<PathBuf>, name: String) -> Self {
        Self {
            read_only: true,
            name: Some(name),
            root: true,
            ..Self::of(Source::Joined(files))
        }
    }

    /// A disk with a file system for a machine of an image, which the guest mounts as `name`. One that is only
    /// read gets an overlay: its journal may have to be replayed, and others may read it at the same time.
    pub fn of_file_system(source: Source, name: String, read_only: bool) -> Self {
        let gone = read_only || matches!(source, Source::Ext4(_));
        Self {
            name: Some(name),
            cache: if gone {
                Cache::Unsafe
            } else {
                Cache::Writeback
            },
            format: matches!(source, Source::Image(_)).then_some(Format::Raw),
            overlay: read_only,
            ..Self::of(source)
        }
    }

    /// The name of the flag, and of the key in a file, that asks for such a disk.
    pub fn flag(&self) -> &'static str {
        match self.source {
            Source::Joined(_) => "image",
            Source::Ext4(_) => "disk-size",
            _ if self.root => "root-disk",
            Source::Scratch(_) => "scratch",
            Source::Image(_) if self.overlay => "overlay",
            Source::Image(_) => "disk",
        }
    }

    /// Parse `PATH[,OPTION]..`, the disk of which is an overlay.
    ///
    /// # Errors
    /// What the text must be instead, for the message behind its flag.
    pub fn parse_overlay(text: &str) -> Result<Self, String> {
        let (path, options) = split_path(text);
        format!("{},overlay,{options}", path.replace(',', ",,")).parse()
    }

    /// Parse `PATH[,OPTION]..`, the disk of which holds the guest's root file system.
    ///
    /// # Errors
    /// What the text must be instead, for the message behind its flag.
    pub fn parse_root(text: &str) -> Result<Self, String> {
        let disk: Self = text.parse()?;
        Ok(Self { root: true, ..disk })
    }

    /// Parse the size of a scratch disk, 1M to 16T; it is rounded down to whole pages.
    ///
    /// # Errors
    /// What the text must be instead, for the message behind its flag.
    pub fn parse_scratch(text: &str) -> Result<Self, String> {
        let bytes = size::parse(text).filter(|bytes| SCRATCH_SIZES.contains(bytes));
        let bytes = bytes.ok_or_else(|| {
            let hint = size::as_bytes(text);
            format!("a scratch disk has 1M to 16T; {}{hint}", size::FORM)
        })?;
        Ok(Self {
            cache: Cache::Unsafe,
            ..Self::of(Source::Scratch(bytes & !0xfff))
        })
    }

    /// By which the user and the guest know it: its serial number.
    pub fn id(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.source.name())
    }

    fn set(&mut self, option: &str) -> Result<(), String> {
        match option.split_once('=').unwrap_or((option, "")) {
            ("", "") => {}
            ("ro", "") => self.read_only = true,
            ("overlay", "") => self.overlay = true,
            ("id", name) => self.name = Some(serial(name)?),
            ("cache", "writeback") => self.cache = Cache::Writeback,
            ("cache", "unsafe") => self.cache = Cache::Unsafe,
            ("cache", other) => {
                return Err(format!("cache={other}: it is writeback or unsafe"));
            }
            ("format", "raw") => self.format = Some(Format::Raw),
            ("format", "qcow2") => self.format = Some(Format::Qcow2),
            ("format", other) => return Err(format!("format={other}: it is raw or qcow2")),
            ("backing", path) if !path.is_empty() => self.backing.push(path.into()),
            ("rate", limits) => self.limits = limits.parse()?,
            _ => {
                return Err(format!(
                    "'{option}' is no option of a disk; there are {OPTIONS}, and a comma in a \
                     path is written twice"
                ));
            }
        }
        Ok(())
    }
}

/// Where a disk's image is now, as in `ID=PATH[,backing=FILE]..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The disk's [`Config::id`].
    pub id: String,
    /// The image.
    pub image: PathBuf,
    /// The images that it is based on, the nearest first; as they were if there is none.
    pub backing: Vec<PathBuf>,
}

impl FromStr for Moved {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "write ID=PATH, such as data=/srv/data.img; behind it may stand backing=FILE";
        let (id, rest) = text.split_once('=').ok_or_else(form)?;
        let mut disk: Config = rest.parse()?;
        let backing = std::mem::take(&mut disk.backing);
        let plain = Config::of(disk.source.clone());
        match disk.source.clone() {
            Source::Image(image) if disk == plain && !id.is_empty() => Ok(Self {
                id: id.into(),
                image,
                backing,
            }),
            _ => Err(form().into()),
        }
    }
}

/// As it is typed.
impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let double = |path: &Path| path.display().to_string().replace(',', ",,");
        write!(f, "{}={}", self.id, double(&self.image))?;
        let mut backing = self.backing.iter();
        backing.try_for_each(|path| write!(f, ",backing={}", double(path)))
    }
}

impl FromStr for Config {
    type Err = String;

    /// `,,` is a comma in the path, as QEMU has it.
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, mut rest) = split_path(text);
        if path.is_empty() {
            return Err(format!(
                "a disk needs a path; behind it may stand {OPTIONS}"
            ));
        }
        let mut config = Self::of(Source::Image(path.into()));
        while !rest.is_empty() {
            let (option, behind) = split_path(rest);
            rest = behind;
            config.set(&option)?;
        }
        if config.overlay {
            if config.read_only {
                return Err("ro and overlay: a disk is one or the other".into());
            }
            // The overlay ends with the machine, so that no flush of it matters.
            config.cache = Cache::Unsafe;
        }
        Ok(config)
    }
}

/// As it is typed behind the flag that asks for it.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let double = |text: &dyn fmt::Display| text.to_string().replace(',', ",,");
        match &self.source {
            Source::Scratch(bytes) | Source::Ext4(bytes) => {
                return f.write_str(&size::exact(*bytes));
            }
            Source::Image(path) => f.write_str(&double(&path.display()))?,
            Source::Joined(paths) => {
                let paths: Vec<_> = paths.iter().map(|path| double(&path.display())).collect();
                f.write_str(&paths.join("+"))?;
            }
        }
        if self.read_only {
            f.write_str(",ro")?;
        }
        if self.overlay {
            f.write_str(",overlay")?;
        }
        if let Some(name) = &self.name {
            write!(f, ",id={}", double(name))?;
        }
        if self.cache == Cache::Unsafe && !self.overlay {
            f.write_str(",cache=unsafe")?;
        }
        match self.format {
            None => {}
            Some(Format::Raw) => f.write_str(",format=raw")?,
            Some(Format::Qcow2) => f.write_str(",format=qcow2")?,
        }
        for path in &self.backing {
            write!(f, ",backing={}", double(&path.display()))?;
        }
        if self.limits != Limits::default() {
            write!(f, ",rate={}", self.limits)?;
        }
        Ok(())
    }
}

/// Refuse disks that one machine cannot have together; the flag that names the disk, and why.
///
/// # Errors
/// Two of them are the same image with a writer, or have the same name.
pub fn check<'a>(disks: impl Iterator<Item = &'a Config>) -> Result<(), (&'static str, String)> {
    let (mut names, mut images) = (BTreeSet::new(), BTreeMap::new());
    for disk in disks {
        if let Some(name) = &disk.name
            && !names.insert(name)
        {
            let reason = format!("id={name}: two disks have this name; give each its own");
            return Err((disk.flag(), reason));
        }
        let Source::Image(path) = &disk.source else {
            continue;
        };
        let writes = !disk.read_only && !disk.overlay;
        let file = path.canonicalize().unwrap_or_else(|_| path.clone());
        if let Some(before_writes) = images.insert(file, writes)
            && (writes || before_writes)
        {
            let reason = format!(
                "{}: named twice; a disk has one writer, so add ,ro or ,overlay to both",
                path.display()
            );
            return Err((disk.flag(), reason));
        }
    }
    Ok(())
}

/// What stands before the first single comma, and what behind it.
fn split_path(text: &str) -> (String, &str) {
    let mut path = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(',') {
        path += before;
        match after.strip_prefix(',') {
            None => return (path, after),
            Some(more) => {
                path.push(',');
                rest = more;
            }
        }
    }
    (path + rest, "")
}

fn serial(name: &str) -> Result<String, String> {
    let fits = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    match fits {
        true => Ok(name.into()),
        false => Err(format!(
            "id={name}: a disk's name is 1 to {MAX_NAME} letters, digits or signs of ASCII"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_ends_the_path_unless_it_is_doubled() {
        assert_eq!(split_path("a"), ("a".into(), ""));
        assert_eq!(split_path("a,ro,id=x"), ("a".into(), "ro,id=x"));
        assert_eq!(split_path("a,,b,ro"), ("a,b".into(), "ro"));
        assert_eq!(split_path("a,,,ro"), ("a,".into(), "ro"));
        assert_eq!(split_path("a,,"), ("a,".into(), ""));
    }

    #[test]
    fn options_are_what_they_say() {
        let parse = |text: &str| text.parse::<Config>();
        let config = parse("/x/data.img,ro,id=d1,cache=unsafe").expect("parsed");
        assert_eq!(config.source, Source::Image("/x/data.img".into()));
        assert!(config.read_only);
        assert_eq!(config.name.as_deref(), Some("d1"));
        assert_eq!(config.cache, Cache::Unsafe);
        assert_eq!(parse("/x/data.img").expect("parsed").name, None);
        for wrong in [
            "",
            ",ro",
            "a,rw",
            "a,cache=none",
            "a,id=",
            "a,id=é",
            "a,ro=1",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(parse(&format!("a,id={}", "n".repeat(21))).is_err());
    }
}
