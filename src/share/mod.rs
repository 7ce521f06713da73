//! Folders of the host behind the virtio file system device: a [`Share`] is open and checked,
//! [`Server::start`] starts the process that serves a guest's FUSE messages on it.
//!
//! The front end is `devices::virtio::fs`; `vmm` connects the two. Three layers confine a guest
//! to its folder, from the inside out:
//! 1. The guest names files by number and single name; `files` refuses `..`, device nodes and,
//!    for `ro`, all that changes something. The guest resolves symbolic links, hull never does.
//! 2. A file is reached from its folder's descriptor by a single name, and recognized by its
//!    identity, so that a rename on the host does not lead elsewhere (`tree`). Only regular files
//!    and folders are opened.
//! 3. The process is under Landlock and seccomp, without capabilities beyond files (`sandbox`), and sees
//!    neither the guest's memory nor hull's (`server`).

mod attributes;
pub mod config;
mod data;
mod error;
mod files;
mod folder;
mod listing;
mod locks;
mod names;
mod nodes;
mod owners;
mod server;
mod service;
#[cfg(test)]
mod tests;
mod tree;
mod wire;
mod worker;

pub use config::Config;
pub use error::ShareError;
pub use folder::Share;
pub use server::Server;
pub use worker::Served;
#[cfg(fuzzing)]
pub use {files::Files, service::Service};
