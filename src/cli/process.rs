//! The flags of `hull run` for the process in the guest.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::Context;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::headings::COMMAND;
use super::machine::leave_stdin;
use crate::config::machine::{parse_folder, parse_user, parse_variable};
use crate::config::stop::parse_signal;
use crate::config::{Command, Machine, Stop};

#[derive(clap::Args)]
#[command(next_help_heading = COMMAND)]
pub struct Process {
    /// Leave standard input alone, as ssh -n does: CMD reads nothing. For scripts and loops that read
    /// their own lines from there.
    #[arg(short = 'n', long)]
    no_stdin: bool,
    /// Give standard input to CMD, which it gets anyway; with -d, that of hull attach.
    #[arg(short = 'i', long, conflicts_with = "no_stdin")]
    pub interactive: bool,
    /// A variable for CMD; without a value the one that hull itself has, if any. May be repeated.
    /// Example: -e LANG=C
    #[arg(
        short = 'e',
        long = "env",
        value_name = "NAME[=VALUE]",
        value_parser = Variable::parser()
    )]
    env: Vec<Variable>,
    /// Run CMD on a terminal, which it has anyway if hull has one; with -d, one for hull attach.
    #[arg(short, long)]
    pub tty: bool,
    /// The folder of the guest in which CMD runs [default: /]
    #[arg(short, long, value_name = "DIR", value_parser = parse_folder)]
    workdir: Option<OsString>,
    /// The user of the guest as whom CMD runs: a name of its /etc/passwd or a number, and a group
    /// [default: root]. Example: -u 1000:1000
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = parse_user)]
    user: Option<OsString>,
    /// What hull stop sends to CMD, by name or number [default: the image's, or TERM]. Example: --stop-signal
    /// QUIT
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal)]
    stop_signal: Option<u8>,
    /// Seconds after which hull stop kills it [default: 10]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(0..=86_400))]
    stop_timeout: Option<u32>,
}

/// `None` if hull itself has no such variable.
#[derive(Clone)]
pub struct Variable(Option<OsString>);

impl Variable {
    /// Parses `NAME[=VALUE]`.
    pub fn parser() -> impl TypedValueParser<Value = Self> {
        OsStringValueParser::new().try_map(|text| parse_variable(&text).map(Self))
    }
}

/// The variables of the files, one a line, and after them those of the flags; a later one replaces an
/// earlier one of its name.
///
/// # Errors
/// A file cannot be read, or a line is no variable.
pub fn variables_of(files: &[PathBuf], flags: &[Variable]) -> anyhow::Result<Vec<OsString>> {
    let mut command = Command::default();
    for path in files {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        for (line, number) in text.split(|byte| *byte == b'\n').zip(1..) {
            let line = line.trim_ascii_start();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let variable = parse_variable(OsStr::from_bytes(line));
            let variable = variable.map_err(anyhow::Error::msg);
            let variable =
                variable.with_context(|| format!("line {number} of {}", path.display()))?;
            variable.into_iter().for_each(|it| command.set_variable(it));
        }
    }
    let flags = flags.iter().filter_map(|Variable(text)| text.clone());
    flags.for_each(|it| command.set_variable(it));
    Ok(command.env)
}

impl Process {
    /// Leave standard input alone, if the user wants that.
    ///
    /// # Errors
    /// There is no /dev/null.
    pub fn leave_stdin(&self) -> anyhow::Result<()> {
        if self.no_stdin { leave_stdin() } else { Ok(()) }
    }

    /// Set in `machine` what the flags mention, and the `argv`, if there is one.
    pub fn set(&self, machine: &mut Machine, argv: &[OsString]) {
        machine.stop = Stop {
            signal: self.stop_signal,
            seconds: self.stop_timeout,
        };
        if !argv.is_empty() {
            machine.command = Some(Command {
                argv: argv.to_vec(),
                ..Command::default()
            });
        }
        let given =
            !self.env.is_empty() || self.tty || self.workdir.is_some() || self.user.is_some();
        if !given {
            return;
        }
        let command = machine.command.get_or_insert_default();
        for variable in self.env.iter().filter_map(|Variable(text)| text.clone()) {
            command.set_variable(variable);
        }
        if self.tty {
            command.tty = Some(true);
        }
        if let Some(folder) = &self.workdir {
            command.cwd.clone_from(folder);
        }
        if let Some(user) = &self.user {
            command.user.clone_from(user);
        }
    }
}
