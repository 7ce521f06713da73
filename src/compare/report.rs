//! What came of a comparison: plain data, as `--json` has it.

use serde::{Deserialize, Serialize};

use crate::measure::figure::Figure;
use crate::measure::host::Host;
use crate::subjects::{Kind, Part};

/// Of the JSON. Raised when a reader of the old one would misunderstand the new one.
pub const FORMAT: u32 = 1;

/// A whole comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// The command that printed it.
    pub command: Vec<String>,
    /// Where, when, and by which hull.
    pub host: Host,
    /// Runs of each subject for each figure that has times.
    pub runs: usize,
    /// What was run: the workloads by name.
    pub workloads: Vec<Workload>,
    /// Who took part, in the order of the columns, and who did not.
    pub subjects: Vec<Participant>,
    /// What speaks against believing it; shown in every output.
    pub warnings: Vec<String>,
    /// In the order of the standard answer's.
    pub rows: Vec<Row>,
}

/// A command that all subjects ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// "echo".
    pub name: String,
    /// Its words.
    pub words: Vec<String>,
}

/// A subject, in or out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Participant {
    /// As in `--subjects`.
    pub name: String,
    /// Its side.
    pub kind: Kind,
    /// What it says its version is.
    pub version: Option<String>,
    /// Files that it needs.
    pub parts: Vec<Part>,
    /// What a reader has to know of how it was run.
    pub caveats: Vec<String>,
    /// Why it has no column.
    pub left_out: Option<String>,
}

/// A row of the standard answer's table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// "startup time".
    pub name: String,
    /// What the standard answer says of virtual machines.
    pub claim_machine: String,
    /// What it says of containers.
    pub claim_container: String,
    /// How it was measured: what starts and stops a clock, what is counted.
    pub method: String,
    /// What was measured. The first is the one that a table of one line a row shows.
    pub figures: Vec<Figure>,
    /// What this run's figures say to the claims.
    pub verdict: Verdict,
}

/// What a row says, derived from its figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// In a sentence or two.
    pub text: String,
    /// Whether it contradicts the standard answer.
    pub contradicts: bool,
}

impl Report {
    /// Those that have a column.
    pub fn columns(&self) -> impl Iterator<Item = &Participant> {
        self.subjects.iter().filter(|one| one.left_out.is_none())
    }
}
