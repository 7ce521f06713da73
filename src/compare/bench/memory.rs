//! `hull bench memory`: what a machine uses beyond its guest's memory.

use std::fs;
use std::io;
use std::ops::Range;
use std::time::Duration;

use super::error::BenchError;
use super::machines::{Equipment, Machines};
use super::plan::{Bench, Contender, Made, Plan, Program, Samples};
use crate::compare::figure::Better::Less;
use crate::compare::figure::Unit::Bytes;
use crate::compare::measure::stop::pause;
use crate::compare::measure::tree;
use crate::compare::subject::monitor::Monitored;
use crate::compare::subject::{self, IDLE, MEMORY_MIB, Subject, UP, words};

/// Time for a monitor to become idle after its guest has booted.
const SETTLE_TIME: Duration = Duration::from_millis(500);

pub static PLAN: Plan = Plan {
    topic: "memory",
    method: "Resident memory (RSS) of all processes of a monitor, half a second after its guest has become \
             idle, in all mappings except those that together are as large as the guest's memory of 128 MiB (smaps of \
             proc(5)). \
             Without devices: kernel, initial RAM disk, 1 vCPU and a serial console. With one of each: a disk \
             of 128 MiB, a socket, an entropy source and a balloon, and under hull also a shared folder, a \
             scratch disk and a virtio console; the guest uses only the socket, by which it reports that it is \
             up.",
    figures: &[
        ("no devices: resident beyond the guest", Bytes, Less),
        ("no devices: of it no pages of a file", Bytes, Less),
        ("all devices: resident beyond the guest", Bytes, Less),
        ("all devices: of it no pages of a file", Bytes, Less),
        ("the program's file", Bytes, Less),
    ],
    warms_up: false,
    contender,
};

fn contender<'a>(bench: &'a Bench, program: &'a Program) -> Made<'a> {
    Ok(Box::new(Memory {
        bench,
        program,
        subject: bench.subject(program)?,
        machines: Machines::new(bench, program, Equipment::All).ok(),
    }))
}

struct Memory<'a> {
    bench: &'a Bench,
    program: &'a Program,
    subject: Monitored<'a>,
    machines: Option<Machines<'a>>,
}

impl Contender for Memory<'_> {
    fn prepare(&mut self) -> Result<(), BenchError> {
        self.subject.prepare()?;
        self.machines.as_mut().map_or(Ok(()), Machines::prepare)
    }

    fn subject(&self) -> Option<&dyn Subject> {
        Some(&self.subject)
    }

    fn turn(&mut self) -> Result<Samples, BenchError> {
        let mut samples = Samples::from(self.without_devices()?.map(Some));
        samples.extend(match &mut self.machines {
            Some(machines) => {
                let mut machine = machines.start()?;
                let _stream = machine.wait()?;
                pause(SETTLE_TIME)?;
                beyond_guest(&tree::descendants(machine.id()))?.map(Some)
            }
            None => [None; 2],
        });
        samples.push(Some(fs::metadata(&self.program.path)?.len() as f64));
        Ok(samples)
    }
}

impl Memory<'_> {
    fn without_devices(&mut self) -> Result<[f64; 2], BenchError> {
        let id = format!("idle-{}", std::process::id());
        let (subject, timeout) = (&mut self.subject, self.bench.timeout);
        let instance = subject::start(subject, &words(&IDLE), UP, id, timeout)?;
        let settled = pause(SETTLE_TIME);
        let beyond = beyond_guest(&instance.processes(subject));
        instance.end(subject);
        settled?;
        Ok(beyond?)
    }
}

/// Resident bytes beyond the guest's memory, and those of them that are not pages of a file.
fn beyond_guest(processes: &[u32]) -> io::Result<[f64; 2]> {
    let mut all = [0.0; 2];
    for pid in processes {
        let smaps = tree::about(*pid, "smaps")?.unwrap_or_default();
        let of_process = of_smaps(&smaps);
        all = [all[0] + of_process[0], all[1] + of_process[1]];
    }
    Ok(all)
}

/// Of one process. Mappings side by side that together have the guest's size are the guest's memory, of
/// which a part may be mapped from the kernel's file, or unused.
fn of_smaps(smaps: &str) -> [f64; 2] {
    const GUEST_BYTES: u64 = (MEMORY_MIB << 20) * 3 / 4;
    let (mut all, mut run, mut end) = ([0.0; 2], Run::default(), None);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let kib = || value.parse::<f64>().unwrap_or(0.0) * 1024.0;
        match name {
            "Rss:" => run.resident[0] += kib(),
            "Anonymous:" => run.resident[1] += kib(),
            _ => {
                let Some(range) = addresses(name) else {
                    continue;
                };
                if end != Some((range.start, value)) {
                    run.add_to(&mut all, GUEST_BYTES);
                }
                run.bytes += range.end - range.start;
                end = Some((range.end, value));
            }
        }
    }
    run.add_to(&mut all, GUEST_BYTES);
    all
}

/// Mappings side by side with the same access.
#[derive(Default)]
struct Run {
    bytes: u64,
    /// Resident bytes, and those of them that are not pages of a file.
    resident: [f64; 2],
}

impl Run {
    /// Count it unless it has the `guest` size, and begin another one.
    fn add_to(&mut self, all: &mut [f64; 2], guest: u64) {
        let run = std::mem::take(self);
        if run.bytes < guest {
            all[0] += run.resident[0];
            all[1] += run.resident[1];
        }
    }
}

/// The addresses that the first line of a mapping begins with.
fn addresses(text: &str) -> Option<Range<u64>> {
    let (start, end) = text.split_once('-')?;
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    Some(number(start)?..number(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_not_counted() {
        let smaps = "\
00400000-00402000 r-xp 00000000 00:01 1 /bin/monitor\nSize: 8 kB\nRss: 8 kB\nAnonymous: 0 kB\n\
00600000-08600000 rw-p 00000000 00:00 0 \nSize: 131072 kB\nRss: 20000 kB\nAnonymous: 20000 kB\n\
09000000-09004000 rw-p 00000000 00:00 0 [heap]\nSize: 16 kB\nRss: 12 kB\nAnonymous: 12 kB\n";
        assert_eq!(of_smaps(smaps), [20.0 * 1024.0, 12.0 * 1024.0]);
        // As one mapping, or with the kernel's file in the middle of it.
        let (mut parts, mut at) = (String::new(), 0x60_0000);
        for (bytes, file) in [(0x100_0000, ""), (0x90_0000, "/guest"), (0x670_0000, "")] {
            let end = at + bytes;
            parts += &format!("{at:x}-{end:x} rw-p 00000000 00:00 0 {file}\nRss: 700 kB\n");
            at = end;
        }
        let (before, rest) = smaps.split_once("00600000").unwrap();
        let after = &rest[rest.find("09000000").unwrap()..];
        let split = format!("{before}{parts}{after}");
        assert_eq!(of_smaps(&split), of_smaps(smaps));
        assert_eq!(of_smaps(""), [0.0, 0.0]);
    }
}
