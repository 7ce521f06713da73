//! Why there is no image.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::digest::Digest;
use crate::config::size;
use crate::templates::CacheError;

/// An image cannot be had, read or removed.
#[derive(Debug, Error)]
pub enum ImageError {
    /// What was typed names no image.
    #[error("{reason}")]
    Reference {
        /// What is wrong with it, and what it must be instead.
        reason: String,
    },
    /// There is no place for images.
    #[error(transparent)]
    Place(#[from] CacheError),
    /// A file of the store or of a source cannot be used.
    #[error("{}: {error}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why the system refused it.
        error: io::Error,
    },
    /// The disk is full.
    #[error(
        "the disk with {} is full; hull rmi removes images, and HULL_CACHE names another folder for them",
        path.display()
    )]
    DiskFull {
        /// The folder of the store.
        path: PathBuf,
    },
    /// Content that is not what its name says.
    #[error(
        "{what} is damaged or was replaced: its digest is {found} and not {wanted}; get it again"
    )]
    Digest {
        /// What was read.
        what: String,
        /// The digest by which it was named.
        wanted: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// A document of an image that cannot be read.
    #[error("{what} cannot be read: {reason}")]
    Document {
        /// The document.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file system that cannot be made of the layers.
    #[error("layer {layer}: {reason}")]
    Layer {
        /// The layer's number, from 1.
        layer: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// More than hull takes.
    #[error(
        "{what} has more than {}, which is the most that images may take; HULL_IMAGES_SIZE sets another \
         limit", size::show(*limit)
    )]
    TooLarge {
        /// What is too large.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The image is for other computers.
    #[error("the image is for {found}, and hull runs linux/amd64; choose another tag")]
    Platform {
        /// The platforms that it is for.
        found: String,
    },
    /// There is no such image in a source.
    #[error("{}: {reason}", path.display())]
    Source {
        /// The folder or archive.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The store has no such image.
    #[error("there is no image {name}; hull images lists them, hull pull gets one")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// Several images have IDs that begin so.
    #[error("{count} images have IDs that begin with {name}; write more of its digits")]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// How many there are.
        count: usize,
    },
    /// Another process changes the store for longer than hull waits.
    #[error("another hull is using the images in {}; try again when it is done", path.display())]
    Busy {
        /// The folder of the store.
        path: PathBuf,
    },
    /// A registry that does not give it.
    #[error("the registry {registry}: {reason}")]
    Registry {
        /// Its host, with a port if one is given.
        registry: String,
        /// What it says, or why it cannot be asked.
        reason: String,
    },
    /// A program that has the image.
    #[error("{program} cannot give the image {name}: {reason}")]
    Engine {
        /// The program.
        program: &'static str,
        /// The image.
        name: String,
        /// What it says, or why it cannot be started.
        reason: String,
    },
}

impl ImageError {
    /// Refuse content of `what` whose digest is not the one that was `wanted`.
    ///
    /// # Errors
    /// [`ImageError::Digest`].
    pub(super) fn unless_same(
        what: &str,
        wanted: &Digest,
        found: &Digest,
    ) -> Result<(), ImageError> {
        if wanted == found {
            return Ok(());
        }
        Err(Self::Digest {
            what: what.into(),
            wanted: wanted.clone(),
            found: found.clone(),
        })
    }

    /// For `map_err`: `path` cannot be used.
    pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::File { path, error },
        }
    }
}
