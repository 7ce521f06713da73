//! Disks of the host, behind the virtio block device: a [`Disk`] is an image that is open and
//! locked, [`start`] starts the thread that serves a guest's requests on it.
//!
//! An image is `raw` or `qcow2`, recognized by its first bytes; both are an `Image`, as are several files
//! `joined` to one read-only disk. [`ext4`] makes the file systems of disks that hull makes. The front end is
//! `devices::virtio::block`; `vmm` connects the two.

pub mod config;
mod error;
pub mod ext4;
mod file;
mod identity;
mod image;
mod joined;
mod open;
mod qcow2;
mod raw;
#[cfg(test)]
mod tests;
mod worker;

pub use crate::devices::rate::{Limit, Limits};
pub use config::{Cache, Config, Format, Moved, Source};
pub use error::DiskError;
pub use identity::{Changed, FileIdentity, Identity, Origin};
pub use open::Disk;
pub use worker::{Guest, Reports, start};
