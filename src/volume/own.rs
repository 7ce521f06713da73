//! The disks of one machine: gone with it, or in its folder until it is removed.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::VolumeError;
use super::store::{check_room, made, size_of};
use crate::disk::Source;

/// Names the image with which the disks were made, in a machine's folder.
const IMAGE: &str = "image";

/// Where the disks of a machine are.
#[derive(Clone, Debug)]
pub struct Own {
    /// The machine's folder, if it is kept in the background.
    folder: Option<PathBuf>,
    image: String,
}

impl Own {
    /// Of a machine with this folder, if it has one, which starts from the image with this ID.
    pub fn new(folder: Option<PathBuf>, image: &str) -> Self {
        Self {
            folder,
            image: image.into(),
        }
    }

    /// The disk `name` of `bytes` bytes, as the machine left it when it ran before, or an empty ext4. `asked` is
    /// whether the user has named the size.
    ///
    /// # Errors
    /// The host has no room, or what is there is damaged or of another image.
    pub fn disk(&self, name: &str, bytes: u64, asked: bool) -> Result<Source, VolumeError> {
        let temporary = std::env::temp_dir();
        let folder = self.folder.as_ref().unwrap_or(&temporary);
        if asked {
            check_room(folder, bytes)?;
        }
        if self.folder.is_none() {
            return Ok(Source::Ext4(bytes));
        }
        self.check_image(folder)?;
        let path = folder.join(name);
        if !made(&path, bytes)? {
            size_of(&path)?;
        }
        Ok(Source::Image(path))
    }

    /// What a disk holds has no meaning over another image.
    fn check_image(&self, folder: &Path) -> Result<(), VolumeError> {
        let path = folder.join(IMAGE);
        match fs::read_to_string(&path) {
            Ok(was) if was != self.image => Err(VolumeError::OtherImage),
            Ok(_) => Ok(()),
            Err(_) => fs::write(&path, &self.image).map_err(VolumeError::file(path)),
        }
    }
}
