//! Folders of the host behind the virtio file system device: a [`Share`] is open and checked,
//! [`start`] starts the thread that serves a guest's FUSE messages on it.
//!
//! The front end is `devices::virtio::fs`; `vmm` connects the two. Three layers confine a guest
//! to its folder, from the inside out:
//! 1. The guest names files by inode and single name; `confined` refuses `..`, device nodes and,
//!    for `ro`, all that changes something. The guest resolves symbolic links, hull never does.
//! 2. The crate fuse-backend-rs holds each inode by an O_PATH descriptor, so that a
//!    rename on the host does not lead elsewhere, and opens only regular files and directories.
//! 3. The thread is under Landlock and without capabilities beyond files (`sandbox`).

pub mod config;
mod confined;
mod error;
mod folder;
mod service;
#[cfg(test)]
mod tests;
mod worker;

pub use config::Config;
pub use error::ShareError;
pub use folder::Share;
pub use worker::{Served, start};
