//! hull's own figures, beside those of other monitors and of another hull.
//!
//! Each [`Topic`] is a file with a `Plan`: which figures, and who can give them.
//! `turns` has all of them take turns; what comes of it is a [`Report`], and of two
//! reports [`change`] says what has become better or worse.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::compare::measure::host::Host;
use crate::compare::measure::timed::Limits;
use crate::compare::subject::{Stage, StageError};
use crate::compare::warning::Warning;

mod boot;
mod density;
mod disk;
mod exit;
mod firecracker;
mod hull;
mod machines;
mod memory;
mod net;
pub mod report;
mod restore;
mod turns;

use report::{FORMAT, Report, Rival, Settings};
use turns::{Kind, Plan, Who};

/// The names that `--vs` knows.
pub const RIVALS: [&str; 5] = [
    "firecracker",
    "cloud-hypervisor",
    "qemu-microvm",
    "kvmtool",
    "hull",
];
/// What another hull is called beside this one.
const OTHER_HULL: &str = "other hull";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topic {
    /// From exec to a guest's output and end.
    Boot,
    /// From exec to a guest that goes on from a snapshot, and saving it.
    Restore,
    /// The way of one exit.
    Exit,
    /// What a machine takes beyond its guest's memory.
    Memory,
    /// What each of many machines from one snapshot takes.
    Density,
    /// A guest's disk.
    Disk,
    /// A guest's network and sockets.
    Net,
}

impl Topic {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Boot,
        Self::Restore,
        Self::Exit,
        Self::Memory,
        Self::Density,
        Self::Disk,
        Self::Net,
    ];

    fn plan(self) -> &'static Plan {
        match self {
            Self::Boot => &boot::PLAN,
            Self::Restore => &restore::PLAN,
            Self::Exit => &exit::PLAN,
            Self::Memory => &memory::PLAN,
            Self::Density => &density::PLAN,
            Self::Disk => &disk::PLAN,
            Self::Net => &net::PLAN,
        }
    }

    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Restore => "restore",
            Self::Exit => "exit",
            Self::Memory => "memory",
            Self::Density => "density",
            Self::Disk => "disk",
            Self::Net => "net",
        }
    }
}

/// Why there is no report.
#[derive(Debug, Error)]
pub enum BenchError {
    /// A name that nobody knows how to drive.
    #[error("--vs {0}=...: no such program to compare with; the names are {names}", names = RIVALS.join(", "))]
    Unknown(String),
    /// Two columns of one name.
    #[error("--vs {0}=...: it is there twice; compare one after the other")]
    Twice(String),
    /// No turns.
    #[error("--runs 0 measures nothing; ask for --runs 10")]
    NoRuns,
    /// No time.
    #[error("--timeout 0 leaves no time; leave it out, or give seconds")]
    NoTime,
    /// What all start from.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The program does not find itself.
    #[error("cannot find this program's own file: {0}")]
    Program(std::io::Error),
    /// Nobody has a figure.
    #[error("nothing could be measured: {0}")]
    Nothing(String),
    /// A signal came.
    #[error("stopped; nothing is left, and no figure is kept")]
    Stopped,
}

/// Hears how far it is: so many steps of so many are done, and whose turn it is.
pub type Progress<'a> = dyn FnMut(usize, usize, &str) + 'a;

/// What all turns share.
pub struct Bench {
    stage: Stage,
    limits: Limits,
}

/// Measure `topic`. `command` is what the report says that it was printed by.
///
/// # Errors
/// See [`BenchError`].
pub fn measure(
    topic: Topic,
    settings: &Settings,
    command: Vec<String>,
    progress: &mut Progress,
) -> Result<Report, BenchError> {
    let who = takers(settings)?;
    let bench = Bench {
        // In memory, where the disk has no part in it.
        stage: Stage::within("/dev/shm".as_ref(), settings.bzimage.clone())?,
        limits: Limits {
            time: Duration::from_secs(settings.timeout),
            ..Limits::default()
        },
    };
    let plan = topic.plan();
    let host = Host::examine();
    let (subjects, figures) = turns::take(&bench, plan, &who, settings.runs, progress)?;
    let samples = figures.iter().flat_map(|figure| &figure.cells);
    if samples.clone().all(|cell| cell.samples.is_empty()) {
        let why = subjects.iter().filter_map(|one| one.left_out.as_deref());
        return Err(BenchError::Nothing(why.take(1).collect()));
    }
    let mut warnings = Warning::of_run(&host, settings.runs);
    for figure in &figures {
        warnings.extend(figure.cells.iter().filter_map(|cell| {
            let name = format!("{}, {}", figure.name, cell.subject);
            Warning::of_figure(&name, &cell.summary?)
        }));
    }
    Ok(Report {
        format: FORMAT,
        topic,
        command,
        host,
        settings: settings.clone(),
        method: plan.method.into(),
        subjects,
        warnings: warnings.iter().map(ToString::to_string).collect(),
        figures,
    })
}

/// hull, and who it is compared with.
fn takers(settings: &Settings) -> Result<Vec<Who>, BenchError> {
    if settings.runs == 0 {
        return Err(BenchError::NoRuns);
    }
    if settings.timeout == 0 {
        return Err(BenchError::NoTime);
    }
    let mut who = vec![Who {
        name: "hull".into(),
        kind: Kind::Own,
        program: std::env::current_exe().map_err(BenchError::Program)?,
    }];
    for Rival { name, program } in &settings.rivals {
        let kind = match name.as_str() {
            "hull" => Kind::Hull,
            "firecracker" => Kind::Firecracker,
            known if RIVALS.contains(&known) => Kind::Other,
            unknown => return Err(BenchError::Unknown(unknown.into())),
        };
        let column = match kind {
            Kind::Hull => OTHER_HULL,
            _ => name,
        };
        if who.iter().any(|one| one.name == column) {
            return Err(BenchError::Twice(name.clone()));
        }
        who.push(Who {
            name: column.into(),
            kind,
            program: program.clone(),
        });
    }
    Ok(who)
}

impl Bench {
    /// A file of this run's own, in memory.
    fn path(&self, name: &str) -> PathBuf {
        self.stage.path(name)
    }
}
