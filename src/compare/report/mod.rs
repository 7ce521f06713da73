//! What a reader gets of a measurement.
//!
//! [`saved`] is the report of `hull compare` as JSON has it. It is shown as a [`table`] on a terminal, as a
//! table in [`markdown`], and as a [`page`] with charts for a browser. [`change`] says what two reports of
//! `hull bench` differ in.

pub mod change;
mod chart;
pub mod markdown;
pub mod page;
pub mod saved;
pub mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod words;
