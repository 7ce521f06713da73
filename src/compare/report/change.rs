//! The changes between two reports of `hull bench` about one topic.
//!
//! A change is the ratio of the new median to the old one, for each figure and subject in both reports. It is
//! real if the range of the ratio excludes 1, both reports have enough runs, and both are from one machine.
//! The two did not take turns, so a drift of the machine counts as a change; `--vs hull=OLD` avoids this.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::bench::{FORMAT, Report};
use super::quantity::value;
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::measure::host::Host;
use crate::compare::statistics::Ratio;
use crate::compare::warning::MIN_RUNS;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    pub format: u32,
    pub warnings: Vec<String>,
    pub changes: Vec<Change>,
    pub old: Report,
    pub new: Report,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub figure: String,
    pub unit: Unit,
    pub subject: String,
    pub old: f64,
    pub new: f64,
    pub ratio: Option<Ratio>,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Improved,
    Worse,
    /// The range of the ratio includes 1.
    NotReal,
    /// There are too few runs, or two machines.
    Unknown,
}

#[derive(Debug, Error)]
#[error(
    "the old report is about `{old}` and the new one about `{new}`: compare two reports about one topic"
)]
pub struct OtherTopic {
    old: String,
    new: String,
}

impl Changes {
    pub fn between(old: Report, new: Report) -> Result<Self, OtherTopic> {
        if old.topic != new.topic {
            let (old, new) = (old.topic, new.topic);
            return Err(OtherTopic { old, new });
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
            format: FORMAT,
            warnings: warnings(&old, &new, &differences),
            changes,
            old,
            new,
        })
    }

    pub fn is_worse(&self) -> bool {
        let mut changes = self.changes.iter();
        changes.any(|change| change.verdict == Verdict::Worse)
    }
}

fn change(figure: &Figure, old: &Cell, new: &Cell, same_host: bool) -> Option<Change> {
    let ratio = Ratio::of(&new.samples, &old.samples);
    let enough = old.samples.len().min(new.samples.len()) >= MIN_RUNS;
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
        old: old.median()?,
        new: new.median()?,
        ratio,
        verdict,
    })
}

/// The differences between two machines that affect figures: "kernel (6.1, then 6.12)".
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
    // Kernels and hypervisors report slightly different sizes of the same memory.
    if old.memory.abs_diff(new.memory) > old.memory / 20 {
        let memory = |host: &Host| value(Unit::Bytes, host.memory as f64);
        found.push(format!("memory ({}, then {})", memory(old), memory(new)));
    }
    found
}

fn warnings(old: &Report, new: &Report, differences: &[String]) -> Vec<String> {
    let mut warnings = Vec::new();
    if differences.is_empty() {
        warnings.push(
            "the two did not take turns, so a drift of the machine counts as a change; if you have the old \
             program, --vs hull=PATH measures both in turns"
                .into(),
        );
    } else {
        warnings.push(format!(
            "the two are from different machines, so no change counts as real: they differ in {}",
            differences.join(", ")
        ));
    }
    if old.settings.runs.min(new.settings.runs) < MIN_RUNS {
        warnings.push(format!(
            "no change counts as real with fewer than {MIN_RUNS} runs: there were {}, then {}",
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
