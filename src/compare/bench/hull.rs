//! hull as a program that is measured: its flags, its report, its snapshots.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::Bench;
use super::restore::{Clone, Saved};
use super::turns::Trouble;
use crate::compare::measure::timed::{self, Running, run};
use crate::compare::subject::guest::{LINE, TYPED};
use crate::compare::subject::{self, MEMORY_MIB, guest};

/// How long a guest that is to be idle has for that, before it is saved.
pub const SETTLE: Duration = Duration::from_secs(2);
const IDLE: &str = "idle";

/// `program` with these flags. Templates, records and temporary files are this run's own.
pub fn command(bench: &Bench, program: &Path, words: &[&str]) -> Command {
    let mut hull = Command::new(program);
    hull.args(words).env("HULL_CACHE", bench.path("cache"));
    hull.env("XDG_RUNTIME_DIR", bench.path("run"));
    hull.env("TMPDIR", bench.path("tmp"));
    hull
}

/// What a run says in its `--json`, when it is over.
pub fn report(path: &Path) -> Result<Value, Trouble> {
    let text = fs::read(path)?;
    serde_json::from_slice(&text).map_err(|error| Trouble::Other(format!("its --json: {error}")))
}

/// A time of a report, in milliseconds.
pub fn ms(report: &Value, key: &str) -> Result<f64, Trouble> {
    let missing = || Trouble::Other(format!("its --json has no {key}"));
    report[key].as_f64().ok_or_else(missing)
}

/// The initial RAM disk of an idle guest, written when it is first asked for.
pub fn idle_initrd(bench: &Bench) -> Result<PathBuf, Trouble> {
    let path = bench.path("initrd.idle");
    if !path.exists() {
        let initramfs = bench.stage.initramfs()?;
        fs::write(&path, guest::initrd(&initramfs, &guest::idle())?)?;
    }
    Ok(path)
}

/// The command line of its kernel.
pub fn idle_words() -> String {
    format!("{} rdinit=/{}", subject::CMDLINE, guest::INIT)
}

/// `hull run` of the idle guest as all monitors have it, as the machine `name`.
pub fn idle(bench: &Bench, program: &Path, name: &str) -> Result<Command, Trouble> {
    let mut hull = command(bench, program, &["run", "--name", name]);
    hull.arg("--memory").arg(format!("{MEMORY_MIB}M"));
    hull.arg("--cmdline").arg(idle_words());
    hull.arg("--initrd").arg(idle_initrd(bench)?);
    hull.arg(bench.stage.vmlinux()?);
    Ok(hull)
}

/// The idle guest as a snapshot of hull's.
pub struct Snapshot<'a> {
    bench: &'a Bench,
    program: &'a Path,
    dir: PathBuf,
}

impl<'a> Snapshot<'a> {
    /// Of `column`'s program, nothing saved yet.
    pub fn new(bench: &'a Bench, program: &'a Path, column: &str) -> Self {
        Self {
            bench,
            program,
            dir: bench.path(&format!("{column}.snapshot")),
        }
    }

    /// How long it took and the guest stood still.
    fn order_save(&self, name: &str, dir: &Path) -> Result<[f64; 2], Trouble> {
        let mut hull = command(self.bench, self.program, &["snapshot", name, "--json"]);
        let timed = run(hull.arg(dir), self.bench.limits)?;
        let took = timed.end.as_secs_f64() * 1e3;
        let told: Value = serde_json::from_slice(&timed.output)
            .map_err(|error| Trouble::Other(format!("hull snapshot --json: {error}")))?;
        Ok([took, ms(&told, "stood_still_us")? / 1e3])
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.bench
            .path("run")
            .join("hull")
            .join(name)
            .join("socket")
    }
}

impl Saved for Snapshot<'_> {
    fn save(&mut self) -> Result<(), Trouble> {
        let mut hull = idle(self.bench, self.program, IDLE)?;
        let mut running = Running::start(&mut hull, self.bench.limits)?;
        running.until(LINE)?;
        timed::pause(SETTLE)?;
        self.order_save(IDLE, &self.dir)?;
        Ok(running.terminate()?)
    }

    fn go_on(&mut self, name: &str) -> Result<Clone, Trouble> {
        let report = self.bench.path(&format!("{name}.json"));
        let words = ["restore", "--name", name, "--json"];
        let mut hull = command(self.bench, self.program, &words);
        hull.arg(&report).arg(&self.dir);
        let mut running = Running::start_with(&mut hull, self.bench.limits, TYPED)?;
        // Until somebody at its socket knows that the guest runs.
        let mut stream = running.connect(&self.socket(name))?;
        stream.write_all(b"{\"version\":1,\"request\":\"status\"}\n")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        let answered = running.elapsed();
        if !answer.contains("running") {
            return Err(Trouble::Other(format!("its status is {}", answer.trim())));
        }
        Ok(Clone { running, answered })
    }

    fn save_again(&mut self, name: &str) -> Result<[f64; 2], Trouble> {
        self.order_save(name, &self.dir.with_extension("again"))
    }

    fn first_run(&mut self, name: &str, clone: Clone) -> Result<Option<f64>, Trouble> {
        clone.running.terminate()?;
        let report = report(&self.bench.path(&format!("{name}.json")))?;
        ms(&report, "first_instruction_ms").map(Some)
    }
}
