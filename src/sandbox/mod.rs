//! Where hull's threads begin, and what they give up before they work for a guest.
//!
//! [`spawn`] starts every thread; its [`Role`] names it and sets its stack. [`confine`] and
//! [`give_up_rights`] restrict the calling thread, for good: a fault in it then reaches no further
//! than the files it needs. [`set_signals`] undoes what the process inherits. [`outlive`] starts the process
//! that closes what takes long.

mod allowed;
mod confine;
mod descriptors;
mod inherited;
mod lockdown;
mod outlive;
mod threads;

pub use allowed::allowed_calls;
pub use confine::{Confinement, SandboxError, confine, give_up_rights, landlock_version};
pub use descriptors::close_inherited;
pub use inherited::{set_signals, stdout_closed};
pub use lockdown::lock_down;
pub use outlive::outlive;
pub use threads::{Role, spawn, spawn_scoped};
