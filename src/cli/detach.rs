//! `hull run -d`: a machine in the background.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, bail};

use super::headings::{BACKGROUND, MACHINE};
use super::output::print;
use super::process::Process;
use crate::config::machine::parse_name;
use crate::config::size;
use crate::fleet::kept::{Kept, KeptRecord, now};
use crate::fleet::log::{Driver, MAX_FILES, Rotation};
use crate::fleet::restart::RestartPolicy;
use crate::launch::check::check;
use crate::supervisor::keeper::{self, Kind};

/// Smallest size of a log's file, in bytes.
const MIN_SIZE: u64 = 1 << 10;

#[derive(clap::Args)]
#[command(next_help_heading = BACKGROUND)]
pub struct Detach {
    /// The machine's name for hull ps, stop and inspect; its process id when left out.
    #[arg(long, value_name = "NAME", value_parser = parse_name, help_heading = MACHINE)]
    name: Option<String>,
    /// Start it in the background, and print its name once the command runs: hull logs, wait, exec, stop and
    /// rm take it from there.
    #[arg(short, long)]
    detach: bool,
    /// Remove what is known of it at its end; of one in the foreground nothing is kept anyway.
    #[arg(long)]
    rm: bool,
    /// Where its output goes: json-file, journald or none.
    #[arg(
        long,
        value_name = "NAME",
        value_enum,
        default_value = "json-file",
        hide_possible_values = true,
        requires = "detach"
    )]
    log_driver: Driver,
    /// max-size=SIZE begins a new file of the log, max-file=N is how many there are.
    #[arg(long, value_name = "KEY=VALUE", requires = "detach")]
    log_opt: Vec<String>,
    /// What you say of it, kept with it. May be repeated. Example: --label team=web
    #[arg(
        short = 'l',
        long,
        value_name = "KEY[=VALUE]",
        value_parser = parse_label,
        requires = "detach"
    )]
    label: Vec<(String, String)>,
    /// Start it again when it has ended: no, on-failure (a status other than 0; on-failure:N at most N times), always,
    /// or unless-stopped. It waits 0.1 s before, and twice as long each time up to a minute. hull stop and kill end
    /// that [default: no]
    #[arg(long, value_name = "POLICY", value_parser = RestartPolicy::from_str, requires = "detach")]
    restart: Option<RestartPolicy>,
    /// Start this ended one again; for hull restart.
    #[arg(long, value_name = "NAME", hide = true, requires = "detach")]
    again: Option<String>,
}

/// Which process this is.
pub enum Begun {
    /// The one that runs the machine of this name, and where to report that its command runs.
    Machine(Option<String>, Option<Arc<OwnedFd>>),
    /// One that has done its part; the status to exit with.
    Done(u8),
}

impl Detach {
    /// Go into the background, if that is wanted, as the machine of the name that was given, or under a new
    /// one; with the input and the terminal that `process` asks for, and the volumes of these names. The
    /// caller has one thread.
    ///
    /// # Errors
    /// The name is taken, or there is no place for its log.
    pub fn begin(&self, process: &Process, volumes: Vec<String>) -> anyhow::Result<Begun> {
        if !self.detach {
            return Ok(Begun::Machine(self.name.clone(), None));
        }
        let restart = self.restart.unwrap_or_default();
        if self.rm && restart != RestartPolicy::No {
            bail!("conflicting options: --restart {restart} and --rm; leave one of them out");
        }
        let (kept, lock) = match &self.again {
            Some(again) => Kept::reopen(again)?,
            None => {
                let name = self.name.clone().map_or_else(new_name, Ok);
                Kept::create(self.record(name?, process, volumes)?)?
            }
        };
        let kind = keeper::keep(&kept, lock, check);
        let kind = kind.inspect_err(|_| {
            if self.again.is_none() {
                let _ = kept.remove();
            }
        });
        let name = kept.record.name;
        let kind = kind.with_context(|| format!("machine {name}"))?;
        Ok(match kind {
            Kind::Machine(name, running) => Begun::Machine(Some(name), Some(Arc::new(running))),
            Kind::Keeper => Begun::Done(0),
            Kind::Started => {
                print(format!("{name}\n").as_bytes())?;
                Begun::Done(0)
            }
            Kind::Failed(status, errors) => {
                let _ = io::stderr().write_all(&errors);
                Begun::Done(status)
            }
        })
    }

    fn record(
        &self,
        name: String,
        process: &Process,
        volumes: Vec<String>,
    ) -> anyhow::Result<KeptRecord> {
        Ok(KeptRecord {
            name,
            created: now(),
            arguments: std::env::args_os().map(OsString::into_vec).collect(),
            folder: std::env::current_dir().context("cannot tell the current folder")?,
            driver: self.log_driver,
            rotation: self.rotation()?,
            remove: self.rm,
            volumes,
            labels: self.label.iter().cloned().collect(),
            input: process.interactive,
            terminal: process.tty,
            restart: self.restart.unwrap_or_default(),
        })
    }

    fn rotation(&self) -> anyhow::Result<Rotation> {
        let mut rotation = Rotation::default();
        for option in &self.log_opt {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            match key {
                "max-size" => {
                    let parsed = size::parse(value).filter(|size| *size >= MIN_SIZE);
                    let parsed = parsed.with_context(|| {
                        format!(
                            "--log-opt {option}: write a size of 1K or more, as in max-size=10M"
                        )
                    })?;
                    rotation.max_size = Some(parsed);
                }
                "max-file" => {
                    let parsed = value.parse().ok().filter(|n| (1..=MAX_FILES).contains(n));
                    rotation.max_file = parsed.with_context(|| {
                        format!("--log-opt {option}: write a number from 1 to {MAX_FILES}")
                    })?;
                }
                _ => bail!("--log-opt {option}: the options are max-size=SIZE and max-file=N"),
            }
        }
        if rotation.max_file > 1 && rotation.max_size.is_none() {
            bail!("--log-opt max-file: a second file needs max-size=SIZE, too");
        }
        Ok(rotation)
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    match key.is_empty() {
        true => Err("write KEY=VALUE, or KEY for an empty value".into()),
        false => Ok((key.into(), value.into())),
    }
}

/// A name that no machine has.
fn new_name() -> anyhow::Result<String> {
    let mut bytes = [0; 5];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
    Ok(format!("m{}", digits.collect::<String>()))
}
