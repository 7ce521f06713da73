//! `--explain`: the steps of a boot as paragraphs on standard error.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use super::output::{coloured, columns, wrapped};
use crate::vmm::story::{Listener, Step};

/// Most columns of a paragraph.
const MAX_WIDTH: usize = 88;
/// Columns before a paragraph's lines.
const INDENT: usize = 6;

/// Prints each step as it comes.
pub fn listener() -> Listener {
    let stderr = rustix::stdio::stderr();
    let terminal = io::stderr().is_terminal();
    let width = columns(stderr).map_or(MAX_WIDTH, |width| width.clamp(40, MAX_WIDTH));
    let bold = coloured(terminal);
    Listener(Arc::new(move |number, step| {
        let mut text = paragraph(number, step, width, bold);
        if terminal {
            // The terminal may be raw by now.
            text = text.replace('\n', "\r\n");
        }
        // A closed standard error is no failure.
        let _ = io::stderr().write_all(text.as_bytes());
    }))
}

fn paragraph(number: usize, step: &Step, width: usize, bold: bool) -> String {
    let (on, off) = match bold {
        true => ("\x1b[1m", "\x1b[0m"),
        false => ("", ""),
    };
    let mut text = format!("hull: {number}. {on}{}{off}\n", step.title);
    let room = width - INDENT;
    for part in [
        step.what.clone(),
        format!("Without it: {}", step.without),
        format!("See {}", step.manual),
    ] {
        for line in wrapped(&part, room) {
            text += &" ".repeat(INDENT);
            text += &line;
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paragraph_keeps_to_its_width() {
        let step = Step {
            title: "KVM_RUN",
            what: "one two three four five six seven".into(),
            without: "nothing.",
            manual: "api.rst",
        };
        assert_eq!(
            paragraph(3, &step, 24, false),
            "hull: 3. KVM_RUN\n      one two three four\n      five six seven\n      Without it:\n      \
             nothing.\n      See api.rst\n"
        );
        assert!(paragraph(1, &step, 80, true).starts_with("hull: 1. \x1b[1mKVM_RUN\x1b[0m\n"));
    }
}
