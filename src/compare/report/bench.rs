//! The report of `hull bench`: plain data, as `--json` writes it and `--compare` reads it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::participant::Participant;
use super::read::{ReportError, read};
use crate::compare::figure::Figure;
use crate::compare::measure::host::Host;

/// The version of the JSON. It rises when a reader of the old format would misunderstand the new one.
pub const FORMAT: u32 = 1;

pub const RIVALS: [&str; 7] = [
    "firecracker",
    "cloud-hypervisor",
    "qemu-microvm",
    "kvmtool",
    "crun",
    "runc",
    "hull",
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub format: u32,
    pub topic: String,
    pub command: Vec<String>,
    pub host: Host,
    pub settings: Settings,
    /// What starts and stops a clock, and what is counted.
    pub method: String,
    /// In the order of the cells, including those left out.
    pub subjects: Vec<Participant>,
    pub warnings: Vec<String>,
    pub figures: Vec<Figure>,
}

/// The settings by which `--compare` measures again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub runs: usize,
    /// Time limit of one process, in seconds.
    pub timeout: u64,
    pub rivals: Vec<Rival>,
    pub bzimage: Option<PathBuf>,
    /// Whether the machine must be a steady lab.
    #[serde(default)]
    pub steady: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rival {
    pub name: String,
    pub program: PathBuf,
}

impl Report {
    pub fn read(json: &[u8]) -> Result<Self, ReportError> {
        read(json, "hull bench --json", "figures", FORMAT)
    }
}
