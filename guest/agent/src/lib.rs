//! The byte stream between hull and the init of its guest.
//!
//! A channel (a virtio-console port, a UART, a socket in tests) carries [`frame`]s in both
//! directions; each is one message: [`FromGuest`] or [`FromHost`].
//!
//! ```text
//! guest                                     host
//!   Hello                   ---->
//!   Ready                   ---->
//!  [                        <----   Resumed                 (a machine made from a snapshot)
//!   Ready                   ----> ]
//!                           <----   Interface*
//!                           <----   Mount*
//!                           <----   ExecPart*, Exec         (a Command, split over frames)
//!   Stdout, Stderr, StdinAck ---->  <----  Stdin, StdinClose, Resize, Signal,
//!                                          Resumed, Interface
//!   [Error,] Exit           ---->
//!                           <----   Goodbye                 (then the guest powers off)
//! ```
//!
//! The host has at most [`STDIN_WINDOW`] bytes of standard input on their way: each `StdinAck`
//! opens the window again, so input never stands in the way of a signal. A guest that has said
//! `Ready` does nothing until it is told: that is when a snapshot of it is of use to others. It
//! answers a `Resumed` that comes before its whole command by another `Ready`; one that comes
//! later, after a snapshot of a machine at work, has no answer. No allocation, no
//! dependency: both ends use this crate. Neither end trusts the other; what cannot be is an
//! [`Error`].
#![no_std]

#[cfg(test)]
extern crate std;

mod buffer;
mod command;
mod error;
pub mod frame;
mod interface;
mod message;
mod mount;
mod resumed;

pub use buffer::Buffer;
pub use command::{Command, CommandHeader, MAX_COMMAND, MAX_STRINGS, WindowSize};
pub use error::Error;
pub use interface::Interface;
pub use message::{Exit, FromGuest, FromHost};
pub use mount::{MAX_PATH, MAX_TAG, Mount};
pub use resumed::Resumed;

/// The version of the protocol that `Hello` names.
pub const VERSION: u32 = 2;

/// Most bytes of standard input that were sent and not yet acknowledged.
pub const STDIN_WINDOW: usize = 64 * 1024;

/// The name of the virtio-console port (virtio 1.2, 5.3.6.2, `VIRTIO_CONSOLE_PORT_NAME`), and
/// the word on the kernel command line that makes the guest wait for it.
pub const PORT_NAME: &str = "hull.agent";
