//! Files behind disks: images, locked against others, and temporary files.

use std::fs::{File, FileType};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::config::Format;
use super::error::DiskError;
use super::raw;

/// Open and lock the file of an image; returns its format, too.
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
    // Nonblocking: opening a FIFO would wait for a writer.
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
pub fn scratch(bytes: u64) -> Result<File, DiskError> {
    let made = tempfile::tempfile().and_then(|file| {
        file.set_len(bytes)?;
        Ok(file)
    });
    made.map_err(no_temporary)
}

pub fn no_temporary(reason: io::Error) -> DiskError {
    DiskError::Temporary {
        folder: std::env::temp_dir(),
        reason,
    }
}

fn is_disk(kind: FileType) -> bool {
    kind.is_file() || kind.is_block_device()
}

/// Lock the file (flock(2)) until its descriptor is closed, however hull ends.
fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), DiskError> {
    let (operation, how) = if read_only {
        (FlockOperation::NonBlockingLockShared, " and writes to it")
    } else {
        (FlockOperation::NonBlockingLockExclusive, "")
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
