//! The harness for measuring that `hull compare` and `hull bench` use.
//!
//! How a figure comes about:
//!
//! ```text
//! subject   what can run a command: process, container, virtual machine
//!    |
//! turns     warm-up, then N rounds; the order alternates; limits, progress
//!    |  measure: one sample (time, processor, memory, system calls)
//!    v
//! figure    samples -> statistics (median, quartiles, ratio with its range) -> warning
//!    |
//! rows      `hull compare`: figures of one question, claim and verdict
//! bench     `hull bench`: figures of one topic
//!    |
//! report    JSON, table, Markdown, page; the change between two reports
//! ```

pub mod bench;
mod comparison;
pub mod figure;
pub mod measure;
pub mod report;
pub mod rows;
pub mod statistics;
pub mod subject;
pub mod turns;
pub mod warning;

pub use comparison::{CompareError, measure};
