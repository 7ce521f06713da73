//! The subjects that a user chooses by `NAME` or `NAME=PATH`.

use std::path::Path;

use thiserror::Error;

/// The names that `--subjects` knows, in the order of the report.
pub const NAMES: [&str; 12] = [
    "process",
    "bwrap",
    "runc",
    "crun",
    "docker",
    "podman",
    "hull-warm",
    "hull-cold",
    "firecracker",
    "cloud-hypervisor",
    "qemu-microvm",
    "kvmtool",
];
/// Characters of a name, which is the head of a column.
const MAX_NAME: usize = 24;

pub type Choice<'a> = (&'a str, Option<&'a Path>);

/// Each message begins with the word of the user.
#[derive(Debug, Error)]
pub enum ChoiceError {
    #[error("{0:?}: a subject's name has 1 to {MAX_NAME} letters, digits, or characters of -_.+")]
    Name(String),
    #[error("{0}: unknown; the known subjects are {names}; {0}=PATH is a program of yours", names = NAMES.join(", "))]
    Unknown(String),
    #[error("{0}=: no path after the =")]
    NoPath(String),
    #[error("{0}: given twice; give the second one another name")]
    Twice(String),
    #[error("{0}=: it has no program of its own; leave out the path")]
    NoProgram(String),
}

/// Parses the words of a user; without words, all of [`NAMES`].
pub fn choices(words: &[String]) -> Result<Vec<Choice<'_>>, ChoiceError> {
    if words.is_empty() {
        return Ok(NAMES.map(|name| (name, None)).into());
    }
    let mut choices: Vec<Choice> = Vec::new();
    for word in words {
        let (name, path) = word
            .split_once('=')
            .map_or((word.as_str(), None), |(name, path)| (name, Some(path)));
        // Names stand in tables, in file names and on a terminal.
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
            return Err(ChoiceError::Name(name.into()));
        }
        match path {
            None if !NAMES.contains(&name) => return Err(ChoiceError::Unknown(name.into())),
            Some("") => return Err(ChoiceError::NoPath(name.into())),
            _ => {}
        }
        if choices.iter().any(|(other, _)| *other == name) {
            return Err(ChoiceError::Twice(name.into()));
        }
        choices.push((name, path.map(Path::new)));
    }
    Ok(choices)
}
