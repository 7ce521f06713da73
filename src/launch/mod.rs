//! From a [`Machine`](crate::config::Machine) to a running one. All policy of a start is here: a front
//! end makes a `Machine`, calls a function of this module, and prints the result.
//!
//! ```text
//!  Machine ──prepare──> vmm::Config ──run──┬─ cold, or watched ───────────────> vmm::run
//!             images: kernel, initrd,      ├─ a machine of a pool has the key ─> pooled
//!             init, command                ├─ a template has the key ──────────> vmm::run from it
//!                                          └─ none has ────────────────────────> vmm::run, making one
//!  snapshot ──restore──> vmm::Config ──vmm::run;  copies: a process for each
//!  Machine ──member──> waits for a command;  pool: keeps processes that do
//! ```

#![forbid(unsafe_code)]

pub mod archive;
pub mod capabilities;
pub mod check;
pub mod copies;
pub mod copy;
pub mod detach_keys;
mod error;
pub mod exec;
pub mod guest_report;
pub mod image;
mod images;
pub mod member;
pub mod pool;
mod pooled;
pub mod publish;
mod restore;
mod run;
mod warm;

pub use error::LaunchError;
pub use images::{Terminal, prepare};
pub use restore::{Changes, restore};
pub use run::{Launch, OWN_ERROR, Outcome, run, status};
