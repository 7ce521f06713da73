//! A comparison, from its warm-up to its report.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::figure::{Figure, Unit};
use super::measure::host::Host;
use super::measure::stop::is_stopped;
use super::report::comparison::{FORMAT, Report, Row, Workload};
use super::report::participant::Participant;
use super::rows::session::{Session, Subjects};
use super::rows::{self, Question, ROWS};
use super::subject::{self, ChoiceError, Stage, StageError, Subject};
use super::turns::{OnProgress, Turns};
use super::warning;

/// More noisy figures than this are reported by their number and the worst one.
const MAX_NAMED: usize = 5;

pub struct Request {
    /// Beginnings of rows' names; all rows if empty.
    pub rows: Vec<String>,
    /// `NAME` or `NAME=PATH`; all subjects if empty.
    pub subjects: Vec<String>,
    pub runs: usize,
    pub timeout: Duration,
    pub bzimage: Option<PathBuf>,
    pub second_kernel: Option<PathBuf>,
    /// The command whose start is measured; the default workloads if empty.
    pub command: Vec<String>,
}

#[derive(Debug, Error)]
pub enum CompareError {
    #[error(
        "{0:?}: not the beginning of exactly one row's name; the rows are {names}",
        names = ROWS.each_ref().map(|row| row.name).join(", ")
    )]
    Row(String),
    #[error(transparent)]
    Subject(#[from] ChoiceError),
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    Bzimage(PathBuf, io::Error),
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    SecondKernel(PathBuf, io::Error),
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error("no subject takes part: {0}; see hull compare --help for --subjects and --timeout")]
    NoSubjects(String),
    #[error("stopped before its end: nothing is reported")]
    Stopped,
}

/// Warms up and measures. `command` is the command line for the report.
pub fn measure(
    request: Request,
    command: Vec<String>,
    on_progress: OnProgress,
) -> Result<Report, CompareError> {
    let rows = rows::chosen(&request.rows).map_err(CompareError::Row)?;
    let choices = subject::choices(&request.subjects)?;
    if let Some(path) = &request.bzimage {
        File::open(path).map_err(|error| CompareError::Bzimage(path.clone(), error))?;
    }
    if let Some(path) = &request.second_kernel {
        File::open(path).map_err(|error| CompareError::SecondKernel(path.clone(), error))?;
    }
    let stage = Stage::new(request.bzimage)?;
    let mut session = Session::new(&stage, request.timeout);
    session.second_kernel = request.second_kernel.or(session.second_kernel);
    if !request.command.is_empty() {
        session.workloads = vec![Workload {
            name: "the command".into(),
            words: stage.command(&request.command)?,
        }];
    }
    let subjects = subject::chosen(&choices, &stage)?;
    let mut turns = Turns::new(subjects, request.runs, on_progress);
    let host = Host::examine();
    let rows = answers(&mut turns, &mut session, &rows)?;
    let mut warnings: Vec<String> = warning::of_runs(turns.runs).into_iter().collect();
    warnings.extend(warning::of_host(&host));
    warnings.extend(of_figures(&rows));
    let subjects = turns.all();
    let subjects = subjects.map(|(_, subject, left_out)| participant(&**subject, left_out));
    Ok(Report {
        format: FORMAT,
        command,
        host,
        runs: turns.runs,
        workloads: session.workloads.clone(),
        subjects: subjects.collect(),
        warnings,
        rows,
    })
}

fn answers(
    turns: &mut Subjects,
    session: &mut Session,
    rows: &[&Question],
) -> Result<Vec<Row>, CompareError> {
    let parts = rows.len() + 1;
    turns.begin("warm-up", 0, parts);
    turns.warm_up(|subject| session.warm_up(&mut **subject));
    check(turns)?;
    let mut answers = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        turns.begin(row.name, number + 1, parts);
        answers.push(row.answer(turns, session));
        check(turns)?;
    }
    Ok(answers)
}

fn check(turns: &Subjects) -> Result<(), CompareError> {
    if is_stopped() {
        return Err(CompareError::Stopped);
    }
    if !turns.indices().is_empty() {
        return Ok(());
    }
    let reasons = turns.all();
    let reasons = reasons.filter_map(|(name, _, reason)| Some(format!("{name}: {}", reason?)));
    let reasons: Vec<String> = reasons.collect();
    Err(CompareError::NoSubjects(reasons.join("; ")))
}

fn participant(subject: &dyn Subject, left_out: Option<&str>) -> Participant {
    let about = subject.about();
    let mut participant = Participant {
        name: about.name.clone(),
        kind: Some(about.kind),
        parts: Some(Vec::new()),
        left_out: left_out.map(Into::into),
        ..Participant::default()
    };
    if left_out.is_none() {
        participant.version = subject.version();
        participant.parts = Some(subject.parts());
        participant.caveats = subject.caveats();
    }
    participant
}

/// The warnings about figures of times, the noisiest first; one line if there are too many.
fn of_figures(rows: &[Row]) -> Vec<String> {
    use Unit::{Microseconds, Milliseconds, Seconds};
    let is_time = |figure: &&Figure| matches!(figure.unit, Milliseconds | Microseconds | Seconds);
    let mut found: Vec<(f64, String)> = Vec::new();
    for row in rows {
        for figure in row.figures.iter().filter(is_time) {
            found.extend(figure.cells.iter().filter_map(|cell| {
                let name = format!("{}: {}, {}", row.name, figure.name, cell.subject);
                let summary = cell.summary?;
                Some((summary.spread(), warning::of_figure(&name, &summary)?))
            }));
        }
    }
    found.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    if found.len() > MAX_NAMED {
        return vec![format!(
            "{} figures are noisy or have runs far from the others; the worst is {}",
            found.len(),
            found[0].1
        )];
    }
    found.into_iter().map(|(_, warning)| warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::figure::Better;
    use crate::compare::report::comparison::Verdict;

    fn warnings(unit: Unit, samples: &[&[f64]]) -> Vec<String> {
        let names: Vec<String> = (0..samples.len()).map(|at| format!("s{at}")).collect();
        let samples: Vec<_> = names
            .iter()
            .map(String::as_str)
            .zip(samples.iter().copied())
            .collect();
        of_figures(&[Row {
            name: "row".into(),
            claim_machine: String::new(),
            claim_container: String::new(),
            method: String::new(),
            figures: vec![Figure::of_samples(unit, Better::Less, &samples)],
            verdict: Verdict {
                text: String::new(),
                contradicts: false,
            },
        }])
    }

    const QUIET: &[f64] = &[1.0; 5];
    const NOISY: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0];
    const NOISIER: &[f64] = &[1.0, 2.0, 3.0, 9.0, 99.0];

    #[test]
    fn a_noisy_cell_is_named_with_its_subject() {
        let warning = "row: it, s1: noisy, the middle half of the runs spans 67 % of the median";
        assert_eq!(warnings(Unit::Seconds, &[QUIET, NOISY]), [warning]);
        assert!(warnings(Unit::Bytes, &[NOISY]).is_empty());
    }

    #[test]
    fn many_noisy_cells_are_one_line_with_the_worst() {
        let cells = [NOISY, NOISY, NOISIER, NOISY, NOISY, NOISY];
        let warnings = warnings(Unit::Milliseconds, &cells);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("6 figures are"), "{warnings:?}");
        assert!(warnings[0].contains("the worst is row: it, s2: noisy"));
    }
}
