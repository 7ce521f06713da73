//! A figure: one quantity, measured for several subjects side by side. The reports of both verbs consist of
//! figures.

use serde::{Deserialize, Serialize};

use crate::compare::statistics::{Ratio, Summary};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    Milliseconds,
    Microseconds,
    Seconds,
    Bytes,
    BytesPerSecond,
    Count,
    PerSecond,
    /// A fraction of 1.
    Share,
    /// The cells hold texts or the outcomes of probes.
    Text,
}

/// The direction in which a figure improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Less,
    More,
    Neither,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// "echo, exec to first output byte".
    pub name: String,
    pub unit: Unit,
    pub better: Better,
    /// In the order of the report's subjects.
    pub cells: Vec<Cell>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    pub subject: String,
    /// In the order in which they were taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// The ratio of this median to that of the figure's first cell with samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Ratio>,
    /// Stands instead of a number, or explains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The outcome of a probe; true is the one that protects the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed: Option<bool>,
    /// Computed from other figures instead of measured.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub extrapolated: bool,
    /// Why there is no value, or why to distrust it: for example the number of failed runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Figure {
    /// Computes the summary of each cell, and its ratio to the first cell with samples.
    pub fn new(name: impl Into<String>, unit: Unit, better: Better, mut cells: Vec<Cell>) -> Self {
        for cell in &mut cells {
            cell.summary = Summary::of(&cell.samples);
        }
        let mut with_samples = cells.iter_mut().filter(|cell| !cell.samples.is_empty());
        if let Some(first) = with_samples.next() {
            for cell in with_samples {
                cell.ratio = Ratio::of(&cell.samples, &first.samples);
            }
        }
        Self {
            name: name.into(),
            unit,
            better,
            cells,
        }
    }

    pub fn cell(&self, subject: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.subject == subject)
    }

    pub fn median(&self, subject: &str) -> Option<f64> {
        self.cell(subject)?.median()
    }

    #[cfg(test)]
    pub fn of_texts(name: impl Into<String>, cells: Vec<Cell>) -> Self {
        Self::new(name, Unit::Text, Better::Neither, cells)
    }

    #[cfg(test)]
    pub fn of_samples(unit: Unit, better: Better, samples: &[(&str, &[f64])]) -> Self {
        let cell = |(subject, samples): &(&str, &[f64])| Cell::samples(*samples).of(subject);
        Self::new("it", unit, better, samples.iter().map(cell).collect())
    }
}

impl Cell {
    pub fn samples(samples: impl Into<Vec<f64>>) -> Self {
        Self {
            samples: samples.into(),
            ..Self::default()
        }
    }

    pub fn text(text: impl Into<String>) -> Self {
        Self {
            text: Some(text.into()),
            ..Self::default()
        }
    }

    pub fn probe(passed: bool, text: impl Into<String>) -> Self {
        Self {
            passed: Some(passed),
            ..Self::text(text)
        }
    }

    pub fn missing(note: impl Into<String>) -> Self {
        Self::default().with_note(Some(note.into()))
    }

    pub fn with_note(self, note: Option<String>) -> Self {
        Self { note, ..self }
    }

    pub fn of(self, subject: &str) -> Self {
        Self {
            subject: subject.into(),
            ..self
        }
    }

    pub fn median(&self) -> Option<f64> {
        Some(self.summary?.median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_to_the_first_cell_with_samples() {
        let samples: &[(&str, &[f64])] = &[("none", &[]), ("one", &[2.0; 2]), ("two", &[3.0; 2])];
        let figure = Figure::of_samples(Unit::Milliseconds, Better::Less, samples);
        assert_eq!(
            (figure.median("none"), figure.median("one")),
            (None, Some(2.0))
        );
        let ratio = |subject| Some(figure.cell(subject)?.ratio?.ratio);
        assert_eq!((ratio("one"), ratio("two")), (None, Some(1.5)));
    }

    #[test]
    fn a_figure_survives_its_json() {
        let figure = Figure::of_samples(Unit::Bytes, Better::Less, &[("a", &[1.5, 2.5])]);
        let text = serde_json::to_string(&figure).expect("written");
        assert_eq!(serde_json::from_str::<Figure>(&text).expect("read"), figure);
        assert!(
            !text.contains("note") && !text.contains("extrapolated"),
            "{text}"
        );
    }
}
