//! A comparison from its warm-up to its report.

use thiserror::Error;

use super::report::saved::{FORMAT, Report, Row};
use super::rows;
use super::turns::Turns;
use crate::compare::figure::{Figure, Unit};
use crate::compare::measure::host::Host;
use crate::compare::measure::timed;
use crate::compare::warning::Warning;

/// So many figures are called noisy by name; of more, only how many there are and the worst.
const NAMED: usize = 5;

/// Why there is no report.
#[derive(Debug, Error)]
pub enum CompareError {
    /// There is nothing to be said of nobody.
    #[error("no subject takes part: {0}; see hull compare --help for --subjects and --timeout")]
    Nobody(String),
    /// By a signal.
    #[error("stopped before its end: nothing is reported")]
    Stopped,
}

/// Warm up, and measure `rows` in their order. `command` is what the user typed.
///
/// # Errors
/// Nobody can take part, or a signal came.
pub fn measure(
    turns: &mut Turns,
    rows: &[rows::Measure],
    command: Vec<String>,
) -> Result<Report, CompareError> {
    let host = Host::examine();
    // The warm-up counts as a row, of which there is one more then.
    turns.begin("warm-up", 0, rows.len() + 1);
    turns.warm_up();
    check(turns)?;
    let mut measured = Vec::new();
    for (number, (name, row)) in rows.iter().enumerate() {
        turns.begin(name, number + 1, rows.len() + 1);
        measured.push(row(turns));
        check(turns)?;
    }
    let of_run = Warning::of_run(&host, turns.runs);
    let mut warnings: Vec<String> = of_run.iter().map(ToString::to_string).collect();
    warnings.extend(of_figures(&measured));
    Ok(Report {
        format: FORMAT,
        command,
        host,
        runs: turns.runs,
        workloads: turns.workloads.clone(),
        subjects: turns.participants(),
        warnings,
        rows: measured,
    })
}

fn check(turns: &Turns) -> Result<(), CompareError> {
    if timed::is_stopped() {
        return Err(CompareError::Stopped);
    }
    match turns.entrants().is_empty() {
        true => Err(CompareError::Nobody(turns.left_out().join("; "))),
        false => Ok(()),
    }
}

/// What the samples of times say against themselves, the noisiest first; those that are too many to be
/// read, in one line.
fn of_figures(rows: &[Row]) -> Vec<String> {
    let is_time = |figure: &&Figure| {
        use Unit::{Microseconds, Milliseconds, Seconds};
        matches!(figure.unit, Milliseconds | Microseconds | Seconds)
    };
    let mut found: Vec<(f64, String)> = Vec::new();
    for row in rows {
        for figure in row.figures.iter().filter(is_time) {
            for cell in &figure.cells {
                let Some(summary) = &cell.summary else {
                    continue;
                };
                let name = format!("{}: {}, {}", row.name, figure.name, cell.subject);
                let warning = Warning::of_figure(&name, summary);
                found.extend(warning.map(|warning| (summary.spread(), warning.to_string())));
            }
        }
    }
    found.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    match found.len() > NAMED {
        true => vec![format!(
            "{} figures are noisy or have runs far from the others; the worst is {}",
            found.len(),
            found[0].1
        )],
        false => found.into_iter().map(|(_, warning)| warning).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::figure::Better;
    use crate::compare::report::saved::Verdict;

    fn row(unit: Unit, samples: &[&[f64]]) -> Row {
        let names: Vec<String> = (0..samples.len()).map(|at| format!("s{at}")).collect();
        let cells = names.iter().map(String::as_str);
        let cells = cells.zip(samples.iter().map(|samples| samples.to_vec()));
        Row {
            name: "row".into(),
            claim_machine: String::new(),
            claim_container: String::new(),
            method: String::new(),
            figures: vec![Figure::of_samples("figure", unit, Better::Less, cells)],
            verdict: Verdict {
                text: String::new(),
                contradicts: false,
            },
        }
    }

    const QUIET: &[f64] = &[1.0; 5];
    const NOISY: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0];
    const NOISIER: &[f64] = &[1.0, 2.0, 3.0, 9.0, 99.0];

    #[test]
    fn a_noisy_cell_is_told_with_its_subject() {
        let warnings = of_figures(&[row(Unit::Seconds, &[QUIET, NOISY])]);
        assert_eq!(
            warnings,
            ["row: figure, s1: noisy, half of the runs differ by 67 % of the median"]
        );
        assert!(of_figures(&[row(Unit::Bytes, &[NOISY])]).is_empty());
    }

    #[test]
    fn many_noisy_cells_are_one_line_with_the_worst() {
        let cells = [NOISY, NOISY, NOISIER, NOISY, NOISY, NOISY];
        let warnings = of_figures(&[row(Unit::Milliseconds, &cells)]);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("6 figures are"), "{warnings:?}");
        assert!(warnings[0].contains("the worst is row: figure, s2: noisy"));
    }
}
