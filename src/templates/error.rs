//! Why there is no cache, or no template is removed from it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::key::Key;

/// There is no cache, or an action on it failed.
#[derive(Debug, Error)]
pub enum CacheError {
    /// The environment turns it off.
    #[error("there is no cache: {variable}={value} turns it off; unset it")]
    Off {
        /// The environment variable that turns it off.
        variable: &'static str,
        /// The value of the variable.
        value: String,
    },
    /// No variable of the environment gives a place.
    #[error(
        "there is no place for a cache: none of HULL_CACHE, XDG_CACHE_HOME and HOME is an absolute \
         path; set HULL_CACHE to a folder of yours"
    )]
    NoHome,
    /// The limit is no size.
    #[error(
        "{variable}={value}: not a size; write bytes, or a number with K, M, G or T; 0 is no cache"
    )]
    Size {
        /// The environment variable.
        variable: &'static str,
        /// The value of the variable.
        value: String,
    },
    /// The folder cannot be used.
    #[error("nothing can be kept in {}: {error}; set HULL_CACHE to a folder of yours", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why the system refused it.
        error: io::Error,
    },
    /// Another hull is making it.
    #[error("template {key} is being made by another hull; try again later")]
    Busy {
        /// The key of the template.
        key: Key,
    },
    /// A template cannot be removed.
    #[error("cannot remove {}: {error}", path.display())]
    Remove {
        /// The template's folder.
        path: PathBuf,
        /// Why the system refused it.
        error: io::Error,
    },
}
