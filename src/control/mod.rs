//! Control of a running machine: one line of JSON to its socket (see [`crate::fleet`]), one line
//! back, and the connection ends.
//!
//! `action` is what can be asked and answered, `client` the side that asks, [`server`] the machine's
//! side. A request of another protocol version is refused with a message; a new
//! [`Action`] or [`Answer`] does not change the version.

#![forbid(unsafe_code)]

mod action;
mod client;
mod reply;
pub mod server;

pub use action::{
    Action, Answer, MAX_REQUEST_BYTES, Request, SaveReport, Status, Surroundings, VERSION,
};
pub use client::{ControlError, ask, ask_with, ask_within};
pub use reply::Reply;
