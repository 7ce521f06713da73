//! `hull bench memory`: what a machine takes beyond its guest's memory.

use std::fs;
use std::time::Duration;

use super::Bench;
use super::machines::{Devices, Machines};
use super::turns::{Contender, Kind, Made, Plan, Samples, Trouble, Who};
use crate::compare::figure::{Better, Unit};
use crate::compare::measure::timed::{self, Running};
use crate::compare::measure::tree;
use crate::compare::subject::{self, MEMORY_MIB, Subject};

/// Until a monitor that has booted a guest has nothing to do any more.
const SETTLE: Duration = Duration::from_millis(500);
/// The command of a guest that is idle, and what it says when it is up.
const IDLE: [&str; 4] = [
    "/bin/busybox",
    "sh",
    "-c",
    "echo up; exec /bin/busybox sleep 100000",
];
const UP: &str = "up\n";

pub const PLAN: Plan = Plan {
    method: "Resident memory (RSS) of all of a monitor's processes, half a second after its guest has become \
             idle, in all mappings but those as large as the guest's memory of 128 MiB (smaps of proc(5)). \
             Without devices: kernel, initial RAM disk, 1 vCPU, a serial console. With one of each: disk of \
             128 MiB, socket, entropy source, balloon, and of hull a shared folder, a scratch disk and a \
             virtio console besides; the guest uses none but the socket, by which it says that it is up.",
    figures: &[
        (
            "no devices: resident beyond the guest",
            Unit::Bytes,
            Better::Less,
        ),
        (
            "no devices: of it no pages of a file",
            Unit::Bytes,
            Better::Less,
        ),
        (
            "all devices: resident beyond the guest",
            Unit::Bytes,
            Better::Less,
        ),
        (
            "all devices: of it no pages of a file",
            Unit::Bytes,
            Better::Less,
        ),
        ("the program's file", Unit::Bytes, Better::Less),
    ],
    warms_up: false,
    contender,
};

fn contender<'a>(bench: &'a Bench, who: &'a Who) -> Made<'a> {
    let name = match who.kind {
        Kind::Own | Kind::Hull => "hull",
        _ => who.name.as_str(),
    };
    let subject = subject::by_name(name, Some(&who.program), &bench.stage)
        .ok_or_else(|| Trouble::Other(format!("this hull cannot drive {name}")))?;
    let machines = match who.kind {
        Kind::Other => None,
        _ => Some(Machines::new(bench, who, Devices::All)),
    };
    Ok(Box::new(Memory {
        bench,
        who,
        subject,
        machines,
    }))
}

struct Memory<'a> {
    bench: &'a Bench,
    who: &'a Who,
    subject: Box<dyn Subject + 'a>,
    machines: Option<Machines<'a>>,
}

impl Contender for Memory<'_> {
    fn prepare(&mut self) -> Result<(), Trouble> {
        self.subject.prepare()?;
        match &mut self.machines {
            Some(machines) => machines.prepare(),
            None => Ok(()),
        }
    }

    fn version(&self) -> Option<String> {
        self.subject.version()
    }

    fn turn(&mut self) -> Result<Samples, Trouble> {
        let mut samples = Samples::from(self.without()?.map(Some));
        samples.extend(match &mut self.machines {
            Some(machines) => {
                let mut machine = machines.start()?;
                let stream = machine.wait()?;
                timed::pause(SETTLE)?;
                let beyond = beyond(&tree::descendants(machine.id()));
                drop((stream, machine));
                beyond.map(Some)
            }
            None => [None; 2],
        });
        samples.push(Some(fs::metadata(&self.who.program)?.len() as f64));
        Ok(samples)
    }

    fn caveats(&self) -> Vec<String> {
        match self.who.kind {
            Kind::Own | Kind::Hull => Vec::new(),
            _ => self.subject.caveats(),
        }
    }
}

impl Memory<'_> {
    fn without(&mut self) -> Result<[f64; 2], Trouble> {
        let id = format!("idle-{}", std::process::id());
        let mut command = self.subject.command(&IDLE.map(String::from), &id)?;
        let up = Running::start(&mut command, self.bench.limits).and_then(|mut running| {
            running.until(UP)?;
            timed::pause(SETTLE)?;
            Ok(running)
        });
        let beyond = up.map(|running| {
            let processes = self.subject.processes(running.id(), &id);
            beyond(&processes)
        });
        self.subject.clear(&id);
        Ok(beyond?)
    }
}

/// Bytes resident beyond the guest's memory, and of them those that are no pages of a file.
fn beyond(processes: &[u32]) -> [f64; 2] {
    let mut all = [0.0; 2];
    for pid in processes {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
        let of_one = of_smaps(&smaps);
        all.iter_mut()
            .zip(of_one)
            .for_each(|(all, one)| *all += one);
    }
    all
}

/// Of a process. Mappings of the guest's size are the guest's memory, or nothing that is used.
fn of_smaps(smaps: &str) -> [f64; 2] {
    const GUEST_KIB: f64 = (MEMORY_MIB * 1024) as f64 * 0.75;
    let (mut all, mut anonymous, mut size) = (0.0, 0.0, 0.0);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let value: f64 = value.parse().unwrap_or(0.0);
        match name {
            "Size:" => size = value,
            "Rss:" if size < GUEST_KIB => all += value,
            "Anonymous:" if size < GUEST_KIB => anonymous += value,
            _ => {}
        }
    }
    [all * 1024.0, anonymous * 1024.0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_own_memory_is_left_out() {
        let smaps = "\
00400000-00402000 r-xp 00000000 00:01 1 /bin/monitor\nSize: 8 kB\nRss: 8 kB\nAnonymous: 0 kB\n\
00600000-08600000 rw-p 00000000 00:00 0 \nSize: 131072 kB\nRss: 20000 kB\nAnonymous: 20000 kB\n\
09000000-09004000 rw-p 00000000 00:00 0 [heap]\nSize: 16 kB\nRss: 12 kB\nAnonymous: 12 kB\n";
        assert_eq!(of_smaps(smaps), [20.0 * 1024.0, 12.0 * 1024.0]);
        assert_eq!(of_smaps(""), [0.0, 0.0]);
    }
}
