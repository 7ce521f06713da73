//! The rows of the standard answer's table, a file each: what is measured for it, and what that says to the
//! claim.

use super::report::{Row, Workload};
use super::run::Turns;

mod isolation;
mod layer;
mod side;
mod system;

/// A row: its name, and what measures it.
pub type Measure = (&'static str, fn(&mut Turns, &[Workload]) -> Row);

/// In the order of the table.
pub const ROWS: [Measure; 3] = [
    ("abstraction layer", layer::measure),
    ("operating system", system::measure),
    ("isolation", isolation::measure),
];
