//! Many machines from one snapshot, one after the other: what stays.
//!
//! Each is a process, with which its descriptors and memory go; what can stay are files, sockets,
//! processes, and what the kernel holds.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::{Value, json};

use super::figures::middle;
use super::files::Files;
use super::process::Process;
use super::{Result, shell};

/// The rows of the table, as JSON names them and as they are printed.
const ROWS: [(&str, &str); 10] = [
    ("answer_ms", "exec to its answer, middle, ms"),
    ("resident_kib", "its peak resident memory, middle, KiB"),
    ("descriptors", "its descriptors, middle"),
    ("records", "files in the folder of records"),
    ("temporary", "files in TMPDIR"),
    ("cache", "files in the cache of templates"),
    ("snapshot", "files in the snapshot's folder"),
    ("processes", "processes of hull"),
    ("sockets", "sockets with a path of hull's"),
    ("open_files", "open files on the whole machine"),
];
/// Lines of the table.
const PARTS: usize = 5;

/// Restore so often, and count in between.
pub fn measure(files: &Files, restores: usize, print: bool) -> Result<Value> {
    let dir = shell::save(files)?;
    let mut table = Vec::new();
    // The first line: nothing has been restored.
    table.push((0, line(files, &dir, [Vec::new(), Vec::new(), Vec::new()])?));
    let mut done = 0;
    for part in 1..=PARTS {
        let mut own = [Vec::new(), Vec::new(), Vec::new()];
        while done < restores * part / PARTS {
            let figures = once(files, &dir)?;
            own.iter_mut()
                .zip(figures)
                .for_each(|(own, figure)| own.push(figure));
            done += 1;
        }
        table.push((done, line(files, &dir, own)?));
    }
    if print {
        show(&table);
    }
    let lines = table.iter().map(|(done, figures)| {
        let mut told = json!({"restores": done});
        for ((key, _), figure) in ROWS.iter().zip(figures) {
            told[key] = json!(figure);
        }
        told
    });
    Ok(lines.collect())
}

/// A machine that answers and ends.
fn once(files: &Files, dir: &Path) -> Result<[f64; 3]> {
    let mut machine = shell::restore(files, dir, "again")?;
    let answer = shell::ask(&mut machine, "x")?;
    let figures = [answer, peak_kib(&machine)?, descriptors(&machine)? as f64];
    machine.close_input();
    machine.end("bye\n")?;
    Ok(figures)
}

fn line(files: &Files, dir: &Path, own: [Vec<f64>; 3]) -> Result<Vec<Option<f64>>> {
    let mut line: Vec<_> = own.iter().map(|figures| middle(figures)).collect();
    let folders = [
        files.path("run"),
        files.path("tmp"),
        files.path("cache"),
        dir.into(),
    ];
    for folder in folders {
        line.push(Some(entries(&folder)? as f64));
    }
    line.push(Some(processes(files)? as f64));
    let folder = files.path("").to_string_lossy().into_owned();
    let sockets = fs::read_to_string("/proc/net/unix")?;
    let sockets = sockets.lines().filter(|line| line.contains(&folder));
    line.push(Some(sockets.count() as f64));
    let open = fs::read_to_string("/proc/sys/fs/file-nr")?;
    line.push(
        open.split_whitespace()
            .next()
            .and_then(|number| number.parse().ok()),
    );
    Ok(line)
}

fn show(table: &[(usize, Vec<Option<f64>>)]) {
    print!("\n{:<40}", "restores in a row");
    table.iter().for_each(|(done, _)| print!("{done:>10}"));
    for (row, (_, name)) in ROWS.iter().enumerate() {
        print!("\n  {name:<38}");
        for figure in table.iter().map(|(_, figures)| figures[row]) {
            match figure {
                Some(figure) => print!("{figure:>10.0}"),
                None => print!("{:>10}", "-"),
            }
        }
    }
    println!();
}

/// All files below a folder.
fn entries(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        count += 1;
        if entry.file_type()?.is_dir() {
            count += entries(&entry.path())?;
        }
    }
    Ok(count)
}

/// Processes that run this bench's copy of hull.
fn processes(files: &Files) -> Result<usize> {
    let hull = fs::metadata(files.path("hull"))?;
    let is_hull = |entry: &fs::DirEntry| {
        let about = fs::metadata(entry.path().join("exe"));
        about.is_ok_and(|about| (about.dev(), about.ino()) == (hull.dev(), hull.ino()))
    };
    Ok(fs::read_dir("/proc")?.flatten().filter(is_hull).count())
}

fn peak_kib(machine: &Process) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", machine.id()))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.ok_or("no VmHWM")?.parse()?)
}

fn descriptors(machine: &Process) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", machine.id()))?.count())
}
