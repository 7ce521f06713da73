//! What came of a comparison: plain data, as `--json` has it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::compare::figure::Figure;
use crate::compare::measure::host::Host;
use crate::compare::subject::{Kind, Part};

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

/// Why a text is no report.
#[derive(Debug, Error)]
pub enum ReportError {
    /// It is no JSON at all.
    #[error("it is no JSON, or was cut off: {0}")]
    NotJson(serde_json::Error),
    /// It is another JSON.
    #[error("it is no report of `hull compare --json`: it has no format and no rows")]
    NotReport,
    /// It is newer than this hull.
    #[error("its format is {format}, and this hull ({hull}) reads up to {FORMAT}: use the hull that wrote it or a newer one", hull = env!("CARGO_PKG_VERSION"))]
    TooNew {
        /// Its format.
        format: u64,
    },
    /// A part is missing, or is not what it should be.
    #[error("it is damaged: {0}")]
    Damaged(serde_json::Error),
    /// A figure is of nobody.
    #[error("it is damaged: {figure:?} is of {subject:?}, who is none of its subjects")]
    Stranger {
        /// The figure.
        figure: String,
        /// Whose cell it has.
        subject: String,
    },
}

impl Report {
    /// From the JSON that `hull compare --json` writes.
    ///
    /// # Errors
    /// It is something else, too new, or damaged.
    pub fn read(json: &[u8]) -> Result<Self, ReportError> {
        use serde_json::Value;
        let value: Value = serde_json::from_slice(json).map_err(ReportError::NotJson)?;
        let format = value.get("format").and_then(Value::as_u64);
        match (format, value.get("rows")) {
            (Some(format), _) if format > FORMAT.into() => {
                return Err(ReportError::TooNew { format });
            }
            (Some(_), Some(_)) => {}
            _ => return Err(ReportError::NotReport),
        }
        let report: Self = serde_json::from_value(value).map_err(ReportError::Damaged)?;
        report.check()?;
        Ok(report)
    }

    /// That nothing is in it which no presentation would show.
    fn check(&self) -> Result<(), ReportError> {
        let known = |name: &str| self.subjects.iter().any(|one| one.name == name);
        for figure in self.rows.iter().flat_map(|row| &row.figures) {
            if let Some(stranger) = figure.cells.iter().find(|cell| !known(&cell.subject)) {
                return Err(ReportError::Stranger {
                    figure: figure.name.clone(),
                    subject: stranger.subject.clone(),
                });
            }
        }
        Ok(())
    }

    /// Those that have a column.
    pub fn columns(&self) -> impl Iterator<Item = &Participant> {
        self.subjects.iter().filter(|one| one.left_out.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    /// What [`Report::read`] says of the golden after `change`.
    fn trouble(change: fn(&mut serde_json::Value)) -> String {
        let mut value = serde_json::to_value(testing::report()).expect("written");
        change(&mut value);
        let json = serde_json::to_vec(&value).expect("written");
        Report::read(&json).expect_err("no report").to_string()
    }

    #[test]
    fn what_is_no_report_is_told() {
        let of = |text: &str| {
            Report::read(text.as_bytes())
                .expect_err("no report")
                .to_string()
        };
        assert!(of("<html>").starts_with("it is no JSON, or was cut off: expected value"));
        let json = serde_json::to_string(&testing::report()).expect("written");
        assert!(of(&json[..json.len() / 2]).contains("cut off: EOF while parsing"));
        for other in [
            "1",
            "[]",
            "{}",
            r#"{"format": "x", "rows": []}"#,
            r#"{"format": 1}"#,
        ] {
            assert!(of(other).starts_with("it is no report of"), "{other}");
        }
    }

    #[test]
    fn a_newer_format_is_not_guessed_at() {
        let told = trouble(|report| report["format"] = (FORMAT + 1).into());
        assert!(
            told.starts_with("its format is 2, and this hull ("),
            "{told}"
        );
    }

    #[test]
    fn damage_is_told_with_its_place() {
        let told = trouble(|report| report["host"]["cpus"] = "many".into());
        assert!(
            told.contains("damaged: invalid type: string \"many\""),
            "{told}"
        );
        let told =
            trouble(|report| report["rows"][2]["figures"][0]["cells"][1]["subject"] = "x".into());
        let expected = "it is damaged: \"echo, exec to first output byte\" is of \"x\", who is none of its subjects";
        assert_eq!(told, expected);
    }
}
