//! From what the user named to an image that is open and locked.

use std::fs::{File, FileType};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::identity::Opened;
use super::qcow2::{self, Qcow2};
use super::raw::{self, Raw};
use super::{Config, DiskError, Format, Image, SECTOR, Source};

/// An image, its size in bytes, and its format if it is one of the user's.
pub type Open = (Box<dyn Image>, u64, Option<Format>);

/// The image of `config`; it and what it is based on are added to `files`.
pub fn open(config: &Config, files: &mut Vec<Opened>) -> Result<Open, DiskError> {
    let path = match &config.source {
        Source::Scratch(bytes) => return Ok((Box::new(Raw::new(scratch(*bytes)?)), *bytes, None)),
        Source::Image(path) => path,
    };
    let read_only = config.read_only || config.overlay;
    let (file, format) = open_image(path, read_only, config.format)?;
    files.push(Opened::new(path, &file)?);
    if format == Format::Raw
        && let Some(backing) = config.backing.first()
    {
        return Err(DiskError::NoBacking {
            path: path.clone(),
            backing: backing.clone(),
        });
    }
    if config.overlay {
        let base = qcow2::access((file, format), path, false, &config.backing, files)?;
        let image = Qcow2::over(base, scratch(0)?).map_err(no_temporary)?;
        return sized(Box::new(image), path, format);
    }
    match format {
        Format::Raw => sized(Box::new(Raw::new(file)), path, format),
        Format::Qcow2 => {
            let image = qcow2::access((file, format), path, !read_only, &config.backing, files)?;
            sized(Box::new(Qcow2::new(image)), path, format)
        }
    }
}

/// An image whose size a disk can have.
fn sized(image: Box<dyn Image>, path: &Path, format: Format) -> Result<Open, DiskError> {
    let path = || path.to_path_buf();
    let bytes = image.size().map_err(|reason| DiskError::Open {
        path: path(),
        reason,
        hint: "",
    })?;
    match bytes {
        0 => Err(DiskError::Empty { path: path() }),
        bytes if !bytes.is_multiple_of(SECTOR) => Err(DiskError::Size {
            path: path(),
            bytes,
        }),
        bytes => Ok((image, bytes, Some(format))),
    }
}

/// The file of an image, locked, and its format.
pub fn open_image(
    image: &Path,
    read_only: bool,
    format: Option<Format>,
) -> Result<(File, Format), DiskError> {
    let path = || image.to_path_buf();
    let fault = |reason: io::Error| {
        let hint = match reason.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !read_only => {
                "; with ,ro or ,overlay it need only be readable"
            }
            io::ErrorKind::NotFound => {
                "; name an image that is there, or make one with `truncate -s 1G FILE`"
            }
            // A socket cannot be opened at all, a directory not for writing.
            _ if image.metadata().is_ok_and(|it| !is_disk(it.file_type())) => {
                return DiskError::NotADisk { path: path() };
            }
            _ => "",
        };
        let path = path();
        DiskError::Open { path, reason, hint }
    };
    // Nonblocking: a FIFO that nobody writes would hold up the open itself.
    let mut options = File::options();
    options.read(true).write(!read_only);
    options.custom_flags(OFlags::NONBLOCK.bits() as i32);
    let file = options.open(image).map_err(fault)?;
    let metadata = file.metadata().map_err(fault)?;
    if !is_disk(metadata.file_type()) {
        return Err(DiskError::NotADisk { path: path() });
    }
    lock(&file, image, read_only)?;
    let format = match (format, raw::magic(&file)) {
        (Some(format), _) => format,
        (None, None) => Format::Raw,
        (None, Some(raw::QCOW2)) => Format::Qcow2,
        (None, Some(format)) => {
            return Err(DiskError::Foreign {
                path: path(),
                format,
            });
        }
    };
    Ok((file, format))
}

/// A file without a name in the folder for temporary files.
fn scratch(bytes: u64) -> Result<File, DiskError> {
    let made = tempfile::tempfile().and_then(|file| {
        file.set_len(bytes)?;
        Ok(file)
    });
    made.map_err(no_temporary)
}

fn no_temporary(reason: io::Error) -> DiskError {
    DiskError::Temporary {
        folder: std::env::temp_dir(),
        reason,
    }
}

fn is_disk(kind: FileType) -> bool {
    kind.is_file() || kind.is_block_device()
}

/// A lock of the file (flock(2)), which goes with the descriptor, however hull ends.
fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), DiskError> {
    let (operation, how) = match read_only {
        true => (FlockOperation::NonBlockingLockShared, " and writes to it"),
        false => (FlockOperation::NonBlockingLockExclusive, ""),
    };
    flock(file, operation).map_err(|errno| match errno {
        Errno::WOULDBLOCK => DiskError::InUse {
            path: path.into(),
            how,
        },
        errno => DiskError::Open {
            path: path.into(),
            reason: errno.into(),
            hint: "; it cannot be locked",
        },
    })
}
