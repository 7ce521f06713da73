//! Records of the running machines, and their control sockets.
//!
//! ```text
//!  RUNTIME/hull/NAME/      0700, NAME is --name or hull's process id
//!                    lock   locked (flock) by that hull as long as it lives
//!                    record of the machine, JSON
//!                    socket for control (see `control`)
//! ```
//! A machine runs if its lock is held, which is not confused by reused process ids. The folder of a
//! hull that was killed is removed by the next hull that lists the machines. [`Claim`] makes a folder
//! and removes it; [`find`] and [`list`] find machines.

mod error;
pub mod events;
mod folder;
pub mod health;
pub mod kept;
pub mod log;
mod name;
mod place;
mod record;
pub mod restart;
pub mod state;
#[cfg(test)]
mod tests;
pub mod unit;

pub use error::FleetError;
pub use folder::{Claim, Found, Runtime, unbound};
pub use name::{MAX_NAME, check_name};
pub use record::Record;

/// Remove the folders of killed machines.
pub fn sweep() {
    drop(list());
}

/// All running machines, sorted by name; folders of killed machines are removed.
pub fn list() -> Vec<Found> {
    let Ok(runtime) = Runtime::open() else {
        return Vec::new(); // no machine has been run
    };
    runtime.list()
}

/// The running machine of this name or process id.
///
/// # Errors
/// [`FleetError::Unknown`], with the machines that run.
pub fn find(wanted: &str) -> Result<Found, FleetError> {
    let mut there = list();
    let of_name = |found: &Found| found.record.name == wanted;
    let of_pid = |found: &Found| found.record.pid.to_string() == wanted;
    let at = there.iter().position(of_name);
    match at.or_else(|| there.iter().position(of_pid)) {
        Some(at) => Ok(there.swap_remove(at)),
        None => Err(missing(wanted, there)),
    }
}

/// Why there is no machine `wanted` among those that run.
fn missing(wanted: &str, there: Vec<Found>) -> FleetError {
    let kept = kept::Kept::open(wanted).ok();
    if let Some(kept) = kept.as_ref().filter(|kept| kept.runs()) {
        return FleetError::NotYet {
            name: wanted.into(),
            phase: kept.state().phase,
        };
    }
    match kept.and_then(|kept| kept.end()) {
        Some(end) => FleetError::Ended {
            name: wanted.into(),
            status: end.status,
        },
        None => FleetError::Unknown {
            wanted: wanted.into(),
            there: there.into_iter().map(|found| found.record).collect(),
        },
    }
}
