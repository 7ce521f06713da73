//! What two reports of one topic say has changed.
//!
//! Of each figure of each subject in both: the ratio of the new samples' median to the old ones', with its
//! range. A change is real if that range excludes 1, all samples together being enough to tell, and both
//! reports being of one machine. Two runs are never in turns, however: what drifted meanwhile is in the
//! ratio, too, and `--vs hull=OLD` is free of that.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::compare::bench::report::Report;
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::measure::host::Host;
use crate::compare::statistics::Ratio;
use crate::compare::warning::FEW;

/// What came of a comparison: `--json` has it, with both reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    /// As of [`crate::compare::bench::report::FORMAT`].
    pub format: u32,
    /// What speaks against believing it.
    pub warnings: Vec<String>,
    /// Of all figures that are in both.
    pub changes: Vec<Change>,
    /// The old report.
    pub old: Report,
    /// The new one.
    pub new: Report,
}

/// Of one figure of one subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The figure.
    pub figure: String,
    /// Of its medians.
    pub unit: Unit,
    /// Whose.
    pub subject: String,
    /// The old median.
    pub old: f64,
    /// The new one.
    pub new: f64,
    /// The new one by the old one.
    pub ratio: Option<Ratio>,
    /// What that says.
    pub verdict: Verdict,
}

/// What a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// For real, and to the good.
    Improved,
    /// For real, and to the bad.
    Worse,
    /// Within what chance does.
    NotReal,
    /// Too few runs or another machine: nobody can tell.
    Unknown,
}

/// Why two reports cannot be compared.
#[derive(Debug, Error)]
#[error(
    "the old report is of `{old}` and the new one of `{new}`: only two of one topic can be compared"
)]
pub struct OtherTopic {
    old: &'static str,
    new: &'static str,
}

impl Changes {
    /// From `old` to `new`.
    ///
    /// # Errors
    /// They are of different topics.
    pub fn between(old: Report, new: Report) -> Result<Self, OtherTopic> {
        if old.topic != new.topic {
            return Err(OtherTopic {
                old: old.topic.name(),
                new: new.topic.name(),
            });
        }
        let differences = differences(&old.host, &new.host);
        let mut changes = Vec::new();
        for figure in &new.figures {
            let Some(before) = old.figures.iter().find(|one| one.name == figure.name) else {
                continue;
            };
            let cells = figure.cells.iter();
            changes.extend(cells.filter_map(|cell| {
                let old = before.cell(&cell.subject)?;
                change(figure, old, cell, differences.is_empty())
            }));
        }
        Ok(Self {
            format: crate::compare::bench::report::FORMAT,
            warnings: warnings(&old, &new, &differences),
            changes,
            old,
            new,
        })
    }

    /// Whether anything became worse for real.
    pub fn is_worse(&self) -> bool {
        let mut changes = self.changes.iter();
        changes.any(|change| change.verdict == Verdict::Worse)
    }
}

fn change(figure: &Figure, old: &Cell, new: &Cell, same_host: bool) -> Option<Change> {
    let ratio = Ratio::of(&new.samples, &old.samples);
    let enough = old.samples.len().min(new.samples.len()) >= FEW;
    let verdict = match (ratio, figure.better) {
        _ if !enough || !same_host => Verdict::Unknown,
        (Some(ratio), _) if !ratio.is_real() => Verdict::NotReal,
        (Some(ratio), Better::Less) if ratio.ratio < 1.0 => Verdict::Improved,
        (Some(ratio), Better::More) if ratio.ratio > 1.0 => Verdict::Improved,
        (Some(_), Better::Less | Better::More) => Verdict::Worse,
        _ => Verdict::Unknown,
    };
    Some(Change {
        figure: figure.name.clone(),
        unit: figure.unit,
        subject: new.subject.clone(),
        old: old.summary?.median,
        new: new.summary?.median,
        ratio,
        verdict,
    })
}

/// In what two machines differ, as far as it matters to a figure: "kernel (6.1, then 6.12)".
fn differences(old: &Host, new: &Host) -> Vec<String> {
    let of = |host: &Host| {
        let none = || "none".to_string();
        [
            ("processor", host.processor.clone()),
            ("processors", host.cpus.to_string()),
            ("kernel", host.kernel.clone()),
            ("KVM", host.kvm.clone().unwrap_or_else(none)),
            ("hypervisor", host.hypervisor.clone().unwrap_or_else(none)),
        ]
    };
    let mut found: Vec<String> = of(old)
        .into_iter()
        .zip(of(new))
        .filter(|(old, new)| old != new)
        .map(|((what, old), (_, new))| format!("{what} ({old}, then {new})"))
        .collect();
    // The same memory is a little more or less to each kernel and hypervisor.
    let mib = |host: &Host| host.memory >> 20;
    if mib(old).abs_diff(mib(new)) > mib(old) / 20 {
        found.push(format!("memory ({} MiB, then {} MiB)", mib(old), mib(new)));
    }
    found
}

fn warnings(old: &Report, new: &Report, differences: &[String]) -> Vec<String> {
    let mut warnings = Vec::new();
    match differences.is_empty() {
        true => warnings.push(
            "the two did not take turns: what drifted on the machine meanwhile counts as a change; with \
             the old program at hand, --vs hull=PATH measures both in turns"
                .into(),
        ),
        false => warnings.push(format!(
            "the two are of different machines, so no change is called real: they differ in {}",
            differences.join(", ")
        )),
    }
    if old.settings.runs.min(new.settings.runs) < FEW {
        warnings.push(format!(
            "no change is called real with fewer than {FEW} runs: there were {}, then {}",
            old.settings.runs, new.settings.runs
        ));
    }
    for (when, report) in [("old", old), ("new", new)] {
        let of_report = report.warnings.iter();
        warnings.extend(of_report.map(|warning| format!("{when}: {warning}")));
    }
    warnings
}

#[cfg(test)]
mod tests;
