//! Snapshots of a machine: what one holds ([`shape`]), writing one ([`save`]), reading one
//! ([`saved`]), and a new machine that continues from one ([`restore`]).

pub mod restore;
pub mod save;
pub mod saved;
pub mod shape;

pub use saved::{Saved, SavedError};
pub use shape::Shape;
