//! The difference between a process, a container and a virtual machine, measured.
//!
//! [`measure`](run::measure) has the subjects do the same work in turns and fills the rows of a
//! [`Report`](report::Report), each beside what the standard answer claims of it; [`verdict`] says in words
//! what this run's figures say to the claim. [`table`] and [`page`] show a report; neither computes
//! anything.

pub mod report;
