//! Applications of several machines, described by a file as docker compose has it.
//!
//! ```text
//!  compose.yaml ──yaml──> values with lines ──project──> services, networks, volumes ──plan──> steps
//! ```
//! [`Opened::read`] reads the file and refuses what hull does not do, by its line. A service is the flags of a
//! `hull run` ([`service`]); labels in the records of machines say to which project and service they belong, so
//! that [`plan`] sees what there is to do. The command line takes the steps.

#![forbid(unsafe_code)]

mod egress;
mod error;
mod file;
mod health;
mod mounts;
pub mod plan;
mod ports;
mod project;
mod reader;
pub mod service;
mod variables;
mod yaml;

pub use error::{ComposeError, FileError};
pub use file::{Opened, Wanted};
pub use project::{Network, Project, Volume};
