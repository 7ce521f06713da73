//! The host's side of the protocol by which hull runs a command in the guest.
//!
//! [`Session`] is a pure model: bytes from the guest go in by [`Session::receive`] and come out
//! as [`Event`]s; bytes for the guest are in [`Session::outgoing`]. The owner of the channel (a
//! virtio-console port, a UART) moves the bytes. The messages are those of [`hull_agent`]; the
//! guest's side is `guest/init`.
//!
//! The commands that run beside the machine's main one are [`Processes`] of the session: each has a client
//! elsewhere, which has a [`Session::beside`], and their frames are only passed on. Who looks at a main command
//! in the background has a [`Session::attached`], and that machine's keeper an [`Attached`].

mod attached;
mod error;
mod exec;
mod processes;
mod session;

pub use attached::{Attached, Request};
pub use error::AgentError;
pub use exec::{Exec, Mount, Privileges, Root};
pub use hull_agent::{
    ALL_CAPABILITIES, Exit, Interface, Limit, MAX_COMMAND, MAX_HOSTNAME, MountKind, Output,
    PORT_NAME, Resumed, STDIN_WINDOW, VERSION, WindowSize,
};
pub use processes::{ClientFault, Processes};
pub use session::saved::SavedSession;
pub use session::{Event, MAX_BUFFERED, Session};
