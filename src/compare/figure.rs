//! A figure for several subjects side by side: what the reports of `hull compare` and `hull bench` consist
//! of.

use serde::{Deserialize, Serialize};

use crate::compare::statistics::{Ratio, Summary};

/// In what a figure is given. Samples are plain numbers of that unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Milliseconds.
    Milliseconds,
    /// Microseconds.
    Microseconds,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// Bytes a second.
    BytesPerSecond,
    /// How many.
    Count,
    /// How many a second.
    PerSecond,
    /// A share, of 1.
    Share,
    /// No number: a text, or a probe that passed or failed.
    Text,
}

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Less of it.
    Less,
    /// More of it.
    More,
    /// Neither: it tells what something is.
    Neither,
}

/// One thing that was measured, of each subject that took part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// "echo, exec to first output byte".
    pub name: String,
    /// Of its samples.
    pub unit: Unit,
    /// Which way is good.
    pub better: Better,
    /// One a subject, in the report's order; a subject of which it could not be measured has a note.
    pub cells: Vec<Cell>,
}

/// What was measured of one subject.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Its name.
    pub subject: String,
    /// Every sample, in the order in which they were taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<f64>,
    /// Of the samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// This subject's median by the one of the figure's first subject with samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Ratio>,
    /// In words, where there is no number or beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Of a probe: whether it passed, which is to the good of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed: Option<bool>,
    /// Computed from other figures, not measured.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub extrapolated: bool,
    /// Why there is nothing, or what speaks against it; of runs that failed, how many and how the last did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Figure {
    /// With a cell for each of `subjects`, from their samples.
    pub fn of_samples<'a>(
        name: impl Into<String>,
        unit: Unit,
        better: Better,
        subjects: impl IntoIterator<Item = (&'a str, Vec<f64>)>,
    ) -> Self {
        let cells = subjects.into_iter().map(|(subject, samples)| Cell {
            subject: subject.into(),
            summary: Summary::of(&samples),
            samples,
            ..Cell::default()
        });
        let mut figure = Self {
            name: name.into(),
            unit,
            better,
            cells: cells.collect(),
        };
        figure.compare();
        figure
    }

    /// Give each cell its ratio to the first with samples.
    fn compare(&mut self) {
        let first = self.cells.iter().position(|cell| !cell.samples.is_empty());
        let Some(first) = first else { return };
        let base = self.cells[first].samples.clone();
        for cell in self.cells.iter_mut().skip(first + 1) {
            cell.ratio = Ratio::of(&cell.samples, &base);
        }
    }

    /// The cell of that subject.
    pub fn cell(&self, subject: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.subject == subject)
    }

    /// The median of that subject's samples.
    pub fn median(&self, subject: &str) -> Option<f64> {
        Some(self.cell(subject)?.summary?.median)
    }
}

impl Cell {
    /// A word instead of a number.
    pub fn text(subject: &str, text: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            text: Some(text.into()),
            ..Self::default()
        }
    }

    /// Nothing, and why.
    pub fn missing(subject: &str, note: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            note: Some(note.into()),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_to_the_first_that_has_samples() {
        let figure = Figure::of_samples(
            "it",
            Unit::Milliseconds,
            Better::Less,
            [
                ("none", vec![]),
                ("one", vec![2.0, 2.0]),
                ("two", vec![3.0, 3.0]),
            ],
        );
        assert_eq!(figure.median("one"), Some(2.0));
        assert_eq!(figure.cell("none").and_then(|cell| cell.summary), None);
        assert_eq!(figure.cell("one").and_then(|cell| cell.ratio), None);
        let ratio = figure
            .cell("two")
            .and_then(|cell| cell.ratio)
            .expect("a ratio");
        assert_eq!(ratio.ratio, 1.5);
    }

    #[test]
    fn a_figure_survives_its_json() {
        let figure = Figure::of_samples("x", Unit::Bytes, Better::Less, [("a", vec![1.5, 2.5])]);
        let text = serde_json::to_string(&figure).expect("written");
        assert_eq!(serde_json::from_str::<Figure>(&text).expect("read"), figure);
        assert!(
            !text.contains("note") && !text.contains("extrapolated"),
            "{text}"
        );
    }
}
