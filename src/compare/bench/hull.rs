//! hull as a measured program: its reports and its snapshots.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::error::BenchError;
use super::plan::{Bench, Program};
use super::resumed::{ResumedGuest, SETTLE_TIME, SavedGuest, idle_machine};
use crate::compare::measure::stop::pause;
use crate::compare::measure::timed::{Running, run};
use crate::compare::subject::guest::{LINE, TYPED};
use crate::compare::subject::hull::command;
use crate::compare::subject::monitor::Launch;
use crate::compare::subject::monitors::HULL;

const IDLE: &str = "idle";

/// Runs hull with `--json` for its report, and the given words after it.
pub fn run_with_report(
    bench: &Bench,
    program: &Program,
    words: &[&str],
    rest: &[&Path],
) -> Result<(Value, f64), BenchError> {
    let path = bench.path("report");
    let mut hull = command(&bench.stage, &program.path, words);
    hull.arg("--json").arg(&path).args(rest);
    let end = run(&mut hull, bench.timeout)?.end;
    Ok((report(&path)?, end.as_secs_f64() * 1e3))
}

fn report(path: &Path) -> Result<Value, BenchError> {
    parse(&fs::read(path)?)
}

fn parse(json: &[u8]) -> Result<Value, BenchError> {
    let invalid = |error| BenchError::Other(format!("the report of its --json: {error}"));
    serde_json::from_slice(json).map_err(invalid)
}

pub fn number(report: &Value, key: &str) -> Result<f64, BenchError> {
    let missing = || BenchError::Other(format!("the report of its --json has no {key}"));
    report[key].as_f64().ok_or_else(missing)
}

/// The idle guest as a snapshot of hull.
pub struct Snapshot<'a> {
    bench: &'a Bench,
    program: &'a Program,
    folder: PathBuf,
}

impl<'a> Snapshot<'a> {
    pub fn new(bench: &'a Bench, program: &'a Program) -> Self {
        Self {
            bench,
            program,
            folder: bench.path(&format!("{}.snapshot", program.name)),
        }
    }

    fn hull(&self, words: &[&str]) -> Command {
        command(&self.bench.stage, &self.program.path, words)
    }

    fn save_to(&self, name: &str, folder: &Path) -> Result<[f64; 2], BenchError> {
        let mut hull = self.hull(&["snapshot", name, "--json"]);
        let timed = run(hull.arg(folder), self.bench.timeout)?;
        let paused_us = number(&parse(&timed.output)?, "stood_still_us")?;
        Ok([timed.end.as_secs_f64() * 1e3, paused_us / 1e3])
    }

    fn report(&self, name: &str) -> PathBuf {
        self.bench.path(&format!("{name}.json"))
    }
}

impl SavedGuest for Snapshot<'_> {
    fn save(&mut self) -> Result<(), BenchError> {
        let mut hull = (HULL.command)(&Launch {
            program: &self.program.path,
            machine: &idle_machine(self.bench)?,
            stage: &self.bench.stage,
            id: IDLE,
            without_filters: false,
        })?;
        let mut running = Running::start(&mut hull, self.bench.timeout, None)?;
        running.until(LINE)?;
        pause(SETTLE_TIME)?;
        self.save_to(IDLE, &self.folder)?;
        Ok(running.terminate()?)
    }

    fn restore(&mut self, name: &str) -> Result<ResumedGuest, BenchError> {
        let mut hull = self.hull(&["restore", "--name", name, "--json"]);
        hull.arg(self.report(name)).arg(&self.folder);
        let mut running = Running::start(&mut hull, self.bench.timeout, Some(TYPED))?;
        let socket = self.bench.path(&format!("run/hull/{name}/socket"));
        let mut stream = running.connect(&socket)?;
        stream.write_all(b"{\"version\":1,\"request\":\"status\"}\n")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        let answered = running.elapsed();
        if !answer.contains("running") {
            let status = answer.trim();
            return Err(BenchError::Other(format!("its status is {status}")));
        }
        Ok(ResumedGuest { running, answered })
    }

    fn save_again(&mut self, name: &str) -> Result<[f64; 2], BenchError> {
        self.save_to(name, &self.folder.with_extension("again"))
    }

    fn first_run(&mut self, name: &str, guest: ResumedGuest) -> Result<Option<f64>, BenchError> {
        guest.running.terminate()?;
        let report = report(&self.report(name))?;
        number(&report, "first_instruction_ms").map(Some)
    }
}
