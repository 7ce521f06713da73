//! Volumes: file systems of ext4 that outlive the machines which mount them, and the disks of one machine
//! that stay until it is removed ([`Own`]).
//!
//! ```text
//!  DATA/hull/volumes/        0700; DATA is $XDG_DATA_HOME, or ~/.local/share
//!                    NAME    an ext4, sparse; locked (flock) by each machine that has it, as all disks are
//!                    .new-*  one that is being made
//! ```
//! Owners and modes of files are the guest's own, whoever runs hull. `launch` has them mounted.

#![forbid(unsafe_code)]

mod error;
mod own;
mod store;

pub use error::VolumeError;
pub use own::Own;
pub use store::{DEFAULT_SIZE, Store, Volume, check_name, parse_size};
