//! Hints for command lines that lack the `--` before the guest's command.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// Add to `error` of `arguments`, hull's own name left out, how to run a command, if they look like one.
pub fn add(mut error: Error, arguments: &[OsString]) -> Error {
    let Some(line) = corrected(&error, arguments) else {
        return error;
    };
    let tip = format!("to run a command in the guest, write `--` before it: {line}");
    error.remove(ContextKind::Suggested);
    error.insert(
        ContextKind::Suggested,
        ContextValue::StyledStrs(vec![tip.into()]),
    );
    error
}

fn corrected(error: &Error, arguments: &[OsString]) -> Option<String> {
    let words: Vec<_> = arguments
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    let (verb, rest) = words.split_first()?;
    let command = match error.kind() {
        // `hull run uname -a`: the first word was taken for a kernel.
        ErrorKind::UnknownArgument if verb == "run" => rest,
        // `hull uname -a`, unless it is a verb with a mistake.
        ErrorKind::InvalidSubcommand if !is_mistyped(error, verb) => &words,
        _ => return None,
    };
    let first = command.first()?;
    let plain = !first.starts_with('-') && !words.iter().any(|word| word == "--");
    plain.then(|| format!("hull run -- {}", command.join(" ")))
}

/// Whether `word` is one of the verbs that clap finds similar, but for a letter of each four.
fn is_mistyped(error: &Error, word: &str) -> bool {
    let close = |verb: &str| strsim::osa_distance(word, verb) <= (word.len() / 4).max(1);
    match error.get(ContextKind::SuggestedSubcommand) {
        Some(ContextValue::Strings(verbs)) => verbs.iter().any(|verb| close(verb)),
        Some(ContextValue::String(verb)) => close(verb),
        _ => false,
    }
}
