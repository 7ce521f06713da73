//! The harness for measuring that `hull compare` and `hull bench` share.
//!
//! How a figure comes about:
//!
//! ```text
//!  subject      what runs a command: a process, a container, a virtual machine
//!     |         stage: one root file system and one kernel for all of them
//!     v
//!  turns        warm-up, then rounds in alternating order; limits, progress, participants left out
//!     |         measure: one sample (times, processor time, memory, system calls)
//!     v
//!  figure       samples -> statistics (median, quartiles, ratio with its range) -> warning
//!     |
//!     v
//!  rows         `hull compare`: the figures of one question, a claim, a verdict
//!  bench        `hull bench`: the figures of one topic
//!     |
//!     v
//!  report       JSON, text, Markdown, a page; the change between two reports
//! ```

pub(crate) mod bench;
pub(crate) mod comparison;
pub(crate) mod figure;
// Public for the tests and benchmarks of this package only.
#[allow(missing_docs)]
pub mod measure;
pub(crate) mod report;
pub(crate) mod rows;
#[allow(missing_docs)]
pub mod statistics;
#[allow(missing_docs)]
pub mod subject;
pub(crate) mod turns;
pub(crate) mod warning;
