//! What is known of a template.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::key::Key;

/// The facts that are stored with a template, for listings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The kernel's file, or a word for the one inside hull.
    pub kernel: String,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// The version of hull that made it.
    pub version: String,
    /// When it was made, in seconds of Unix time.
    pub created: u64,
}

/// A template in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The key that names it.
    pub key: Key,
    /// The stored facts, if they can be read.
    pub about: Option<About>,
    /// Bytes that it takes on the disk.
    pub bytes: u64,
    /// When it was made or last restored.
    pub last_used: SystemTime,
}
