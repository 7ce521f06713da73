//! The flags of `hull run` for the process in the guest.

use std::ffi::{OsStr, OsString};

use clap::builder::{OsStringValueParser, TypedValueParser};

use super::headings::COMMAND;
use crate::config::machine::{parse_folder, parse_user, parse_variable};
use crate::config::{Command, Machine};

#[derive(clap::Args)]
#[command(next_help_heading = COMMAND)]
pub struct Process {
    /// A variable for CMD; without a value the one that hull itself has, if any. May be repeated.
    /// Example: -e LANG=C
    #[arg(
        short = 'e',
        long = "env",
        value_name = "NAME[=VALUE]",
        value_parser = OsStringValueParser::new().try_map(|text| variable(&text))
    )]
    env: Vec<Variable>,
    /// The folder of the guest in which CMD runs [default: /]
    #[arg(short, long, value_name = "DIR", value_parser = parse_folder)]
    workdir: Option<OsString>,
    /// The user of the guest as whom CMD runs: a name of its /etc/passwd or a number, and a group
    /// [default: root]. Example: -u 1000:1000
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = parse_user)]
    user: Option<OsString>,
}

/// `None` if hull itself has no such variable.
#[derive(Clone)]
struct Variable(Option<OsString>);

fn variable(text: &OsStr) -> Result<Variable, String> {
    parse_variable(text).map(Variable)
}

impl Process {
    /// Set in `machine` what the flags mention, and the `argv`, if there is one.
    pub fn set(&self, machine: &mut Machine, argv: &[OsString]) {
        if !argv.is_empty() {
            machine.command = Some(Command {
                argv: argv.to_vec(),
                ..Command::default()
            });
        }
        let given = !self.env.is_empty() || self.workdir.is_some() || self.user.is_some();
        if !given {
            return;
        }
        let command = machine.command.get_or_insert_default();
        for variable in self.env.iter().filter_map(|Variable(text)| text.clone()) {
            command.set_variable(variable);
        }
        if let Some(folder) = &self.workdir {
            command.cwd.clone_from(folder);
        }
        if let Some(user) = &self.user {
            command.user.clone_from(user);
        }
    }
}
