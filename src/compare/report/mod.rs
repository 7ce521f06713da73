//! What a reader gets: the reports of both verbs, as JSON and in other formats.
//!
//! [`comparison`] is the report of `hull compare`, which [`table`] shows on a terminal, [`markdown`] as one
//! table and [`page`] in a browser, with the bars of [`chart`]. [`bench`] is the report of `hull bench`, and
//! [`change`] is the difference between two of them; [`text`] shows both. [`words`] and [`quantity`] turn
//! data into words and numbers.

pub mod bench;
pub mod change;
mod chart;
pub mod comparison;
mod grid;
pub mod markdown;
pub mod page;
pub mod participant;
pub mod quantity;
pub mod read;
pub mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod text;
mod words;
