//! The rows of the standard answer's table, a file each: what it claims, what is measured, and a verdict.

mod density;
mod footprint;
mod isolation;
mod layer;
mod portability;
mod resources;
pub mod session;
mod startup;
mod system;
mod verdict;

use session::{Measured, Session, Subjects};

use crate::compare::report::comparison::Row;

pub struct Question {
    pub name: &'static str,
    claim_machine: &'static str,
    claim_container: &'static str,
    measure: fn(&mut Subjects, &mut Session) -> Measured,
}

/// In the order of the standard answer.
pub const ROWS: [Question; 8] = [
    Question {
        name: "abstraction layer",
        claim_machine: "the hardware (a hypervisor)",
        claim_container: "the operating system (an engine)",
        measure: layer::measure,
    },
    Question {
        name: "operating system",
        claim_machine: "a full one of its own",
        claim_container: "the host's kernel, shared",
        measure: system::measure,
    },
    Question {
        name: "startup time",
        claim_machine: "slow, minutes",
        claim_container: "fast, seconds",
        measure: startup::measure,
    },
    Question {
        name: "resource usage",
        claim_machine: "high",
        claim_container: "low",
        measure: resources::measure,
    },
    Question {
        name: "isolation",
        claim_machine: "strong, by hardware",
        claim_container: "moderate, by process",
        measure: isolation::measure,
    },
    Question {
        name: "portability",
        claim_machine: "OS and applications, large",
        claim_container: "application and its dependencies, small",
        measure: portability::measure,
    },
    Question {
        name: "footprint",
        claim_machine: "gigabytes",
        claim_container: "megabytes",
        measure: footprint::measure,
    },
    Question {
        name: "density",
        claim_machine: "resource usage high: few",
        claim_container: "resource usage low: many",
        measure: density::measure,
    },
];

impl Question {
    pub fn answer(&self, turns: &mut Subjects, session: &mut Session) -> Row {
        let measured = (self.measure)(turns, session);
        Row {
            name: self.name.into(),
            claim_machine: self.claim_machine.into(),
            claim_container: self.claim_container.into(),
            method: measured.method,
            figures: measured.figures,
            verdict: measured.verdict,
        }
    }
}

/// The rows whose names begin with one of `words`; without words, all rows. The error is the first word with
/// which not exactly one name begins.
pub fn chosen(words: &[String]) -> Result<Vec<&'static Question>, String> {
    let begins = |row: &Question, word: &String| row.name.starts_with(word.as_str());
    let ambiguous = |word: &&String| ROWS.iter().filter(|row| begins(row, word)).count() != 1;
    if let Some(word) = words.iter().find(ambiguous) {
        return Err(word.clone());
    }
    let chosen = |row: &&Question| words.is_empty() || words.iter().any(|word| begins(row, word));
    Ok(ROWS.iter().filter(chosen).collect())
}
