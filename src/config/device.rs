//! [`Device`], a virtio device of a machine, and [`KINDS`], the table of the ways to write one. Flags,
//! files and `--print-config` work from the table: a new kind of device is added here.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::balloon::{self, Balloon};
use super::error::ConfigError;
use super::size;
use super::table::{Separators, Table};
use super::vsock::{self, Vsock};
use crate::{disk, net, share};

/// A virtio device of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// Entropy of the host.
    Rng,
    /// A memory balloon; at most one.
    Balloon(Balloon),
    /// A disk; /dev/vda is the first.
    Disk(disk::Config),
    /// A network; eth0 is the first.
    Net(net::Config),
    /// A folder of the host that the guest can mount.
    Share(share::Config),
    /// Sockets between guest and host; at most one.
    Vsock(Vsock),
}

/// One way to write a device.
pub struct Kind {
    /// The long name of its flag, and its key in a file.
    pub key: &'static str,
    /// What a file may say.
    pub form: Form,
    /// Parses the text of the flag.
    pub parse: fn(&str) -> Result<Device, String>,
}

/// What a file may say of a kind of device, and how many of it a machine may have.
pub enum Form {
    /// Yes or no: one without options, which a machine has unless a source says no.
    Switch,
    /// At most one, as text or as a table of options; `true` if the empty text describes one.
    One(Table),
    /// A list of them, or a single one.
    Many(Table),
}

/// A scratch disk as a table.
const SCRATCH: Table = Table::new("scratch", &["size"], &[], Separators::Commas);

/// All kinds, in the order in which they are printed and a machine has its devices.
pub static KINDS: [Kind; 9] = [
    Kind {
        key: "root-disk",
        form: Form::One(disk::config::TABLE),
        parse: |text| disk::Config::parse_root(text).map(Device::Disk),
    },
    Kind {
        key: "disk",
        form: Form::Many(disk::config::TABLE),
        parse: |text| text.parse().map(Device::Disk),
    },
    Kind {
        key: "overlay",
        form: Form::Many(disk::config::TABLE),
        parse: |text| disk::Config::parse_overlay(text).map(Device::Disk),
    },
    Kind {
        key: "scratch",
        form: Form::Many(SCRATCH),
        parse: |text| disk::Config::parse_scratch(text).map(Device::Disk),
    },
    Kind {
        key: "net",
        form: Form::Many(net::config::TABLE),
        parse: |text| text.parse().map(Device::Net),
    },
    Kind {
        key: "share",
        form: Form::Many(share::config::TABLE),
        parse: |text| text.parse().map(Device::Share),
    },
    Kind {
        key: "rng",
        form: Form::Switch,
        parse: |_| Ok(Device::Rng),
    },
    Kind {
        key: "balloon",
        form: Form::One(balloon::TABLE),
        parse: |text| text.parse().map(Device::Balloon),
    },
    Kind {
        key: "vsock",
        form: Form::One(vsock::TABLE),
        parse: |text| text.parse().map(Device::Vsock),
    },
];

impl Kind {
    /// The kind that is written as `key`.
    pub fn of(key: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.key == key)
    }

    /// The device without any option, if there is such a one.
    pub fn plain(&self) -> Option<Device> {
        (self.parse)("").ok()
    }
}

/// The configuration of one kind of device.
pub trait Part: Sized + 'static {
    /// The configuration of `device`, if it is of this kind.
    fn of(device: &Device) -> Option<&Self>;
}

macro_rules! part {
    ($kind:ident, $config:ty) => {
        impl Part for $config {
            fn of(device: &Device) -> Option<&Self> {
                match device {
                    Device::$kind(config) => Some(config),
                    _ => None,
                }
            }
        }
    };
}
part!(Balloon, Balloon);
part!(Disk, disk::Config);
part!(Net, net::Config);
part!(Share, share::Config);
part!(Vsock, Vsock);

/// As it is typed behind the flag that asks for it.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rng => f.write_str("on"),
            Self::Balloon(balloon) => balloon.fmt(f),
            Self::Disk(disk) => disk.fmt(f),
            Self::Net(net) => net.fmt(f),
            Self::Share(share) => share.fmt(f),
            Self::Vsock(vsock) => vsock.fmt(f),
        }
    }
}

impl Device {
    /// The key of its [`Kind`].
    pub fn key(&self) -> &'static str {
        match self {
            Self::Rng => "rng",
            Self::Balloon(_) => "balloon",
            Self::Disk(disk) => disk.flag(),
            Self::Net(_) => "net",
            Self::Share(_) => "share",
            Self::Vsock(_) => "vsock",
        }
    }

    /// Its files and folders of the host, which a restored machine needs again.
    pub fn files_mut(&mut self) -> Vec<&mut PathBuf> {
        match self {
            Self::Disk(disk) => {
                let images = match &mut disk.source {
                    disk::Source::Image(path) => std::slice::from_mut(path),
                    disk::Source::Joined(paths) => paths.as_mut_slice(),
                    disk::Source::Scratch(_) | disk::Source::Ext4(_) => &mut [],
                };
                images.iter_mut().chain(&mut disk.backing).collect()
            }
            Self::Share(share) => vec![&mut share.folder],
            Self::Rng | Self::Balloon(_) | Self::Net(_) | Self::Vsock(_) => Vec::new(),
        }
    }

    /// What a template depends on, if the machine has the device before its first command; a guest
    /// learns of all others with the command.
    pub fn before_command(&self) -> Option<Self> {
        match self {
            Self::Rng => Some(Self::Rng),
            // The kernel command line depends on whether there is one, but not on its target.
            Self::Balloon(_) => Some(Self::Balloon(Balloon::default())),
            Self::Disk(_) | Self::Net(_) | Self::Share(_) | Self::Vsock(_) => None,
        }
    }
}

/// The device that `text` describes behind the flag `key`.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn parse(key: &str, text: &str) -> Result<Device, String> {
    let kind = Kind::of(key).ok_or_else(|| format!("there is no device '{key}'"))?;
    (kind.parse)(text)
}

/// The devices of one kind among `devices`.
pub fn all<T: Part>(devices: &[Device]) -> impl Iterator<Item = &T> + Clone {
    devices.iter().filter_map(T::of)
}

/// Give `devices`, all that a machine has, what depends on the others: shares their tags.
///
/// # Errors
/// [`ConfigError::Machine`] for two shares with the same path.
pub fn complete(devices: &mut [Device]) -> Result<(), ConfigError> {
    let shares = devices.iter_mut().filter_map(|device| match device {
        Device::Share(share) => Some(share),
        _ => None,
    });
    share::config::name(shares.collect()).map_err(|reason| ConfigError::machine("share", reason))
}

/// Refuse `devices` that a machine with so much memory cannot have together.
///
/// # Errors
/// [`ConfigError::Machine`] with the device.
pub fn check(devices: &[Device], memory_bytes: u64) -> Result<(), ConfigError> {
    for kind in &KINDS {
        let same = devices.iter().filter(|device| device.key() == kind.key);
        if same.count() > 1 && !matches!(kind.form, Form::Many(_)) {
            let reason = "is given twice, and a machine has at most one";
            return Err(ConfigError::machine(kind.key, reason));
        }
    }
    disk::config::check(all(devices)).map_err(|(key, reason)| ConfigError::machine(key, reason))?;
    net::config::check(all(devices)).map_err(|reason| ConfigError::machine("net", reason))?;
    let targets = all(devices).map(|balloon: &Balloon| balloon.target_bytes);
    if let Some(target) = targets.max().filter(|target| *target >= memory_bytes) {
        let reason = format!(
            "{}: the guest has {} in all and needs some; ask for less, or give it more memory",
            size::show(target),
            size::show(memory_bytes)
        );
        return Err(ConfigError::machine("balloon", reason));
    }
    Ok(())
}
