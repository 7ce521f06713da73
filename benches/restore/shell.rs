//! A guest with a shell that answers: each line comes back with a word before it, and the end of its
//! input is its end. Nothing is started for that, so that it costs the guest little.

use std::path::{Path, PathBuf};

use super::files::{Files, MEMORY_MIB};
use super::process::Process;
use super::{Result, SETTLE};

const SCRIPT: &str = "echo up; while read line; do echo got $line; done; echo bye";

/// Boot one and save it while it is idle.
pub fn save(files: &Files) -> Result<PathBuf> {
    let memory = format!("{MEMORY_MIB}M");
    let flags = ["run", "--cold", "--name", "shell", "--memory", &memory];
    let mut hull = files.hull(&flags);
    hull.args(["--", "/bin/sh", "-c", SCRIPT]);
    let mut process = files.start(&mut hull)?;
    process.until("up\n")?;
    std::thread::sleep(SETTLE);
    let (_, _, dir) = files.snapshot("shell")?;
    process.close_input();
    process.end("bye\n")?;
    Ok(dir)
}

/// Go on from it, as the machine `name`.
pub fn restore(files: &Files, dir: &Path, name: &str) -> Result<Process> {
    let mut hull = files.hull(&["restore", "--name", name]);
    files.start(hull.arg(dir))
}

/// Have it answer; when it did.
pub fn ask(process: &mut Process, word: &str) -> Result<f64> {
    process.write(&format!("{word}\n"))?;
    process.until(&format!("got {word}\n"))
}
