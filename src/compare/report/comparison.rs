//! The report of `hull compare`: plain data, as `--json` writes it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::participant::Participant;
use super::read::{ReportError, read};
use crate::compare::figure::Figure;
use crate::compare::measure::host::Host;
use crate::compare::subject::Kind;

/// The version of the JSON. It rises when a reader of the old format would misunderstand the new one.
pub const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub format: u32,
    pub command: Vec<String>,
    pub host: Host,
    /// Runs of each subject for each figure of times.
    pub runs: usize,
    pub workloads: Vec<Workload>,
    /// In the order of the columns, including those left out.
    pub subjects: Vec<Participant>,
    pub warnings: Vec<String>,
    pub rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    pub name: String,
    pub words: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    /// What the standard answer says about virtual machines.
    pub claim_machine: String,
    pub claim_container: String,
    /// What starts and stops a clock, and what is counted.
    pub method: String,
    /// A table with one line for each row shows the first figure.
    pub figures: Vec<Figure>,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub text: String,
    pub contradicts: bool,
}

/// A choice of what a report does not have. Each message begins with the word of the user.
#[derive(Debug, Error)]
pub enum ChosenError {
    #[error("{0}: the report has no such row; it has {names}", names = .1.join(", "))]
    Row(String, Vec<String>),
    #[error("{0}: the report has no such subject; it has {names}", names = .1.join(", "))]
    Subject(String, Vec<String>),
}

impl Report {
    pub fn read(json: &[u8]) -> Result<Self, ReportError> {
        let report: Self = read(json, "hull compare --json", "rows", FORMAT)?;
        for one in &report.subjects {
            let incomplete = |what| Err(ReportError::Incomplete(one.name.clone(), what));
            match (&one.kind, &one.parts) {
                (None, _) => return incomplete("kind"),
                (_, None) => return incomplete("parts"),
                _ => {}
            }
        }
        // No format would show such a cell.
        let known = |name: &str| report.subjects.iter().any(|one| one.name == name);
        for figure in report.rows.iter().flat_map(|row| &row.figures) {
            if let Some(cell) = figure.cells.iter().find(|cell| !known(&cell.subject)) {
                let (figure, subject) = (figure.name.clone(), cell.subject.clone());
                return Err(ReportError::UnknownSubject(figure, subject));
            }
        }
        Ok(report)
    }

    /// Keep only the rows whose names begin with one of `rows`, and only those `subjects`; all where there
    /// is none to choose.
    pub fn choose(&mut self, rows: &[String], subjects: &[String]) -> Result<(), ChosenError> {
        let begins = |row: &Row, word: &String| row.name.starts_with(word.as_str());
        let missing = rows
            .iter()
            .find(|word| !self.rows.iter().any(|row| begins(row, word)));
        if let Some(word) = missing {
            let names = self.rows.iter().map(|row| row.name.clone()).collect();
            return Err(ChosenError::Row(word.clone(), names));
        }
        let is = |name: &str, word: &String| name == word;
        let missing = subjects
            .iter()
            .find(|word| !self.subjects.iter().any(|one| is(&one.name, word)));
        if let Some(word) = missing {
            let names = self.subjects.iter().map(|one| one.name.clone()).collect();
            return Err(ChosenError::Subject(word.clone(), names));
        }
        self.rows
            .retain(|row| rows.is_empty() || rows.iter().any(|word| begins(row, word)));
        let chosen = |name: &str| subjects.is_empty() || subjects.iter().any(|word| is(name, word));
        self.subjects.retain(|one| chosen(&one.name));
        for figure in self.rows.iter_mut().flat_map(|row| &mut row.figures) {
            figure.cells.retain(|cell| chosen(&cell.subject));
        }
        Ok(())
    }

    pub fn columns(&self) -> impl Iterator<Item = &Participant> {
        self.subjects.iter().filter(|one| one.takes_part())
    }

    pub fn side(&self, kind: Kind) -> impl Iterator<Item = &Participant> {
        self.columns().filter(move |one| one.kind == Some(kind))
    }
}
