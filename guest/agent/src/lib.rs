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
//!                           <----   Root?, Mount*
//!                           <----   ExecPart*, Exec         (a Command, split over frames)
//!   [Started,] Stdout,      ---->  <----  Stdin, StdinClose, Resize, Signal,
//!   Stderr, StdinAck,                     OutputClose, OutputAck, Resumed, Interface
//!   Suspend
//!   [Error,] Exit           ---->
//!                           <----   Goodbye                 (then the guest powers off)
//! ```
//!
//! Each frame is about one process. Process 0 is the machine's main command, whose `Exit` is the machine's.
//! While it runs, the host may start others: it gives each a number that is free, and sends its `ExecPart*,
//! Exec` without a part of another command between them. The number is free again after the `Exit`; what
//! the host has sent to it before it read that has no effect.
//!
//! Flow control, for each process by itself, so that none waits for another: the host sends at most
//! [`STDIN_WINDOW`] bytes of standard input before a `StdinAck` acknowledges some, and the guest at most
//! [`output_window`] of output, measured by [`output_cost`], before an `OutputAck` does.
//!
//! After `Ready` the guest does nothing until the host sends a message; that is the moment for a template.
//! The guest answers a `Resumed` that arrives before the whole command with another `Ready`. It does not
//! answer one that arrives later.
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
mod root;

pub use buffer::Buffer;
pub use command::{
    ALL_CAPABILITIES, Command, CommandHeader, Limit, MAX_COMMAND, MAX_GROUPS, MAX_STRINGS,
    RESOURCES, WindowSize,
};
pub use error::Error;
pub use interface::Interface;
pub use message::{Exit, FromGuest, FromHost, Output, SAID};
pub use mount::{MAX_PATH, MAX_TAG, Mount, MountKind};
pub use resumed::Resumed;
pub use root::{MAX_HOSTNAME, MAX_HOSTS, MAX_RESOLVER, Root};

/// Version of the protocol, as sent in `Hello`.
pub const VERSION: u32 = 4;

/// Processes at once, the main command included. Their numbers are below it.
pub const MAX_PROCESSES: usize = 64;

/// Maximum number of bytes of standard input sent and not yet acknowledged: one frame, which fills one
/// input buffer of the virtio console in hull's kernel (64 KiB, guest/kernel/patches/0011). Each buffer costs
/// the guest an interrupt and a read.
pub const STDIN_WINDOW: usize = frame::MAX_PAYLOAD - frame::HEADER;

/// What a frame of output with `len` bytes counts against [`output_window`]: with what keeping it costs the
/// host beside its bytes.
pub const fn output_cost(len: usize) -> usize {
    len + 64
}

/// How much output of `process` the guest sends before the host acknowledges some. The main command's is
/// larger, for the sake of its speed: each acknowledgement costs the guest an interrupt.
pub const fn output_window(process: u8) -> usize {
    match process {
        0 => 1 << 20,
        _ => 256 << 10,
    }
}

/// The name of the virtio-console port (virtio 1.2, 5.3.6.2, `VIRTIO_CONSOLE_PORT_NAME`), and
/// the word on the kernel command line that makes the guest wait for it.
pub const PORT_NAME: &str = "hull.agent";
