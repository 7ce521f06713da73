//! The subjects that a user chooses by `NAME` or `NAME=PATH`.

use std::path::PathBuf;

use thiserror::Error;

/// Characters of a name, which is the head of a column.
const MAX_NAME: usize = 24;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub name: String,
    /// The path of its program.
    pub path: Option<PathBuf>,
}

/// Each message begins with the word of the user.
#[derive(Debug, Error)]
pub enum ChoiceError {
    #[error("{0:?}: a subject's name has 1 to {MAX_NAME} letters, digits, or characters of -_.+")]
    Name(String),
    #[error("{0}: unknown; the known subjects are {names}; {0}=PATH is a program of yours", names = .1.join(", "))]
    Unknown(String, &'static [&'static str]),
    #[error("{0}=: no path after the =")]
    NoPath(String),
    #[error("{0}: given twice; give the second one another name")]
    Twice(String),
    #[error("{0}=: it has no program of its own; leave out the path")]
    NoProgram(String),
}

/// Parses the words of a user; `known` are the names that need no path.
pub fn parse(words: &[String], known: &'static [&'static str]) -> Result<Vec<Choice>, ChoiceError> {
    let mut choices: Vec<Choice> = Vec::new();
    for word in words {
        let (name, path) = match word.split_once('=') {
            Some((name, path)) => (name.to_owned(), Some(path)),
            None => (word.clone(), None),
        };
        // Names stand in tables, in file names and on a terminal.
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
            return Err(ChoiceError::Name(name));
        }
        match path {
            None if !known.contains(&name.as_str()) => {
                return Err(ChoiceError::Unknown(name, known));
            }
            Some("") => return Err(ChoiceError::NoPath(name)),
            _ => {}
        }
        if choices.iter().any(|other| other.name == name) {
            return Err(ChoiceError::Twice(name));
        }
        let path = path.map(Into::into);
        choices.push(Choice { name, path });
    }
    Ok(choices)
}
