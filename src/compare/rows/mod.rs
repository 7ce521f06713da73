//! The rows of the standard answer's table, a file each: what is measured for it, and what that says to the
//! claim.

use super::report::Row;
use super::run::Turns;

/// A row: its name, and what measures it.
pub type Measure = (&'static str, fn(&mut Turns) -> Row);

/// In the order of the table.
pub const ROWS: [Measure; 0] = [];
