//! What a topic measures, and of which programs.

use std::path::PathBuf;
use std::time::Duration;

use super::error::BenchError;
use crate::compare::figure::{Better, Unit};
use crate::compare::subject::monitor::{Monitor, Monitored};
use crate::compare::subject::{Stage, Subject, monitor};

pub struct Bench {
    pub stage: Stage,
    pub timeout: Duration,
    /// Whether the machine is a steady lab.
    pub steady: bool,
}

pub struct Program {
    pub name: String,
    pub kind: Kind,
    pub path: PathBuf,
}

/// What a program is, and so how it is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ThisHull,
    OtherHull,
    Firecracker,
    /// A monitor that only runs commands.
    Other,
    /// A container runtime.
    Container,
}

impl Program {
    pub fn is_hull(&self) -> bool {
        matches!(self.kind, Kind::ThisHull | Kind::OtherHull)
    }

    pub fn monitor(&self) -> Result<&'static Monitor, BenchError> {
        let name = if self.is_hull() { "hull" } else { &self.name };
        let unknown = || BenchError::Other("it is no monitor of virtual machines".into());
        monitor(name).ok_or_else(unknown)
    }
}

impl Bench {
    pub fn path(&self, name: &str) -> PathBuf {
        self.stage.path(name)
    }

    pub fn subject(&self, program: &Program) -> Result<Monitored<'_>, BenchError> {
        let monitor = program.monitor()?;
        let path = Some(program.path.as_path());
        Ok(Monitored::new(&self.stage, monitor, path))
    }
}

pub struct Plan {
    pub topic: &'static str,
    /// What starts and stops a clock, and what is counted.
    pub method: &'static str,
    /// Name, unit and direction of each, in the order of the samples.
    pub figures: &'static [(&'static str, Unit, Better)],
    /// Whether a turn precedes the first one that counts, to bring files into memory.
    pub warms_up: bool,
    /// The contender of a program, unless it has no figures of this topic.
    pub contender: for<'a> fn(&'a Bench, &'a Program) -> Made<'a>,
}

/// A sample of each figure of the topic; none of a figure that the program does not have.
pub type Samples = Vec<Option<f64>>;

pub type Made<'a> = Result<Box<dyn Contender + 'a>, BenchError>;

/// A program that takes turns. Whatever it starts has ended after a turn, or when it is dropped.
pub trait Contender {
    fn prepare(&mut self) -> Result<(), BenchError> {
        Ok(())
    }

    fn turn(&mut self) -> Result<Samples, BenchError>;

    fn subject(&self) -> Option<&dyn Subject> {
        None
    }

    /// What is missing in the figures, and why. Called after all turns.
    fn missing(&self) -> Option<String> {
        None
    }
}
