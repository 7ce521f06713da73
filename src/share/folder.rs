//! A folder of the host that is to be shared.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::config::Config;
use super::error::ShareError;

/// A folder, open and checked.
pub struct Share {
    pub(super) folder: File,
    pub(super) config: Config,
}

impl Share {
    /// Open the folder; it may be renamed afterwards.
    ///
    /// # Errors
    /// It does not exist, is not a folder, is `/`, or may not be read.
    pub fn open(config: &Config) -> Result<Self, ShareError> {
        let path = config.folder.clone();
        // Nonblocking: opening a FIFO would wait for a writer.
        let flags = OFlags::NONBLOCK | OFlags::DIRECTORY;
        let opened = File::options()
            .read(true)
            .custom_flags(flags.bits() as i32)
            .open(&path);
        let folder = match opened {
            Ok(folder) => folder,
            Err(reason) if reason.kind() == io::ErrorKind::NotADirectory && path.exists() => {
                return Err(ShareError::NotAFolder { path });
            }
            Err(reason) => return Err(ShareError::Open { path, reason }),
        };
        match is_root(&folder) {
            Ok(false) => {}
            Ok(true) => return Err(ShareError::Root { path }),
            Err(reason) => return Err(ShareError::Open { path, reason }),
        }
        Ok(Self {
            folder,
            config: config.clone(),
        })
    }

    /// The tag by which the guest mounts it.
    pub fn tag(&self) -> &str {
        &self.config.tag
    }
}

/// Whether it is the root directory, by any name.
fn is_root(folder: &File) -> io::Result<bool> {
    let (root, this) = (Path::new("/").metadata()?, folder.metadata()?);
    Ok((root.dev(), root.ino()) == (this.dev(), this.ino()))
}
