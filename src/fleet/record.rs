//! What is recorded of a running machine.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The record in a machine's folder, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Process id of its hull.
    pub pid: u32,
    /// The name that the user chose, or the process id.
    pub name: String,
    /// Start time, in seconds of Unix time.
    pub started: u64,
    /// Number of its vCPUs.
    pub cpus: u8,
    /// Size of guest memory.
    pub memory_bytes: u64,
    /// Version of the machine's hull.
    pub version: String,
    /// Key of the template from which the machine was restored to wait for a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_with: Option<String>,
    /// Seconds that `hull stop` gives it to end, if it was started with a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_seconds: Option<u32>,
    /// Folders of its control group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<PathBuf>,
}

impl Record {
    /// Seconds since the start.
    pub fn age(&self) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(0, |now| now.as_secs().saturating_sub(self.started))
    }
}
