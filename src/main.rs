//! The hull program: parse, run, print the error chain, exit.

use std::io::{self, Write};
use std::process::ExitCode;

use hull::launch::OWN_ERROR;

fn main() -> ExitCode {
    let cli = match hull::cli::Cli::of_process() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { OWN_ERROR } else { 0 });
        }
    };
    match cli.execute() {
        Ok(status) => ExitCode::from(status),
        Err(error) if hull::cli::reader_left(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Not eprintln, which panics if standard error is closed.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::from(OWN_ERROR)
        }
    }
}
