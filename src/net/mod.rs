//! Networks of the host, behind the virtio network device: [`open`] returns a [`Network`] for each
//! configuration, which is a tap device, a process of passt or a network that machines share. The latter are kept
//! by [`networks`], and [`switch`] is the process that passes their frames on.
//!
//! The front end is `devices::virtio::net`; `vmm` connects the two.

#![deny(unsafe_code)] // except in `ioctl`

mod address;
pub mod config;
mod echo;
mod error;
mod frame;
mod host;
mod ioctl;
mod names;
mod network;
pub mod networks;
mod passt;
pub mod policy;
mod shared;
mod stream;
pub mod switch;
mod tap;

pub use crate::devices::virtio::net::Mac;
pub use config::{Config, Kind, Protocol, Publish, Subnet};
pub use error::NetError;
pub use network::{Assigned, GUEST_ADDRESS, Network, open};
pub use shared::start_switches;
#[cfg(fuzzing)]
pub use stream::Stream;
