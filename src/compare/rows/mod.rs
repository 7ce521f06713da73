//! The rows of the standard answer's table, a file each: what is measured for it, and what that says to the
//! claim.

use super::report::{Row, Workload};
use super::run::Turns;

mod footprint;
mod isolation;
mod layer;
mod portability;
mod side;
mod system;

/// A row: its name, and what measures it.
pub type Measure = (&'static str, fn(&mut Turns, &[Workload]) -> Row);

/// In the order of the table.
pub const ROWS: [Measure; 5] = [
    ("abstraction layer", layer::measure),
    ("operating system", system::measure),
    ("isolation", isolation::measure),
    ("portability", portability::measure),
    ("footprint", footprint::measure),
];
