//! `hull doctor`: prints what prevents or slows down guests on this host.

use std::io::{self, IsTerminal};

use super::output::{coloured, print, print_json, wrapped};
use crate::doctor::{self, Check, Status};

/// Columns of the table.
const WIDTH: usize = 80;
/// Column at which findings and remedies begin.
const INDENT: usize = 20;

#[derive(clap::Args)]
#[command(after_help = "\
Each line is ok, warn (guests run; something is slower or missing) or fail (none
runs), with a remedy beneath. The exit status is 1 if one fails.")]
pub struct Doctor {
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Examine this host; 1 if no guest runs here, else 0.
    pub fn execute(self) -> anyhow::Result<u8> {
        let report = doctor::examine();
        if self.json {
            print_json(&report)?;
        } else {
            let coloured = coloured(io::stdout().is_terminal());
            print(table(&report.checks, coloured).as_bytes())?;
        }
        Ok(report.failed().into())
    }
}

fn table(checks: &[Check], coloured: bool) -> String {
    let mut text = String::new();
    for check in checks {
        let (word, colour) = match check.status {
            Status::Ok => ("ok  ", "32"),
            Status::Warn => ("warn", "33"),
            Status::Fail => ("fail", "31"),
        };
        let word = if coloured {
            format!("\x1b[{colour}m{word}\x1b[0m")
        } else {
            word.to_string()
        };
        let remedy = check.remedy.as_deref().map(|remedy| format!("-> {remedy}"));
        let mut lines = wrapped(&check.finding, WIDTH - INDENT);
        lines.extend(
            remedy
                .iter()
                .flat_map(|remedy| wrapped(remedy, WIDTH - INDENT)),
        );
        for (index, line) in lines.iter().enumerate() {
            text += &match index {
                0 => format!("{word}  {:<12}  {line}\n", check.name),
                _ => format!("{:INDENT$}{line}\n", ""),
            };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_stays_in_its_columns() {
        let checks = [
            Check::ok("Linux", "6.1"),
            Check::fail("/dev/net/tun", "one two ".repeat(20), "word ".repeat(30)),
        ];
        let text = table(&checks, false);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("ok    Linux         6.1"));
        assert!(
            lines
                .next()
                .is_some_and(|line| line.starts_with("fail  /dev/net/tun  one two"))
        );
        assert!(lines.all(|line| line.starts_with(&" ".repeat(INDENT)) && line.len() <= WIDTH));
        assert_eq!(text.matches("-> ").count(), 1);
        assert!(!text.contains('\x1b'));
        assert!(table(&checks, true).starts_with("\x1b[32mok  \x1b[0m  Linux "));
    }
}
