//! What hull prints itself: text on standard output, lines on standard error.

use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::termios::tcgetwinsize;
use serde::Serialize;

/// Print one line of hull's own on standard error. A closed one is no failure.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "hull: {line}");
}

/// Print an error that does not end hull, in the form that `main` uses.
pub fn say_error(error: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "error: {error:#}");
}

/// Print all of `text` on standard output.
pub fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text)?;
    Ok(stdout.flush()?)
}

/// Print `value` as JSON on standard output.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print((serde_json::to_string_pretty(value)? + "\n").as_bytes())
}

/// Whether colours are wanted where `terminal` says whether there is one: not if NO_COLOR is set
/// (https://no-color.org).
pub fn coloured(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The width of the terminal `of`, in columns.
pub fn columns(of: impl AsFd) -> Option<usize> {
    let size = tcgetwinsize(of).ok()?;
    Some(size.ws_col.into()).filter(|columns| *columns > 0)
}

/// Whether an error only says that the reader of standard output is gone, which is no failure.
pub fn reader_left(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// `text` in lines of at most `width` columns; a longer word has one to itself.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let options = textwrap::Options::new(width)
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    let lines = textwrap::wrap(text, options);
    lines.into_iter().map(Into::into).collect()
}
