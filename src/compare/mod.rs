//! The difference between a process, a container and a virtual machine, measured.
//!
//! [`Turns`](run::Turns) has the subjects do the same work, one after the other; each of the [`rows`] makes
//! figures of that, beside what the standard answer claims and what this run's figures say to it.
//! [`measure`] has it all made into a [`Report`](report::Report), shown as a [`table`] on a terminal, as a
//! table in [`markdown`], and as a [`page`] for a browser.

mod chart;
pub mod markdown;
pub mod measure;
pub mod page;
pub mod report;
pub mod rows;
pub mod run;
pub mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod words;

pub use measure::{CompareError, measure};
