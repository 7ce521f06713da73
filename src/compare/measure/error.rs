//! Why a run of a command gives no sample.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use thiserror::Error;

/// Each message says when, and continues the sentence "it ...".
#[derive(Debug, Error)]
pub enum RunError {
    #[error("cannot be started: {0}")]
    Start(io::Error),
    #[error("did not end within {} s and was killed{}", .0.as_secs(), after_colon(.1))]
    Hung(Duration, String),
    #[error("printed more than {0} bytes and was killed")]
    Flooded(usize),
    #[error("ended with {}{}", describe(*.0), after_colon(.1))]
    Failed(ExitStatus, String),
    /// The program ended with status 0, but the command inside its instance failed.
    #[error("{0}")]
    Judged(String),
    #[error("did not print the expected text, but {0:?}")]
    Output(String),
    #[error("was stopped")]
    Stopped,
    #[error("cannot be traced: {0}")]
    Trace(io::Error),
    #[error("did not end within {} s under ptrace", .0.as_secs())]
    TraceHung(Duration),
    /// A system call of the measurement itself failed.
    #[error("cannot be watched: {0}")]
    Watch(#[from] io::Error),
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or(0)),
    }
}

fn after_colon(stderr: &str) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!(": {stderr}")
    }
}
