//! Why there is no such machine.

use std::path::PathBuf;

use thiserror::Error;

use super::position;

/// A configuration that describes no machine.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read, or is too large to be a configuration.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file that was named.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither JSON nor TOML.
    #[error("no valid {format}: {reason}")]
    Syntax {
        /// What its first character makes it.
        format: &'static str,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// A key that no flag has.
    #[error("{at}{place}: unknown key '{key}'; {hint}")]
    UnknownKey {
        /// Line and column, in front of the place, if known.
        at: String,
        /// Where it is in the file, such as `disk[1].chache`.
        place: String,
        /// The key as it is written.
        key: String,
        /// The nearest key, or all of them.
        hint: String,
    },
    /// A value that its key does not take.
    #[error("{at}{place}: {reason}")]
    Value {
        /// Line and column, in front of the place, if known.
        at: String,
        /// Where it is in the file, such as `disk[1]`.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two settings that exclude each other, or a setting outside of its range.
    #[error("{key} {reason}")]
    Machine {
        /// The setting, by the name of its flag and of its key in a file: `disk`.
        key: &'static str,
        /// What is wrong, after the setting's name.
        reason: String,
    },
    /// Text that is not UTF-8, which no file can hold.
    #[error("{text:?} is not UTF-8, and a configuration file is")]
    NotUtf8 {
        /// The path or argument.
        text: String,
    },
}

impl ConfigError {
    /// The refusal of `key` at `place`, where `known` are the keys there.
    pub(super) fn unknown_key<'a>(
        place: &str,
        key: &str,
        known: impl Iterator<Item = &'a str> + Clone,
    ) -> Self {
        let distance = |known: &&str| strsim::osa_distance(key, known);
        let nearest = known.clone().min_by_key(distance);
        let hint = match nearest.filter(|near| distance(near) <= near.len().div_ceil(2)) {
            Some(near) => format!("did you mean '{near}'?"),
            None => format!("there are {}", known.collect::<Vec<_>>().join(", ")),
        };
        Self::UnknownKey {
            at: String::new(),
            place: place.into(),
            key: key.into(),
            hint,
        }
    }

    /// The error with its line and column in `text`, which is JSON or TOML.
    pub(super) fn located(mut self, text: &str, json: bool) -> Self {
        let (at, found) = match &mut self {
            Self::UnknownKey { at, place, key, .. } => {
                (at, position::find(text, json, place, Some(key)))
            }
            Self::Value { at, place, .. } => (at, position::find(text, json, place, None)),
            _ => return self,
        };
        if let Some((line, column)) = found {
            *at = format!("line {line}, column {column}: ");
        }
        self
    }

    /// The machine's setting `key` is wrong.
    pub(crate) fn machine(key: &'static str, reason: impl Into<String>) -> Self {
        Self::Machine {
            key,
            reason: reason.into(),
        }
    }
}
