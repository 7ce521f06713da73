//! Machines that wait for a command, restored and before their first instruction.
//!
//! ```text
//!  hull run                     the socket of a machine                  a process of hull pool
//!    finds it by the template
//!    in its record (see fleet)  -- Action::Take, the command,        -->  waits
//!                                  and its three streams (SCM_RIGHTS)
//!                              <-- Reply::Taken                      ---  makes the streams its own
//!    forwards signals,          -- to the process, as kill(1) does   -->  runs the command
//!    the terminal's size too
//!    exits with that status    <-- Reply::Ended                      ---  ends
//! ```
//! If `hull run` leaves earlier, the machine is killed. Before `Taken`, `hull run` can still run the
//! command itself; after `Reply::Unfit` too, since the guest was not told of the command.

#![forbid(unsafe_code)]

mod client;
mod member;
mod protocol;
#[cfg(test)]
mod tests;

pub use client::{Outcome, Taken, ready, take};
pub use member::{Job, wait};
pub use protocol::Command;
