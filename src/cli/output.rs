//! Words of hull's own: on standard output whole, on standard error a line at a time.

use std::io::{self, Write};

/// One line of hull's own on standard error. That it has no reader is no failure.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "hull: {line}");
}

/// An error that does not end hull, as `main` prints one that does.
pub fn say_error(error: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "error: {error:#}");
}

/// Print on standard output, whole.
pub fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text)?;
    Ok(stdout.flush()?)
}

/// Whether an error only says that the reader of standard output has gone, which is no failure.
pub fn reader_left(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
