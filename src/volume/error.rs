//! Why there is no volume, or it cannot be used.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::config::size;
use crate::disk::ext4::Ext4Error;

/// A volume, or a disk of a machine's own, cannot be had or is not removed.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// No place for the folder.
    #[error("no folder for volumes; set XDG_DATA_HOME or HOME to a folder of yours")]
    NoPlace,
    /// A name that no volume can have.
    #[error(
        "{name:?} is no name of a volume: it has 2 to 255 letters, digits, '_', '.' and '-', the first a letter or \
         digit; a folder of the host begins with / or ."
    )]
    Name {
        /// The name that was asked for.
        name: String,
    },
    /// There is none of that name.
    #[error(
        "there is no volume {name}; hull volume ls lists them, and hull volume create makes one"
    )]
    Unknown {
        /// The name that was asked for.
        name: String,
    },
    /// It is there, with another size.
    #[error(
        "volume {name} is there and has {}; leave out the size, or choose another name", size::show(*bytes)
    )]
    Size {
        /// The volume's name.
        name: String,
        /// Its size in bytes.
        bytes: u64,
    },
    /// A machine uses it.
    #[error(
        "volume {name} is in use{}; hull stop ends {}{remedy}",
        by(machines),
        whom(machines)
    )]
    Used {
        /// The volume's name.
        name: String,
        /// The machines, as far as they are known.
        machines: Vec<String>,
        /// What else helps; continues the sentence.
        remedy: &'static str,
    },
    /// It is of a machine that has ended and may be started again.
    #[error(
        "volume {name} belongs to {}, which may be started again; hull rm removes a machine",
        whom(machines)
    )]
    Kept {
        /// The volume's name.
        name: String,
        /// The machines.
        machines: Vec<String>,
    },
    /// The file holds no file system.
    #[error("{}: {error}; e2fsck -f may repair it, or remove it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: Ext4Error,
    },
    /// More than there will ever be room for.
    #[error(
        "{} is more than the file system of {} has, {}", size::show(*bytes), folder.display(), size::show(*total)
    )]
    TooLarge {
        /// Bytes that were asked for.
        bytes: u64,
        /// Where the file is to lie.
        folder: PathBuf,
        /// Bytes of the file system of the host.
        total: u64,
    },
    /// The disk of an ended machine was written over another image.
    #[error(
        "the machine's disk was written over another image than the name stands for now; hull rm removes the \
         machine, hull cp saves files of one that runs"
    )]
    OtherImage,
    /// A file or folder cannot be made, read or removed.
    #[error("{}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The error of the host.
        source: io::Error,
    },
}

fn by(machines: &[String]) -> String {
    match machines {
        [] => " by a machine that runs".into(),
        _ => format!(" by {}", machines.join(", ")),
    }
}

fn whom(machines: &[String]) -> String {
    match machines {
        [] => "it".into(),
        _ => machines.join(", "),
    }
}

impl VolumeError {
    /// For `map_err`: `path` cannot be made, read or removed.
    pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
