//! Why a run of a command gives no sample.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use thiserror::Error;

/// Each message continues the sentence "it ...".
#[derive(Debug, Error)]
pub enum RunError {
    /// The command could not be spawned.
    #[error("cannot be started: {0}")]
    Start(io::Error),
    /// The command ran into the time limit.
    #[error("did not end within {} s and was killed{}", limit.as_secs(), after_colon(stderr))]
    Hung {
        /// The limit of time for one run.
        limit: Duration,
        /// The last line of its standard error.
        stderr: String,
    },
    /// The command ran into the output limit.
    #[error("printed more than {limit} bytes and was killed")]
    Flooded {
        /// The output limit, in bytes.
        limit: usize,
    },
    /// The command ended with a status other than 0.
    #[error("ended with {}{}", describe(*status), after_colon(stderr))]
    Failed {
        /// Another status than 0, or a signal.
        status: ExitStatus,
        /// The last line of its standard error.
        stderr: String,
    },
    /// The program ended with status 0, but the command inside its instance failed.
    #[error("{0}")]
    Judged(String),
    /// The output lacks the expected text.
    #[error("did not print the expected text, but {0:?}")]
    Output(String),
    /// A signal told this process to stop.
    #[error("was stopped")]
    Stopped,
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
