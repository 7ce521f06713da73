//! `--profile`: where the guest's time went, as a flame graph or as folded stacks.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use super::headings::OUTPUT;
use super::output::say;
use super::output_file::OutputFile;
use crate::profile::{Form, Profile};
use crate::symbols;

#[derive(clap::Args)]
#[command(next_help_heading = OUTPUT)]
pub struct Flags {
    /// Sample what the vCPUs do, and write a flame graph (FILE.svg) or folded stacks for other tools
    /// (FILE.folded). Names come from the System.map beside the kernel, or from its own symbols.
    #[arg(long, value_name = "FILE", value_parser = form_of)]
    profile: Option<Target>,
    /// Samples a second for --profile, 1 to 10000.
    #[arg(
        long,
        value_name = "HZ",
        default_value = "1000",
        value_parser = clap::value_parser!(u32).range(1..=10_000),
        requires = "profile"
    )]
    profile_rate: u32,
}

/// The file and its format.
#[derive(Clone)]
struct Target {
    path: PathBuf,
    form: Form,
}

/// A profile that is written after the run.
pub struct Open {
    /// The samples of the vCPUs.
    pub profile: Arc<Profile>,
    form: Form,
    file: OutputFile,
}

impl Flags {
    pub fn open(&self, symbols: Option<symbols::Source>) -> anyhow::Result<Option<Open>> {
        let Some(Target { path, form }) = &self.profile else {
            return Ok(None);
        };
        Ok(Some(Open {
            profile: Arc::new(Profile::new(self.profile_rate, symbols)),
            form: *form,
            file: OutputFile::open("--profile", path)?,
        }))
    }
}

impl Open {
    /// Write it and print a line on how much there is, or why there is none. Returns whether it is
    /// written.
    pub fn tell(self) -> bool {
        match self.write() {
            Ok(line) => {
                say(&line);
                true
            }
            Err(error) => {
                say(&format!("{error:#}; the profile is lost"));
                false
            }
        }
    }

    fn write(self) -> anyhow::Result<String> {
        let totals = self.profile.totals();
        let path = self.file.path().display();
        if totals.ticks == 0 {
            return Ok(format!(
                "profile: the guest ended before the first sample; {path} was not written"
            ));
        }
        let mut bytes = Vec::new();
        self.profile.write(self.form, &mut bytes)?;
        self.file.write(&bytes)?;
        let lost = match totals.lost {
            0 => String::new(),
            lost => format!(", {lost} lost"),
        };
        Ok(format!("profile: {} samples{lost} in {path}", totals.ticks))
    }
}

fn form_of(text: &str) -> Result<Target, String> {
    let path = PathBuf::from(text);
    let form = match path.extension().and_then(OsStr::to_str) {
        Some("svg") => Form::FlameGraph,
        Some("folded") => Form::Folded,
        _ => return Err("name it FILE.svg for a flame graph, FILE.folded for other tools".into()),
    };
    Ok(Target { path, form })
}
