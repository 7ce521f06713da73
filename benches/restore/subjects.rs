//! What is compared: each does its work once, and says how long it took.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::files::{Files, MEMORY_MIB};
use super::firecracker::Firecracker;
use super::guest::{LINE, TYPED};
use super::process::Process;
use super::{COMMAND, Result, SETTLE};

/// Figures in milliseconds, by the names in [`Subject::figures`].
type Measure<'a> = Box<dyn FnMut() -> Result<Vec<f64>> + 'a>;

/// One of those that take turns.
pub struct Subject<'a> {
    pub figures: &'static [&'static str],
    /// Done once, before the first turn.
    prepare: Box<dyn FnMut() -> Result<()> + 'a>,
    measure: Measure<'a>,
    pub times: Vec<Vec<f64>>,
    /// Why it takes part no more.
    pub skipped: Option<String>,
    /// Turns that failed, and how the last did.
    pub lost: usize,
    pub trouble: Option<String>,
}

impl<'a> Subject<'a> {
    fn new(
        figures: &'static [&'static str],
        prepare: impl FnMut() -> Result<()> + 'a,
        measure: impl FnMut() -> Result<Vec<f64>> + 'a,
    ) -> Self {
        Self {
            figures,
            prepare: Box::new(prepare),
            measure: Box::new(measure),
            times: vec![Vec::new(); figures.len()],
            skipped: None,
            lost: 0,
            trouble: None,
        }
    }

    /// Prepare it, and once do what is measured later: what is read is in memory then, and what
    /// does not work here is known.
    pub fn warm_up(&mut self) {
        let once = (self.prepare)().and_then(|()| (self.measure)());
        self.skipped = once.err().map(|error| error.to_string());
    }

    pub fn turn(&mut self) {
        if self.skipped.is_some() {
            return;
        }
        match (self.measure)() {
            Ok(figures) => {
                for (times, figure) in self.times.iter_mut().zip(figures) {
                    times.push(figure);
                }
            }
            Err(error) => {
                self.lost += 1;
                self.trouble = Some(error.to_string());
            }
        }
    }
}

pub const WARM: &str = "hull run, warm";
pub const COLD: &str = "hull run, cold";
pub const CRUN: &str = "crun run";
pub const RUNC: &str = "runc run";
pub const PEER_COLD: &str = "Firecracker, cold";
pub const FIRST: &str = "hull restore: first KVM_RUN, by its --json";
pub const ANSWERED: &str = "hull restore: status asked and answered";
pub const ECHOED: &str = "hull restore: the guest answers";
pub const PEER_ANSWERED: &str = "Firecracker: load and resume answered";
pub const PEER_ECHOED: &str = "Firecracker: the guest answers";
pub const PEER_OWN: &str = "Firecracker: of that, loading, by its log";

/// From exec to the end of one command.
pub fn of_start<'a>(files: &'a Files, peer: Option<&'a Firecracker>) -> Vec<Subject<'a>> {
    let run = move |words: &[&str]| -> Result<Vec<f64>> {
        let mut hull = files.hull(words);
        hull.arg("--").args(COMMAND);
        Ok(vec![files.start(&mut hull)?.end("hi\n")?])
    };
    let mut subjects = vec![
        // The first makes the template.
        Subject::new(
            &[WARM],
            move || run(&["run"]).map(drop),
            move || run(&["run"]),
        ),
        Subject::new(&[COLD], || Ok(()), move || run(&["run", "--cold"])),
        container(files, "crun", &[CRUN]),
        container(files, "runc", &[RUNC]),
    ];
    if let Some(peer) = peer {
        let cold = || Ok(vec![peer.cold()?]);
        subjects.push(Subject::new(&[PEER_COLD], || Ok(()), cold));
    }
    subjects
}

/// From exec to a guest that goes on.
pub fn of_restore<'a>(files: &'a Files, peer: Option<&'a Firecracker>) -> Vec<Subject<'a>> {
    let mut subjects = vec![Subject::new(
        &[FIRST, ANSWERED, ECHOED],
        || save_idle(files),
        || restore_idle(files),
    )];
    if let Some(peer) = peer {
        let restore = || Ok(peer.restore(None)?.to_vec());
        let figures = &[PEER_ANSWERED, PEER_ECHOED];
        subjects.push(Subject::new(figures, || peer.save(), restore));
        let own = || Ok(vec![peer.own_figure()?]);
        subjects.push(Subject::new(&[PEER_OWN], || Ok(()), own));
    }
    subjects
}

/// A bundle as the runtime's own `spec` has it, but for the command and the terminal.
fn container<'a>(
    files: &'a Files,
    runtime: &'static str,
    figures: &'static [&'static str],
) -> Subject<'a> {
    let bundle = files.path(runtime);
    let root = files.path(&format!("{runtime}.state"));
    let id = format!("hull-bench-{}", std::process::id());
    let prepare = {
        let bundle = bundle.clone();
        move || make_bundle(runtime, &bundle)
    };
    let measure = move || {
        let command = |verb: &[&str]| {
            let mut command = Command::new(runtime);
            command.arg("--root").arg(&root).args(verb);
            command
        };
        let mut run = command(&["run", "--bundle"]);
        run.arg(&bundle).arg(&id);
        let time = Process::start(&mut run, &files.path("err"))?.end("hi\n");
        if time.is_err() {
            let _ = command(&["delete", "--force", &id]).output();
        }
        Ok(vec![time?])
    };
    Subject::new(figures, prepare, measure)
}

fn make_bundle(runtime: &str, bundle: &Path) -> Result<()> {
    let bin = bundle.join("rootfs/bin");
    fs::create_dir_all(&bin)?;
    let busybox = host_busybox().ok_or("no busybox: install the package busybox-static")?;
    fs::copy(busybox, bin.join("busybox"))?;
    let spec = Command::new(runtime)
        .arg("spec")
        .current_dir(bundle)
        .output();
    spec.map_err(|error| format!("{runtime}: {error}; install the package {runtime}"))?;
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(COMMAND);
    Ok(fs::write(path, config.to_string())?)
}

fn host_busybox() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    let mut paths = std::env::split_paths(&paths).map(|folder| folder.join("busybox"));
    paths.find(|path| path.is_file())
}

const IDLE: &str = "idle";

/// Boot the idle guest as Firecracker does, and save it.
fn save_idle(files: &Files) -> Result<()> {
    let memory = format!("{MEMORY_MIB}M");
    let mut hull = files.hull(&["run", "--name", IDLE, "--memory", &memory, "--cmdline"]);
    hull.arg(files.words()).arg(files.kernel());
    hull.arg("--initrd").arg(files.path("idle"));
    let mut process = files.start(&mut hull)?;
    process.until(LINE)?;
    std::thread::sleep(SETTLE);
    files.snapshot(IDLE)?;
    process.terminate()
}

fn restore_idle(files: &Files) -> Result<Vec<f64>> {
    let report = files.path("report");
    let mut hull = files.hull(&["restore", "--name", "again", "--json"]);
    hull.arg(&report)
        .arg(files.path(&format!("{IDLE}.snapshot")));
    let mut process = files.start(&mut hull)?;
    process.write(TYPED)?;
    // As Firecracker's figure: until somebody at its socket knows that the guest runs.
    let mut stream = process.connect(&files.socket("again"))?;
    stream.write_all(b"{\"version\":1,\"request\":\"status\"}\n")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    let answered = process.ms();
    if !answer.contains("running") {
        return Err(format!("its status is {}", answer.trim()).into());
    }
    let echoed = process.until(TYPED)?;
    process.terminate()?;
    let report: Value = serde_json::from_slice(&fs::read(&report)?)?;
    let first = report["first_instruction_ms"].as_f64();
    Ok(vec![
        first.ok_or("its report has no first instruction")?,
        answered,
        echoed,
    ])
}
