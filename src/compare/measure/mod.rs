//! One measurement of one command.
//!
//! [`timed`] runs a command and takes its times, `tree` reads the memory of all its processes, `calls`
//! counts its system calls, `stream` is a connection to it with a timeout, `stop` ends all of them on a
//! signal, and `host` describes the machine.

pub(crate) mod calls;
pub mod error;
pub(crate) mod host;
pub(crate) mod schedule;
pub(crate) mod stop;
pub(crate) mod stream;
pub mod timed;
pub(crate) mod tree;
