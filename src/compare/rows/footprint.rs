//! What a subject needs on disk.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::session::{Measured, Session, Subjects};
use super::verdict::{Side, missing, ranked, sides};
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::measure::tree;
use crate::compare::report::comparison::Verdict;
use crate::compare::report::quantity::value;
use crate::compare::subject::{Kind, Subject};

/// The standard answer's "gigabytes", in bytes.
const GIGABYTE: f64 = 1e9;

pub fn measure(turns: &mut Subjects, session: &mut Session) -> Measured {
    let images = turns.each("files", |subject| {
        let parts = subject.parts().into_iter();
        let image = parts.filter(|part| !part.what.starts_with("program"));
        image.map(|part| part.bytes).sum::<u64>() as f64
    });
    let programs = turns.each("programs", |subject| program_bytes(&mut **subject, session));
    let sums = images.iter().zip(&programs);
    let sums = sums
        .map(|((index, image), (_, programs))| (*index, programs.clone().map(|all| image + all)));
    let sums: Vec<_> = sums.collect();
    let bytes = (Unit::Bytes, Better::Less);
    let cell = |bytes: &f64| Cell::samples([*bytes]);
    let figures = vec![
        turns.results("bytes on disk, in all", bytes, &sums, cell),
        turns.figure(
            "of them, image: files of the guest or container, its kernel, template",
            bytes,
            &images,
            cell,
        ),
        turns.results(
            "of them, programs and libraries that run",
            bytes,
            &programs,
            cell,
        ),
    ];
    Measured {
        method: "Blocks on disk. The image is the root file system, the same for all subjects (one busybox), \
                 and for a virtual machine the kernel and initial RAM disk that its monitor boots; hull's are \
                 packed in its program. hull-warm's template, the saved machine, counts as image. Programs and \
                 libraries are the files that the processes of an idle instance have mapped executable \
                 (/proc/PID/maps), each once. An engine's daemon is not counted."
            .into(),
        verdict: verdict(&figures[0], &sides(turns)).into(),
        figures,
    }
}

fn program_bytes(subject: &mut dyn Subject, session: &mut Session) -> Result<f64, String> {
    let instance = session.idle(subject)?;
    let processes = instance.processes(subject);
    let mapped: io::Result<Vec<_>> = processes.into_iter().map(executables).collect();
    instance.end(subject);
    let mapped = mapped.map_err(|error| error.to_string())?;
    let mut files: BTreeSet<PathBuf> = mapped.into_iter().flatten().collect();
    let parts = subject.parts().into_iter();
    let programs = parts.filter(|part| part.what.starts_with("program"));
    files.extend(programs.map(|part| part.path));
    let root = session.stage.root();
    let files = files.iter().filter(|file| !file.starts_with(&root));
    let blocks = |file| fs::metadata(file).map_or(0, |file| file.blocks());
    Ok((files.map(blocks).sum::<u64>() * 512) as f64)
}

/// The files that a process has mapped executable. Those of a process with another root belong to its image.
///
/// # Errors
/// The kernel does not tell this user.
fn executables(pid: u32) -> io::Result<Vec<PathBuf>> {
    let root = |process: &str| {
        let root = fs::metadata(format!("/proc/{process}/root/.")).ok()?;
        Some((root.dev(), root.ino()))
    };
    if root(&pid.to_string()).is_none_or(|theirs| Some(theirs) != root("self")) {
        // Of a process that this user may not look into neither can be read.
        return tree::about(pid, "maps").map(|_| Vec::new());
    }
    let maps = tree::about(pid, "maps")?.unwrap_or_default();
    let file = |line: &str| {
        let mut fields = line.split_whitespace();
        let executable = fields.nth(1)?.contains('x');
        let path = Path::new(fields.nth(3)?);
        (executable && path.is_absolute()).then(|| path.to_path_buf())
    };
    Ok(maps.lines().filter_map(file).collect())
}

fn verdict(all: &Figure, sides: &[Side]) -> Result<Verdict, String> {
    let rank = |kind| ranked(sides, kind, |subject| all.median(subject));
    let (containers, machines) = (rank(Kind::Container), rank(Kind::Machine));
    let (Some((machine, least)), Some((largest, most))) = (machines.first(), machines.last())
    else {
        return Err(missing(sides, "was counted"));
    };
    let size = |bytes: f64| value(Unit::Bytes, bytes);
    let contradicts = *least < GIGABYTE;
    let mut text = if contradicts {
        format!("{machine} takes {}", size(*least))
    } else {
        format!(
            "As claimed: {machine}, the smallest machine, takes {}",
            size(*least)
        )
    };
    if machine != largest {
        text += &format!(", {largest}, the largest, {}", size(*most));
    }
    if let Some((container, bytes)) = containers.first() {
        text += &format!("; {container} takes {}, with the same files", size(*bytes));
    }
    Ok(Verdict {
        text: text + ".",
        contradicts,
    })
}

#[cfg(test)]
mod tests {
    use super::super::verdict::tests::sides;
    use super::*;

    #[test]
    fn less_than_a_gigabyte_contradicts() {
        let verdict_with = |machine: f64| {
            let samples: &[(&str, &[f64])] = &[("crun", &[2e6]), ("hull-cold", &[machine])];
            let figure = Figure::of_samples(Unit::Bytes, Better::Less, samples);
            Verdict::from(verdict(&figure, &sides()))
        };
        let small = verdict_with(10.0 * 1024.0 * 1024.0);
        assert!(small.contradicts);
        let start = "hull-cold takes 10.0 MiB; crun takes 1.91 MiB";
        assert!(small.text.starts_with(start), "{}", small.text);
        assert!(!verdict_with(2e9).contradicts);
    }

    #[test]
    fn this_program_is_mapped_executable() {
        let own = std::env::current_exe().expect("a program");
        assert!(
            executables(std::process::id())
                .expect("its own")
                .contains(&own)
        );
        assert!(executables(u32::MAX).expect("none").is_empty());
    }
}
