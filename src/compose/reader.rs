//! Values of a file as what they should be, with their variables replaced.

use std::path::Path;

use super::error::FileError;
use super::variables::{Variables, replace};
use super::yaml::{Entry, Kind, Value};

/// What values are read with.
pub struct Reader<'a> {
    /// For `${NAME}`.
    pub variables: &'a Variables,
    /// The folder of the file, to which its paths are relative.
    pub folder: &'a Path,
}

/// A text and its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// From 1.
    pub line: usize,
    /// Without variables.
    pub text: String,
}

impl Text {
    /// That the text is wrong.
    pub fn wrong(&self, reason: impl std::fmt::Display) -> FileError {
        FileError::at(self.line, format!("{}: {reason}", self.text))
    }
}

impl Reader<'_> {
    /// A text, number or boolean; `key` is what it is for.
    pub fn text(&self, value: &Value, key: &str) -> Result<Text, FileError> {
        let line = value.line;
        let Kind::Scalar { text, .. } = &value.kind else {
            return Err(FileError::at(line, format!("{key} is a text")));
        };
        let text = replace(text, self.variables);
        let text = text.map_err(|reason| FileError::at(line, format!("{key}: {reason}")))?;
        Ok(Text { line, text })
    }

    /// Yes or no.
    pub fn flag(&self, value: &Value, key: &str) -> Result<bool, FileError> {
        let text = self.text(value, key)?;
        match text.text.as_str() {
            "true" | "yes" | "on" => Ok(true),
            "false" | "no" | "off" => Ok(false),
            _ => Err(text.wrong(format!("{key} is true or false"))),
        }
    }

    /// A text, or a list of them.
    pub fn texts(&self, value: &Value, key: &str) -> Result<Vec<Text>, FileError> {
        match &value.kind {
            Kind::Null => Ok(Vec::new()),
            Kind::List(list) => list.iter().map(|it| self.text(it, key)).collect(),
            _ => Ok(vec![self.text(value, key)?]),
        }
    }

    /// Words of a command: a list, or a text that is divided as a shell does it.
    pub fn words(&self, value: &Value, key: &str) -> Result<Vec<String>, FileError> {
        if let Kind::Scalar { .. } = value.kind {
            let text = self.text(value, key)?;
            let words = shlex::split(&text.text);
            return words.ok_or_else(|| text.wrong("a quote is not closed"));
        }
        let words = self.texts(value, key)?.into_iter();
        Ok(words.map(|word| word.text).collect())
    }

    /// Pairs: a list of `NAME=VALUE`, or a map. Without a value it is `None`.
    pub fn pairs(
        &self,
        value: &Value,
        key: &str,
    ) -> Result<Vec<(Text, Option<String>)>, FileError> {
        let Kind::Map(map) = &value.kind else {
            let pair = |text: Text| match text.text.split_once('=') {
                None => (text, None),
                Some((name, value)) => {
                    let (name, value) = (name.to_string(), value.to_string());
                    (Text { text: name, ..text }, Some(value))
                }
            };
            return Ok(self.texts(value, key)?.into_iter().map(pair).collect());
        };
        let pair = |entry: &Entry| {
            let name = Text {
                line: entry.value.line,
                text: entry.key.clone(),
            };
            let value = match entry.value.kind {
                Kind::Null => None,
                _ => Some(self.text(&entry.value, &entry.key)?.text),
            };
            Ok((name, value))
        };
        map.iter().map(pair).collect()
    }

    /// Keys with their values; none for an empty value.
    pub fn map<'a>(&self, value: &'a Value, key: &str) -> Result<&'a [Entry], FileError> {
        match &value.kind {
            Kind::Null => Ok(&[]),
            Kind::Map(map) => Ok(map),
            _ => Err(FileError::at(
                value.line,
                format!("{key} is a map: NAME: VALUE, a line each"),
            )),
        }
    }

    /// An absolute path of the host.
    pub fn path(&self, text: &str) -> String {
        let home = text.strip_prefix("~/").zip(std::env::var("HOME").ok());
        match home {
            Some((rest, home)) => format!("{home}/{rest}"),
            None => self.folder.join(text).display().to_string(),
        }
    }
}

/// Whether a key says something that hull may pass over.
pub fn is_harmless(key: &str, harmless: &[&str]) -> bool {
    // Those of hull's own say something, and a mistake in one is none to pass over.
    key.starts_with("x-") && !key.starts_with("x-hull-") || harmless.contains(&key)
}

/// That hull does not do what a key asks for.
pub fn unsupported(entry: &Entry, place: &str) -> FileError {
    let reason = format!("{place} {} is not supported; remove it", entry.key);
    FileError::at(line_of(entry), reason)
}

/// The line of a key; of one that was merged, that of its value.
pub fn line_of(entry: &Entry) -> usize {
    if entry.line > 0 {
        entry.line
    } else {
        entry.value.line
    }
}
