//! The byte stream between hull and the init of its guest.
//!
//! A channel (a virtio-console port, a UART, a socket in tests) carries [`frame`]s in both
//! directions. Each frame is one message: [`FromGuest`] or [`FromHost`].
//!
//! ```text
//! guest                                     host
//!   Hello                   ---->
//!   Ready                   ---->
//!  [                        <----   Resumed                 (only in a restored machine)
//!   Ready                   ----> ]
//!                           <----   Interface*
//!                           <----   Mount*
//!                           <----   ExecPart*, Exec         (a Command, split over frames)
//!   Stdout, Stderr, StdinAck, ---->  <----  Stdin, StdinClose, Resize, Signal,
//!   Suspend                                 OutputClose, Resumed, Interface
//!   [Error,] Exit           ---->
//!                           <----   Goodbye                 (then the guest powers off)
//! ```
//!
//! The host sends at most [`STDIN_WINDOW`] bytes of standard input before a `StdinAck` acknowledges
//! some, so that input never delays a signal. After `Ready` the guest does nothing until the host sends
//! a message; that is the moment for a template. The guest answers a `Resumed` that arrives before the
//! whole command with another `Ready`. It does not answer one that arrives later.
//!
//! No allocation, no dependency: both ends use this crate. Neither end trusts the other; invalid bytes
//! are an [`Error`].
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
pub use message::{Exit, FromGuest, FromHost, Output};
pub use mount::{MAX_PATH, MAX_TAG, Mount};
pub use resumed::Resumed;

/// Version of the protocol, as sent in `Hello`.
pub const VERSION: u32 = 3;

/// Maximum number of bytes of standard input sent and not yet acknowledged: one frame, which fills one
/// input buffer of the virtio console in hull's kernel (64 KiB, guest/kernel/patches/0011). Each buffer costs
/// the guest an interrupt and a read.
pub const STDIN_WINDOW: usize = frame::MAX_PAYLOAD - frame::HEADER;

/// The name of the virtio-console port (virtio 1.2, 5.3.6.2, `VIRTIO_CONSOLE_PORT_NAME`), and
/// the word on the kernel command line that makes the guest wait for it.
pub const PORT_NAME: &str = "hull.agent";
