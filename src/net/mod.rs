//! Networks of the host, behind the virtio network device: [`open`] returns a [`Network`] for each
//! configuration, which is either a tap device or a process of passt.
//!
//! The front end is `devices::virtio::net`; `vmm` connects the two.

#![deny(unsafe_code)] // except in `ioctl`

mod address;
pub mod config;
mod echo;
mod error;
mod ioctl;
mod network;
mod passt;
mod stream;
mod tap;

pub use crate::devices::virtio::net::Mac;
pub use config::{Config, Kind, Protocol, Publish, Subnet};
pub use error::NetError;
pub use network::{Assigned, GUEST_ADDRESS, Network, open};
#[cfg(fuzzing)]
pub use stream::Stream;
