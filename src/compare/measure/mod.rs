//! One measurement: [`timed`] runs a command and takes its times, [`tree`] the memory of all its processes,
//! [`calls`] its system calls; [`stream`] talks to it with a deadline, [`host`] describes the machine.

pub mod calls;
pub mod host;
pub mod stream;
pub mod timed;
pub mod tree;
