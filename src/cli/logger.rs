//! `--log-level`, `--log-file` and `HULL_LOG`: which diagnostics of the library are written, and where.
//!
//! A line has the time since the process started, the level and the module. Without a level and a file
//! only warnings are written, in the form of hull's own messages. Other crates are silent unless a
//! directive names them: a guest can make some of them write without limit.

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use anyhow::{Context, anyhow};
use log::{LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::OutputModes;

use super::machine::process_start;
use crate::sync::lock;

/// The environment's counterpart of `--log-level`.
const VARIABLE: &str = "HULL_LOG";
/// The heading of the flags in `--help`.
const LOGGING: &str = "Logging";
/// PIPE_BUF: a pipe that polls writable takes that much without blocking (pipe(7)).
const MAX_LINE: usize = 4096;
/// How long a line waits for a reader of standard error before it is dropped. The next ones do not
/// wait until one was written again: a vCPU thread may be writing.
const WRITE_TIMEOUT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// The flags that every command has.
#[derive(clap::Args)]
#[command(next_help_heading = LOGGING)]
#[group(skip)] // its name would be that of another group
pub struct Flags {
    /// What hull logs: off, error, warn, info, debug or trace, also by module. HULL_LOG sets the same.
    /// Example: --log-level hull::devices=debug,warn
    #[arg(long, value_name = "LEVEL", value_parser = Filter::from_str)]
    log_level: Option<Filter>,
    /// Append the log to a file instead of standard error.
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

impl Flags {
    /// These flags; of `others` what is not given here.
    pub fn or(self, others: Self) -> Self {
        Self {
            log_level: self.log_level.or(others.log_level),
            log_file: self.log_file.or(others.log_file),
        }
    }

    /// Install the logger, unless there is one already.
    ///
    /// # Errors
    /// `HULL_LOG` has a bad directive; the file cannot be opened.
    pub fn install(self) -> anyhow::Result<()> {
        let variable = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
        let filter = match (self.log_level, variable) {
            (Some(filter), _) => Some(filter),
            (None, Some(text)) => Some(
                text.parse()
                    .map_err(|error| anyhow!("{VARIABLE}: {error}"))?,
            ),
            (None, None) => None,
        };
        let sink = match &self.log_file {
            Some(path) => {
                let file = File::options().create(true).append(true).open(path);
                Sink::File(file.with_context(|| format!("--log-file {}", path.display()))?)
            }
            None => Sink::Stderr { lost: 0 },
        };
        let logger = Logger {
            started: process_start(),
            plain: filter.is_none() && self.log_file.is_none(),
            filter: filter.unwrap_or_default(),
            file: self.log_file,
            sink: Mutex::new(sink),
        };
        let level = logger.filter.max_level();
        if LOGGER.set(logger).is_ok()
            && let Some(logger) = LOGGER.get()
        {
            // It fails only if there is a logger already.
            let _ = log::set_logger(logger);
            log::set_max_level(level);
        }
        Ok(())
    }
}

/// The flags with which another hull logs as this one does.
pub fn flags() -> Vec<OsString> {
    let Some(logger) = LOGGER.get().filter(|logger| !logger.plain) else {
        return Vec::new();
    };
    let mut flags = vec!["--log-level".into(), logger.filter.to_string().into()];
    if let Some(file) = &logger.file {
        flags.extend(["--log-file".into(), file.into()]);
    }
    flags
}

/// Levels by module: of the directives that match a module, the longest counts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Filter {
    /// hull's modules that no directive names.
    default: LevelFilter,
    modules: Vec<(String, LevelFilter)>,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            default: LevelFilter::Warn,
            modules: Vec::new(),
        }
    }
}

impl Filter {
    fn level(&self, module: &str) -> LevelFilter {
        let matching = self
            .modules
            .iter()
            .filter(|(name, _)| contains(name, module));
        match matching.max_by_key(|(name, _)| name.len()) {
            Some((_, level)) => *level,
            None if contains("hull", module) => self.default,
            None => LevelFilter::Off,
        }
    }

    fn max_level(&self) -> LevelFilter {
        let levels = self.modules.iter().map(|(_, level)| *level);
        levels.fold(self.default, Ord::max)
    }
}

/// Whether `module` is `name` or inside it.
fn contains(name: &str, module: &str) -> bool {
    let rest = module.strip_prefix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.default)?;
        let mut modules = self.modules.iter();
        modules.try_for_each(|(module, level)| write!(f, ",{module}={level}"))
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        for directive in text.split(',').map(str::trim) {
            let (module, level) = match directive.split_once('=') {
                Some((module, level)) => (Some(module), level),
                None => (None, directive),
            };
            let parsed = level.parse().ok().filter(|_| module != Some(""));
            let Some(level) = parsed else {
                return Err(format!(
                    "'{directive}' is not a directive; write LEVEL or MODULE=LEVEL, with off, error, \
                     warn, info, debug or trace as LEVEL"
                ));
            };
            match module {
                Some(module) => filter.modules.push((module.into(), level)),
                None => filter.default = level,
            }
        }
        Ok(filter)
    }
}

struct Logger {
    started: Instant,
    filter: Filter,
    /// Lines look like hull's own messages.
    plain: bool,
    file: Option<PathBuf>,
    sink: Mutex<Sink>,
}

enum Sink {
    /// With the lines that were dropped since the last one that was written.
    Stderr {
        lost: u64,
    },
    File(File),
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= self.filter.level(metadata.target())
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = String::new();
        if self.plain {
            line.push_str("hull: ");
        } else {
            let time = self.started.elapsed();
            let (seconds, micros) = (time.as_secs(), time.subsec_micros());
            let (level, module) = (record.level(), record.target());
            let _ = write!(line, "[{seconds:4}.{micros:06} {level:<5} {module}] ");
        }
        // A guest has a say in some messages, and must not forge lines or move the cursor.
        for character in record.args().to_string().chars() {
            if character.is_control() {
                line.extend(character.escape_default());
            } else {
                line.push(character);
            }
        }
        let mut sink = lock(&self.sink);
        sink.write(line);
    }

    fn flush(&self) {}
}

impl Sink {
    fn write(&mut self, mut line: String) {
        match self {
            Self::Stderr { lost } => write_stderr(line, lost),
            Self::File(file) => {
                line.push('\n');
                // There is no other place to tell of it.
                let _ = file.write_all(line.as_bytes());
            }
        }
    }
}

/// Write a line without blocking, or count it as lost.
fn write_stderr(mut line: String, lost: &mut u64) {
    let stderr = rustix::stdio::stderr();
    let timeout = if *lost == 0 {
        WRITE_TIMEOUT
    } else {
        Timespec::default()
    };
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    if !matches!(poll(&mut fds, Some(&timeout)), Ok(1)) {
        *lost += 1;
        return;
    }
    if *lost > 0 {
        line = format!("hull: standard error was full: {lost} lines of the log are lost\n{line}");
        *lost = 0;
    }
    let mut end = line.len().min(MAX_LINE - 2);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    // The guest's terminal may be in raw mode, where a line feed alone does not return the carriage.
    let raw = rustix::termios::tcgetattr(stderr)
        .is_ok_and(|terminal| !terminal.output_modes.contains(OutputModes::OPOST));
    line.push_str(if raw { "\r\n" } else { "\n" });
    let _ = io::stderr().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_directive_that_matches_counts() {
        let filter: Filter = "hull::devices=info,hull::devices::virtio=trace,error,imago=debug"
            .parse()
            .expect("directives");
        for (module, level) in [
            ("hull", LevelFilter::Error),
            ("hull::kvm", LevelFilter::Error),
            ("hull::devices", LevelFilter::Info),
            ("hull::devices::legacy::power", LevelFilter::Info),
            ("hull::devices::virtio::mmio", LevelFilter::Trace),
            ("hull::devicesandmore", LevelFilter::Error),
            ("imago::qcow2", LevelFilter::Debug),
            ("virtio_queue", LevelFilter::Off),
        ] {
            assert_eq!(filter.level(module), level, "{module}");
        }
        assert_eq!(filter.max_level(), LevelFilter::Trace);
        assert_eq!(filter.to_string().parse(), Ok(filter));
    }

    #[test]
    fn only_a_directive_sets_levels() {
        assert_eq!("WARN".parse(), Ok(Filter::default()));
        for bad in [
            "",
            "loud",
            "hull::devices=",
            "=debug",
            "debug,",
            "hull::kvm=debug=info",
        ] {
            let error = bad.parse::<Filter>().expect_err(bad);
            assert!(error.contains("LEVEL or MODULE=LEVEL"), "{error}");
        }
    }
}
