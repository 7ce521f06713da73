//! Figures, and what they are worth.
//!
//! [`timed`] runs a command and takes its times, [`tree`] the memory of all its processes, [`calls`] its
//! system calls; [`statistics`] makes summaries and ratios of many runs, [`warning`] says what speaks
//! against believing them, [`host`] on what machine they were taken. A [`figure`] has it all for several
//! subjects side by side.

pub mod calls;
pub mod figure;
pub mod host;
pub mod statistics;
pub mod stream;
pub mod timed;
pub mod tree;
pub mod warning;
