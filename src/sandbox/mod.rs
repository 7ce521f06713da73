//! Where hull's threads begin, and what they give up before they work for a guest.
//!
//! [`spawn`] starts every thread; its [`Role`] names it and sets its stack, and the system calls that it may
//! make (`filters` lists them, [`restrict_calls`] installs the list, `violation` is what follows another
//! call). [`confine`] and [`give_up_rights`] restrict the calling thread, for good: a fault in it then
//! reaches no further than the files it needs. [`set_signals`] undoes what the process inherits.
//! [`outlive`] starts the process that closes what takes long. [`fork_supervised`] leaves a process outside of
//! a jail, [`enter_jail`] enters it.

mod allowed;
#[cfg(test)]
mod compile;
mod compiled;
mod confine;
mod connector;
mod descriptors;
#[cfg(test)]
mod drill;
#[cfg(test)]
#[allow(dead_code)] // what the build script compiles
mod filters;
mod inherited;
mod jail;
mod keep;
mod lockdown;
mod outlive;
mod peer;
mod process;
mod role;
mod seccomp;
mod supervise;
mod threads;
mod violation;

pub use allowed::allowed_calls;
pub use confine::{
    Confinement, Reach, SandboxError, allow_all_folders, allow_folders, confine, give_up_rights,
    landlock_version,
};
pub use connector::{AtEnd, Connector};
pub use descriptors::close_inherited;
pub use inherited::{set_signals, stdout_closed};
pub use jail::{JailError, enter_jail, is_jailed};
pub use keep::{fork_beside, fork_keeper, fork_kept};
pub use lockdown::lock_down;
pub use outlive::outlive;
pub use peer::peer_user;
pub use process::{Process, statuses_beside};
pub use role::Role;
pub use seccomp::{Seccomp, is_restricted, restrict, restrict_calls, set_seccomp};
pub use supervise::{Ended, Supervised, end_by_signal, fork_supervised, is_supervised};
pub use threads::{is_kernels, spawn, spawn_scoped};
pub use violation::restore_on_violation;
