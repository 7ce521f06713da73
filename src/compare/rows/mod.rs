//! The rows of the standard answer's table, a file each: what is measured for it, and what that says to the
//! claim.

mod density;
mod footprint;
mod isolation;
mod layer;
mod portability;
mod resources;
pub mod sides;
mod startup;
mod system;

use super::report::saved::Row;
use super::turns::Turns;

/// A row: its name, and what measures it.
pub type Measure = (&'static str, fn(&mut Turns) -> Row);

/// In the order of the table.
pub const ROWS: &[Measure] = &[
    (layer::NAME, layer::measure),
    (system::NAME, system::measure),
    (startup::NAME, startup::measure),
    (resources::NAME, resources::measure),
    (isolation::NAME, isolation::measure),
    (portability::NAME, portability::measure),
    (footprint::NAME, footprint::measure),
    (density::NAME, density::measure),
];

/// Those whose names begin with one of `words`, or all of none; the first word that fits no row, or no
/// single one.
///
/// # Errors
/// That word.
pub fn chosen(words: &[String]) -> Result<Vec<Measure>, String> {
    let fits = |word: &String| {
        let fitting = ROWS.iter().filter(|(name, _)| name.starts_with(word));
        fitting.count()
    };
    if let Some(word) = words.iter().find(|word| fits(word) != 1) {
        return Err(word.clone());
    }
    let wanted =
        |name: &str| words.is_empty() || words.iter().any(|word| name.starts_with(word.as_str()));
    let rows = ROWS.iter().copied();
    Ok(rows.filter(|(name, _)| wanted(name)).collect())
}
