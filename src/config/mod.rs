//! The description of a machine as plain values, and the ways to write it.
//!
//! ```text
//!  file (JSON, TOML) --> Draft --- flags (cli) --> Draft --> Machine --> launch
//!                                                               |
//!                                                               '--> file, as --print-config prints it
//! ```
//! The configuration of each device is defined beside what it configures: [`crate::disk::config`],
//! [`crate::net::config`], [`crate::share::config`]; it is parsed from the text of its flag, and a
//! table of a file becomes that text first ([`table`]). [`device`] lists the kinds of devices.

#![forbid(unsafe_code)]

pub mod balloon;
mod cpus;
pub mod device;
mod draft;
pub mod duration;
mod error;
pub mod fault;
pub mod file;
mod jail;
mod limits;
mod lockdown;
pub mod machine;
mod position;
pub mod size;
pub mod stop;
pub mod table;
#[cfg(test)]
mod tests;
mod text;
pub mod vsock;

pub use balloon::Balloon;
pub use cpus::Cpus;
pub use device::Device;
pub use draft::Draft;
pub use error::ConfigError;
pub use fault::Fault;
pub use jail::Jail;
pub use limits::Limits;
pub use lockdown::Lockdown;
pub use machine::{Command, Console, Kernel, Machine, Root};
pub use stop::Stop;
pub use vsock::Vsock;
