//! What the keeper of a machine in the background knows of it now.

use std::fs;

use serde::{Deserialize, Serialize};

use super::health::Health;

/// Names a start of the host (proc_sys_kernel(5), random).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptEnd {
    /// Its status.
    pub status: u8,
    /// When it did, in seconds of Unix time.
    pub finished: u64,
}

/// Where a machine is. If its keeper does not live, it has ended whatever this says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its command does not run yet.
    #[default]
    Starting,
    /// Its command runs, or it is paused.
    Running,
    /// It has ended, and waits for its next start.
    Restarting,
    /// It has ended.
    Exited,
}

/// The state of a machine, which its keeper writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptState {
    /// Where it is.
    pub phase: Phase,
    /// The host's boot ID when the keeper began.
    pub boot: String,
    /// Process id of the keeper.
    pub keeper: u32,
    /// When its command began to run last, in seconds of Unix time.
    pub started: Option<u64>,
    /// How it ended last.
    pub last: Option<KeptEnd>,
    /// How often its keeper has started it again since the user did.
    pub restarts: u32,
    /// Its health, if that is checked and its command has begun to run.
    pub health: Option<Health>,
}

/// The ID of this start of the host; empty where the kernel tells none.
pub fn boot_id() -> String {
    let text = fs::read_to_string(BOOT_ID).unwrap_or_default();
    text.trim().into()
}
