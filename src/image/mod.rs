//! Images of containers: from a name to the files of a disk.
//!
//! ```text
//!  registry ─┐                       ┌─ configs ──> what runs
//!  layout   ─┼─ documents, layers ──> store: layers (tar) ─> tree ─> erofs: the index
//!  archive  ─┘                       └─ index, then the layers: the bytes of one read-only disk
//! ```
//! [`get`] finds an image in the [`Store`] or adds it. Every document and every layer is checked against the
//! digest that names it. Paths in layers are resolved in a `tree` of their own and never on the host.
//! `launch` makes a machine of an image.

#![forbid(unsafe_code)]

mod add;
mod digest;
mod dns;
mod document;
mod engine;
mod erofs;
mod error;
mod get;
mod http;
mod local;
mod members;
mod reference;
mod registry;
mod store;
mod tar;
#[cfg(test)]
mod tests;
mod tree;

pub use add::Step;
pub use digest::Digest;
pub use document::{Configuration, Execution, Healthcheck};
pub use error::ImageError;
pub use get::{How, Pull, full_name, get};
#[cfg(fuzzing)]
pub use local::from_stream;
pub use reference::Reference;
pub use store::{Image, Store};
