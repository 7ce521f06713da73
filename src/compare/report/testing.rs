//! A made-up report with every kind of cell, which the presentations are tried on. tests/golden has it as
//! JSON.

use std::sync::LazyLock;

use super::saved::{FORMAT, Participant, Report, Row, Verdict, Workload};
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::measure::host::Host;
use crate::compare::subject::{Kind, Part};

/// Who takes part.
pub const SUBJECTS: [&str; 6] = [
    "process",
    "runc",
    "crun",
    "hull-warm",
    "hull-cold",
    "firecracker",
];
/// Runs by one of the subject's median.
const NOISE: [f64; 5] = [1.0, 0.95, 1.12, 1.01, 0.98];

/// The report.
pub fn report() -> Report {
    // The ranges of its ratios take their time.
    static MADE: LazyLock<Report> = LazyLock::new(make);
    MADE.clone()
}

fn make() -> Report {
    Report {
        format: FORMAT,
        command: words(&["hull", "compare", "--runs", "5", "--json", "compare.json"]),
        host: host(),
        runs: NOISE.len(),
        workloads: vec![
            Workload {
                name: "echo".into(),
                words: words(&["/bin/busybox", "echo", "hello"]),
            },
            Workload {
                name: "loop".into(),
                words: words(&["/bin/busybox", "sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"]),
            },
        ],
        subjects: participants(),
        warnings: vec![
            "this machine is itself a virtual machine (KVM): exits of its guests cost more than on hardware".into(),
            "startup time: echo, exec to exit: 1 of 5 runs are far from the others (kept)".into(),
        ],
        rows: vec![layer(), system(), startup(), resources(), isolation(), portability(), footprint(), density()],
    }
}

fn host() -> Host {
    Host {
        date: "2026-11-01T12:00:00Z".into(),
        hull: "0.1.0".into(),
        processor: "AMD EPYC 7B13".into(),
        cpus: 2,
        memory: 8 << 30,
        kernel: "6.12.9-amd64".into(),
        kvm: Some("hardware, SVM".into()),
        software_kvm: false,
        hypervisor: Some("KVM".into()),
        emulated: false,
    }
}

fn participants() -> Vec<Participant> {
    let kinds = [
        Kind::Process,
        Kind::Container,
        Kind::Container,
        Kind::Machine,
        Kind::Machine,
        Kind::Machine,
    ];
    let taking = SUBJECTS.iter().zip(kinds).map(|(name, kind)| Participant {
        name: (*name).into(),
        kind,
        version: (kind != Kind::Process).then(|| format!("{name} version 1.2.3")),
        parts: vec![Part {
            what: "program".into(),
            path: format!("/usr/bin/{name}").into(),
            bytes: 3 << 20,
        }],
        caveats: match kind {
            Kind::Container => vec!["without an engine: its image is a folder".into()],
            _ => Vec::new(),
        },
        left_out: None,
    });
    let out = [
        (
            "docker",
            Kind::Container,
            "it cannot connect to the Docker daemon",
        ),
        (
            "qemu-microvm",
            Kind::Machine,
            "qemu-system-x86_64 is not on PATH",
        ),
    ];
    let out = out.map(|(name, kind, why)| Participant {
        name: name.into(),
        kind,
        version: None,
        parts: Vec::new(),
        caveats: Vec::new(),
        left_out: Some(why.into()),
    });
    taking.chain(out).collect()
}

fn layer() -> Row {
    let calls = samples(
        "system calls that reach the host",
        Unit::Count,
        Better::Neither,
        [1.0, 1.0, 1.0, 0.0, 0.0, 0.0].map(|one| one * 40.0),
        false,
    );
    let mut exits = samples(
        "exits to the hypervisor",
        Unit::Count,
        Better::Neither,
        [0.0, 0.0, 0.0, 400.0, 9000.0, 21000.0],
        false,
    );
    for cell in &mut exits.cells[..3] {
        *cell = Cell::missing(&cell.subject, "it has no hypervisor");
    }
    row(
        "abstraction layer",
        [
            "the hardware (a hypervisor)",
            "the operating system (an engine)",
        ],
        vec![
            texts(
                "what leaves the workload",
                [
                    "system call",
                    "system call",
                    "system call",
                    "VM exit",
                    "VM exit",
                    "VM exit",
                ],
            ),
            calls,
            exits,
        ],
        (
            "As they say: a container's instructions that leave it are system calls, a machine's are VM exits.",
            false,
        ),
    )
}

fn system() -> Row {
    let host = "Linux 6.12.9-amd64 #1 SMP Debian x86_64";
    let own = "Linux 6.12.0-hull #1 x86_64";
    row(
        "operating system",
        ["a full one of its own", "the host's kernel, shared"],
        vec![
            texts(
                "uname -srvm inside",
                [host, host, host, own, own, "Linux 6.1.102 #1 x86_64"],
            ),
            texts(
                "kernel",
                [
                    "the host's",
                    "the host's",
                    "the host's",
                    "its own",
                    "its own",
                    "its own",
                ],
            ),
        ],
        (
            "As they say of the kernel; \"a full one\" is not needed: hull's guest is a kernel and one program.",
            false,
        ),
    )
}

fn startup() -> Row {
    row(
        "startup time",
        ["slow, minutes", "fast, seconds"],
        vec![
            samples(
                "echo, exec to first output byte",
                Unit::Milliseconds,
                Better::Less,
                [2.0, 49.0, 20.0, 20.5, 150.0, 190.0],
                true,
            ),
            samples(
                "echo, exec to exit",
                Unit::Milliseconds,
                Better::Less,
                [2.1, 61.0, 24.0, 23.0, 162.0, 9041.0],
                true,
            ),
        ],
        (
            "A virtual machine that goes on from a template starts as fast as a container (hull-warm 20.5 ms, crun 20.0 ms); one that boots takes 7.5 times as long. Neither takes seconds.",
            true,
        ),
    )
}

fn resources() -> Row {
    const MIB: f64 = 1048576.0;
    let mut idle = samples(
        "CPU while idle",
        Unit::Share,
        Better::Less,
        [0.0, 0.0, 0.0, 0.002, 0.002, 0.004],
        false,
    );
    idle.cells[5].note = Some("2 of 5 runs failed: it ended with status 1".into());
    row(
        "resource usage",
        ["high", "low"],
        vec![
            samples(
                "proportional memory, idle",
                Unit::Bytes,
                Better::Less,
                [0.3, 1.4, 0.9, 11.5, 28.0, 41.0].map(|mib| mib * MIB),
                false,
            ),
            samples(
                "resident memory, idle",
                Unit::Bytes,
                Better::Less,
                [0.9, 3.4, 1.9, 14.5, 31.0, 44.0].map(|mib| mib * MIB),
                false,
            ),
            samples(
                "CPU of one echo",
                Unit::Milliseconds,
                Better::Less,
                [1.4, 38.0, 15.0, 14.0, 131.0, 160.0],
                true,
            ),
            idle,
            samples(
                "loop of 100,000",
                Unit::Seconds,
                Better::Less,
                [0.21, 0.21, 0.212, 0.214, 0.215, 0.219],
                true,
            ),
            samples(
                "system calls",
                Unit::PerSecond,
                Better::More,
                [2.1e6, 1.4e6, 1.45e6, 1.9e6, 1.9e6, 1.8e6],
                true,
            ),
        ],
        (
            "Memory: as they say, 12.8 times a container's. CPU: as little.",
            false,
        ),
    )
}

fn isolation() -> Row {
    let probe = |name: &str, passed: [bool; 6], text: &str| Figure {
        name: name.into(),
        unit: Unit::Text,
        better: Better::Neither,
        cells: SUBJECTS
            .iter()
            .zip(passed)
            .map(|(subject, passed)| Cell {
                passed: Some(passed),
                text: (!passed).then(|| text.to_owned()),
                ..Cell::text(subject, "")
            })
            .collect(),
    };
    let machines = [false, false, false, true, true, true];
    let all_but_process = [false, true, true, true, true, true];
    row(
        "isolation",
        ["strong, by hardware", "moderate, by process"],
        vec![
            probe(
                "the host's kernel version is hidden",
                machines,
                "it is that of the host, 6.12.9-amd64",
            ),
            probe(
                "the host's processes are hidden",
                all_but_process,
                "it sees 212 processes",
            ),
            probe(
                "no entry of /proc or /sys is writable",
                machines,
                "/proc/sys/kernel/core_pattern",
            ),
            probe(
                "no capability is held",
                [false, false, false, true, true, true],
                "CAP_SETPCAP, CAP_NET_BIND_SERVICE",
            ),
            samples(
                "system calls of the host in reach",
                Unit::Count,
                Better::Less,
                [360.0, 312.0, 312.0, 34.0, 34.0, 37.0],
                false,
            ),
        ],
        (
            "As they say: of 4 probes a machine passes 4, a container 1.",
            false,
        ),
    )
}

fn portability() -> Row {
    row(
        "portability",
        [
            "OS and applications, large",
            "application and its dependencies, small",
        ],
        vec![
            texts(
                "what the other machine needs",
                [
                    "the same Linux ABI",
                    "Linux with namespaces and cgroups",
                    "Linux with namespaces and cgroups",
                    "KVM",
                    "KVM",
                    "KVM",
                ],
            ),
            samples(
                "image",
                Unit::Bytes,
                Better::Less,
                [1.0e6, 1.1e6, 1.1e6, 6.5e6, 6.5e6, 9.0e6],
                false,
            ),
        ],
        (
            "The image of a machine is larger by its kernel, which is 5 MiB.",
            true,
        ),
    )
}

fn footprint() -> Row {
    row(
        "footprint",
        ["gigabytes", "megabytes"],
        vec![samples(
            "bytes on disk",
            Unit::Bytes,
            Better::Less,
            [1.0e6, 1.3e7, 1.6e6, 9.0e6, 7.5e6, 1.2e7],
            false,
        )],
        ("Megabytes, both.", true),
    )
}

fn density() -> Row {
    let mut fit = samples(
        "idle instances in 1 GiB",
        Unit::Count,
        Better::More,
        [3400.0, 730.0, 1100.0, 89.0, 36.0, 25.0],
        false,
    );
    for cell in &mut fit.cells {
        cell.extrapolated = true;
        cell.samples = Vec::new();
        cell.ratio = None;
    }
    row(
        "density",
        [
            "different OSes, old software, strong isolation",
            "microservices, CI/CD, quick scaling",
        ],
        vec![
            fit,
            samples(
                "memory of each, of 10",
                Unit::Bytes,
                Better::Less,
                [3e5, 1.4e6, 9e5, 1.15e7, 2.9e7, 4.1e7],
                true,
            ),
        ],
        ("12.4 times as many containers fit as machines.", false),
    )
}

fn row(
    name: &str,
    [machine, container]: [&str; 2],
    figures: Vec<Figure>,
    (text, contradicts): (&str, bool),
) -> Row {
    Row {
        name: name.into(),
        claim_machine: machine.into(),
        claim_container: container.into(),
        method: format!(
            "How {name} was measured: the clock starts before fork and exec, and stops at the first byte that comes out of the pipe. All subjects take turns, and the order is reversed each time."
        ),
        figures,
        verdict: Verdict {
            text: text.into(),
            contradicts,
        },
    }
}

/// Of medians; with a spread, or each sample the same.
fn samples(name: &str, unit: Unit, better: Better, medians: [f64; 6], noisy: bool) -> Figure {
    let each = SUBJECTS.iter().zip(medians).map(|(subject, median)| {
        let samples = match noisy {
            true => NOISE.iter().map(|noise| median * noise).collect(),
            false => vec![median; 2],
        };
        (*subject, samples)
    });
    Figure::of_samples(name, unit, better, each)
}

fn texts(name: &str, texts: [&str; 6]) -> Figure {
    Figure {
        name: name.into(),
        unit: Unit::Text,
        better: Better::Neither,
        cells: SUBJECTS
            .iter()
            .zip(texts)
            .map(|(subject, text)| Cell::text(subject, text))
            .collect(),
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).into()).collect()
}

/// Every text of the report is `text` where it can be anything.
pub fn report_of(text: &str) -> Report {
    let mut report = report();
    let all = |texts: &mut Vec<String>| texts.iter_mut().for_each(|one| *one = text.into());
    all(&mut report.command);
    all(&mut report.warnings);
    for one in &mut report.workloads {
        one.name = text.into();
        all(&mut one.words);
    }
    let host = &mut report.host;
    for one in [
        &mut host.date,
        &mut host.hull,
        &mut host.processor,
        &mut host.kernel,
    ] {
        *one = text.into();
    }
    host.kvm = Some(text.into());
    host.hypervisor = Some(text.into());
    // Names stay apart, as those of columns are.
    let name = |name: &str| format!("{name}{text}");
    for one in &mut report.subjects {
        one.name = name(&one.name);
        one.version = one.version.as_ref().map(|_| text.into());
        one.left_out = one.left_out.as_ref().map(|_| text.into());
        all(&mut one.caveats);
        for part in &mut one.parts {
            part.what = text.into();
            part.path = text.into();
        }
    }
    for row in &mut report.rows {
        for one in [
            &mut row.claim_machine,
            &mut row.claim_container,
            &mut row.method,
            &mut row.verdict.text,
        ] {
            *one = text.into();
        }
        row.name = name(&row.name);
        for figure in &mut row.figures {
            figure.name = text.into();
            for cell in &mut figure.cells {
                cell.subject = name(&cell.subject);
                cell.text = cell.text.as_ref().map(|_| text.into());
                cell.note = cell.note.as_ref().map(|_| text.into());
            }
        }
    }
    report
}
