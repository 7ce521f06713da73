//! What a subject needs on disk.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::sides::{Side, cannot_tell, ranked};
use crate::compare::figure::{Better, Figure, Unit};
use crate::compare::report::saved::{Row, Verdict};
use crate::compare::subject::{Kind, Part};
use crate::compare::turns::{IDLE, Turns, UP, words};

/// Bytes of the standard answer's "gigabytes".
const GIGABYTE: f64 = 1e9;

/// In the report.
pub const NAME: &str = "footprint";

/// Add up the files.
pub fn measure(turns: &mut Turns) -> Row {
    let entrants = turns.entrants();
    let (mut all, mut images, mut programs) = (Vec::new(), Vec::new(), Vec::new());
    let mut notes = Vec::new();
    for (done, index) in entrants.iter().copied().enumerate() {
        turns.step(done, entrants.len(), index, "files");
        let name = turns.name(index);
        let parts = turns.subject(index).parts();
        let is_image = |part: &&Part| !part.what.starts_with("program");
        let image: u64 = parts.iter().filter(is_image).map(|part| part.bytes).sum();
        let mapped = mapped(turns, index, &parts);
        let sizes = mapped.as_ref().ok().map(|bytes| *bytes as f64);
        images.push((name.clone(), vec![image as f64]));
        all.push((
            name.clone(),
            sizes.iter().map(|bytes| bytes + image as f64).collect(),
        ));
        programs.push((name, sizes.into_iter().collect()));
        notes.push(mapped.err());
    }
    let figure = |name: &str, samples: &[(String, Vec<f64>)]| {
        let samples = samples
            .iter()
            .map(|(name, samples)| (name.as_str(), samples.clone()));
        let mut figure = Figure::of_samples(name, Unit::Bytes, Better::Less, samples);
        for (cell, note) in figure.cells.iter_mut().zip(&notes) {
            cell.note = note.clone().filter(|_| cell.samples.is_empty());
        }
        figure
    };
    let figures = vec![
        figure("bytes on disk, in all", &all),
        figure(
            "of them, image: files of the guest or container, its kernel, template",
            &images,
        ),
        figure("of them, programs and libraries that run", &programs),
    ];
    let sides = turns.sides();
    Row {
        name: NAME.into(),
        claim_machine: "gigabytes".into(),
        claim_container: "megabytes".into(),
        method: "Blocks on disk. The image is the root file system that all subjects share in content \
                 (one busybox), of a virtual machine the kernel and initial RAM disk that its monitor is \
                 given; hull's are packed inside of its program. hull-warm's template, the saved machine, \
                 is counted as image. Programs and libraries are the files that the processes of an idle \
                 instance have mapped executable (/proc/PID/maps), each once. An engine's daemon is not \
                 in it."
            .into(),
        verdict: verdict(&figures[0], &sides),
        figures,
    }
}

/// Bytes of the files that run, beside those that are in `parts` as images.
fn mapped(turns: &mut Turns, index: usize, parts: &[Part]) -> Result<u64, String> {
    let instance = turns
        .start(index, &words(&IDLE), UP)
        .map_err(|error| format!("it {error}"))?;
    let processes = turns.processes(&instance);
    let root = turns.stage.root();
    let mut files: BTreeSet<PathBuf> = processes.into_iter().flat_map(executables).collect();
    turns.end(instance);
    files.extend(
        parts
            .iter()
            .filter(|part| part.what.starts_with("program"))
            .map(|part| part.path.clone()),
    );
    let bytes = |file: &PathBuf| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(file).map_or(0, |file| file.blocks() * 512)
    };
    Ok(files
        .iter()
        .filter(|file| !file.starts_with(&root))
        .map(bytes)
        .sum())
}

/// The files that a process has mapped executable, as the host sees them: what is in another root of a
/// container is of its image.
fn executables(pid: u32) -> Vec<PathBuf> {
    let same_root = || {
        let root = |who: &str| fs::metadata(format!("/proc/{who}/root/."));
        use std::os::unix::fs::MetadataExt;
        match (root(&pid.to_string()), root("self")) {
            (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
            _ => false,
        }
    };
    if !same_root() {
        return Vec::new();
    }
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let file = |line: &str| {
        let mut fields = line.split_whitespace();
        let executable = fields.nth(1)?.contains('x');
        let path = Path::new(fields.nth(3)?);
        (executable && path.is_absolute()).then(|| path.to_path_buf())
    };
    maps.lines().filter_map(file).collect()
}

fn verdict(all: &Figure, sides: &[Side]) -> Verdict {
    let bytes = |subject: &str| all.median(subject);
    let (containers, machines) = (
        ranked(sides, Kind::Container, bytes),
        ranked(sides, Kind::Machine, bytes),
    );
    let (Some((machine, least)), Some((biggest, most))) = (machines.first(), machines.last())
    else {
        return cannot_tell(sides, "was counted");
    };
    let mib = |bytes: f64| format!("{:.1} MiB", bytes / f64::from(1 << 20));
    let contradicts = *least < GIGABYTE;
    let mut text = match contradicts {
        true => format!("{machine} takes {}", mib(*least)),
        false => format!(
            "As they say: {machine}, the smallest machine, takes {}",
            mib(*least)
        ),
    };
    if machine != biggest {
        text += &format!(", {biggest}, the largest, {}", mib(*most));
    }
    if let Some((container, bytes)) = containers.first() {
        text += &format!("; {container} takes {}, of the same files", mib(*bytes));
    }
    Verdict {
        text: text + ".",
        contradicts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::rows::sides;

    fn told(machine: f64) -> Verdict {
        let sides = sides::of([("crun", Kind::Container), ("hull-cold", Kind::Machine)]);
        let samples = [("crun", vec![2e6]), ("hull-cold", vec![machine])];
        verdict(
            &Figure::of_samples("x", Unit::Bytes, Better::Less, samples),
            &sides,
        )
    }

    #[test]
    fn a_gigabyte_is_the_measure() {
        let small = told(10.0 * 1024.0 * 1024.0);
        assert!(small.contradicts);
        assert!(
            small
                .text
                .starts_with("hull-cold takes 10.0 MiB; crun takes 1.9 MiB")
        );
        assert!(!told(2e9).contradicts);
    }

    #[test]
    fn this_program_is_among_what_runs() {
        let own = std::env::current_exe().expect("a program");
        assert!(executables(std::process::id()).contains(&own));
        assert!(executables(u32::MAX).is_empty());
    }
}
