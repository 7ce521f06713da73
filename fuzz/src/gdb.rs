//! gdb's remote protocol: the files of `src/gdb` over a machine without KVM, which stops by itself, and
//! a gdb that writes whatever it wants.

#[path = "../../src/gdb/arch.rs"]
mod arch;
#[path = "../../src/gdb/guest.rs"]
mod guest;
mod listener;
pub mod machine;
#[path = "../../src/gdb/over.rs"]
pub mod over;
#[path = "../../src/gdb/points.rs"]
mod points;
#[allow(dead_code)]
#[path = "../../src/gdb/session.rs"]
mod session;
#[path = "../../src/gdb/target.rs"]
mod target;

use std::sync::{Arc, Mutex, OnceLock, mpsc};

use arbitrary::Arbitrary;
use hull::kvm::debug::{Control, Powers, Trap};
use hull::memory::GuestMemory;
use hull::sync::eventfd;
use hull::vmm::debugger::Linked;
use listener::{Listener, MAX_PACKET};
use machine::kvm::vcpu::Vcpu;
use machine::vmm::debugger::Debugged;
use machine::vmm::vcpus::{Event, Vcpus};
use over::Over;
use session::Worker;
use vm_memory::{Bytes, GuestAddress};

const RAM: usize = 0x1_0000;
/// Where the kernel is, and where it is linked.
const KERNEL: u64 = 0x4000;
const KERNEL_LEN: u64 = 0x3000;
const LINKED: u64 = 0xffff_ffff_8100_0000;

/// A machine, its events, and what gdb writes.
#[derive(Arbitrary, Debug)]
pub struct Input {
    cpus: u8,
    trap: u8,
    execute: bool,
    watch: bool,
    waits: bool,
    events: Vec<Event>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Read(At, u16),
    Write(At, Vec<u8>),
    Point {
        set: bool,
        kind: u8,
        at: At,
        len: u8,
    },
    Register(u8),
    Registers,
    SetRegister(u8, [u8; 16]),
    SetRegisters(u8, u8),
    Continue,
    Single,
    VCont(Vec<(u8, u8)>),
    Thread(bool, u8),
    Monitor(u8, String),
    Query(u8),
    Interrupt,
    Detach,
    Kill,
    Packet(Vec<u8>),
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum At {
    Ram(u16),
    /// Near the end of RAM.
    End(i8),
    /// Near the end of the kernel, as it is linked.
    Kernel(i16),
    Any(u64),
}

impl At {
    fn linear(&self) -> u64 {
        match self {
            Self::Ram(at) => (*at).into(),
            Self::End(at) => (RAM as u64).wrapping_add_signed((*at).into()),
            Self::Kernel(at) => (LINKED + KERNEL_LEN).wrapping_add_signed((*at).into()),
            Self::Any(at) => *at,
        }
    }
}

/// Where gdb finds the byte at `linear` as long as there is no paging.
fn place(linear: u64) -> Option<usize> {
    let at = match linear.checked_sub(LINKED) {
        Some(offset) if offset < KERNEL_LEN => KERNEL + offset,
        _ => linear,
    };
    (at < RAM as u64).then_some(at as usize)
}

fn hex(bytes: impl IntoIterator<Item = u8>) -> String {
    bytes
        .into_iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl Step {
    fn packet(&self) -> Vec<u8> {
        let queries = [
            "?",
            "qSupported:multiprocess+",
            "QStartNoAckMode",
            "qfThreadInfo",
            "qsThreadInfo",
            "qC",
            "vCont?",
            "qAttached",
            "qXfer:features:read:target.xml:0,ffb",
            "qThreadExtraInfo,1",
            "qXfer:features:read:target.xml:1000,ffb",
            "vMustReplyEmpty",
            "qSymbol::",
            "!",
            "T1",
        ];
        let text = match self {
            Self::Read(at, len) => format!("m{:x},{:x}", at.linear(), len % 0x900),
            Self::Write(at, data) => {
                let (at, len) = (at.linear(), data.len());
                format!("M{at:x},{len:x}:{}", hex(data.iter().copied()))
            }
            Self::Point { set, kind, at, len } => {
                let order = if *set { 'Z' } else { 'z' };
                format!("{order}{},{:x},{:x}", kind % 5, at.linear(), len % 40)
            }
            Self::Register(id) => format!("p{:x}", id % 70),
            Self::Registers => "g".into(),
            Self::SetRegister(id, value) => {
                let size = match id % 70 {
                    17..=23 | 32..=39 | 56 => 4,
                    24..=31 => 10,
                    40..=55 => 16,
                    _ => 8,
                };
                format!("P{:x}={}", id % 70, hex(value[..size].iter().copied()))
            }
            Self::SetRegisters(byte, short) => {
                format!("G{}", hex(vec![*byte; 640 - usize::from(short % 100)]))
            }
            Self::Continue => "c".into(),
            Self::Single => "s".into(),
            Self::VCont(actions) => {
                let action = |(kind, thread): &(u8, u8)| {
                    let kind = ["c", "s", "C05", "S05", "t", "r0,10"][usize::from(kind % 6)];
                    match thread % 6 {
                        0 => format!(";{kind}"),
                        1 => format!(";{kind}:-1"),
                        thread => format!(";{kind}:p1.{}", thread - 1),
                    }
                };
                format!("vCont{}", actions.iter().map(action).collect::<String>())
            }
            Self::Thread(run, thread) => {
                format!(
                    "H{}{}",
                    if *run { 'c' } else { 'g' },
                    i16::from(*thread % 8) - 1
                )
            }
            Self::Monitor(which, text) => {
                let command = ["kvm", "quit", "help", text][usize::from(which % 4)];
                format!("qRcmd,{}", hex(command.bytes()))
            }
            Self::Query(which) => queries[usize::from(*which) % queries.len()].into(),
            Self::Interrupt => return vec![3],
            Self::Detach => "D".into(),
            Self::Kill => "k".into(),
            Self::Packet(data) => return framed(data),
            Self::Bytes(bytes) => return bytes.clone(),
        };
        framed(text.as_bytes())
    }

    /// Whether gdb only reads and writes memory that is not translated.
    fn is_plain(&self) -> bool {
        let known = |at: &At| !matches!(at, At::Any(_));
        match self {
            Self::Read(at, _) | Self::Write(at, _) | Self::Point { at, .. } => known(at),
            Self::Register(_) | Self::Registers => true,
            _ => false,
        }
    }
}

fn framed(data: &[u8]) -> Vec<u8> {
    let sum = data.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    [b"$", data, format!("#{sum:02x}").as_bytes()].concat()
}

/// Serve gdb, and check what it was told, and what is left behind.
pub fn check(input: &Input) {
    let (sender, stops) = mpsc::channel();
    let (woken, ready) = (Arc::new(eventfd().unwrap()), Arc::new(eventfd().unwrap()));
    ready.raise();
    let over = Arc::new(Over {
        signal: eventfd().unwrap(),
        status: OnceLock::new(),
    });
    let mut model: Vec<u8> = (0..RAM).map(|at| (at * 7 + at / 256) as u8).collect();
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    memory.write_slice(&model, GuestAddress(0)).unwrap();
    let cpus = usize::from(input.cpus % 4) + 1;
    let vcpus = Arc::new(Vcpus {
        cells: (0..cpus).map(|_| Mutex::new(Vcpu::default())).collect(),
        held: Mutex::new(vec![0; cpus]),
        events: Mutex::new(input.events.iter().take(32).cloned().collect()),
        stops: sender,
        woken: woken.clone(),
        over: over.clone(),
    });
    let steps = &input.steps[..input.steps.len().min(64)];
    let output = Arc::new(Mutex::new(Vec::new()));
    let listener = Listener {
        input: Mutex::new(Some(steps.iter().flat_map(Step::packet).collect())),
        output: output.clone(),
        ready,
        over: over.clone(),
    };
    let worker = Worker {
        machine: Debugged {
            vcpus: vcpus.clone(),
            memory: memory.clone(),
            kernel: Some(Linked {
                linear: LINKED..LINKED + KERNEL_LEN,
                gpa: KERNEL,
            }),
        },
        waiting: input.waits.then(|| vcpus.pause()),
        stops,
        woken,
        over,
        powers: Powers {
            trap: [Trap::Exit, Trap::Failure, Trap::Port][usize::from(input.trap % 3)],
            execute: input.execute,
            watch: input.watch,
            blocks_interrupts: input.execute,
        },
        told_powers: false,
    };
    worker.serve(&listener);
    assert!(
        vcpus.held.lock().unwrap().iter().all(|held| *held == 0),
        "a vCPU stays held"
    );
    let free = |cell: &Mutex<Vcpu>| cell.lock().unwrap().control == Control::default();
    assert!(vcpus.cells.iter().all(free), "a vCPU still stops for gdb");
    let answers = answers(&output.lock().unwrap());
    if steps.iter().all(Step::is_plain) {
        for (step, answer) in steps.iter().zip(&answers) {
            judge(step, answer, &mut model);
        }
        let mut left = vec![0; RAM];
        memory.read_slice(&mut left, GuestAddress(0)).unwrap();
        assert!(left == model, "memory has other bytes than gdb wrote");
    }
}

/// The data of each packet to gdb, unpacked.
fn answers(mut output: &[u8]) -> Vec<Vec<u8>> {
    let mut answers = Vec::new();
    while let Some(start) = output.iter().position(|byte| *byte == b'$') {
        let rest = &output[start + 1..];
        let end = rest
            .iter()
            .position(|byte| *byte == b'#')
            .expect("a whole packet");
        assert!(end <= 2 * MAX_PACKET + 16, "a packet of {end} bytes");
        assert_eq!(framed(&rest[..end]), output[start..start + end + 4]);
        output = &rest[end + 3..];
        let mut answer = Vec::new();
        let mut bytes = rest[..end].iter();
        while let Some(byte) = bytes.next() {
            match byte {
                b'*' => {
                    let count = usize::from(*bytes.next().expect("a count")) - 29;
                    answer.resize(answer.len() + count, *answer.last().expect("a byte"));
                }
                b'}' => answer.push(bytes.next().expect("a byte") ^ 0x20),
                byte => answer.push(*byte),
            }
        }
        answers.push(answer);
    }
    answers
}

/// `answer` is right, given that gdb finds `model` in memory.
fn judge(step: &Step, answer: &[u8], model: &mut [u8]) {
    let answered = String::from_utf8_lossy(answer);
    match step {
        Step::Read(at, len) => {
            let bytes = (0..u64::from(len % 0x900)).map(|n| at.linear().wrapping_add(n));
            let there: Vec<u8> = bytes
                .map_while(|at| model.get(place(at)?).copied())
                .collect();
            match answer {
                [b'E', ..] => assert!(there.is_empty() || *len % 0x900 == 0, "{answered}"),
                _ => {
                    // A packet has room for so many.
                    let expected = hex(there);
                    assert!(!answered.is_empty() || expected.is_empty());
                    assert!(expected.starts_with(&*answered), "{answered}");
                    assert!(answered.len() == expected.len() || answered.len() > 1000);
                }
            }
        }
        Step::Write(at, data) => {
            let bytes = (0..data.len() as u64).map(|n| place(at.linear().wrapping_add(n)));
            match bytes.collect::<Option<Vec<usize>>>() {
                Some(places) => {
                    assert_eq!(answered, "OK");
                    places
                        .iter()
                        .zip(data)
                        .for_each(|(at, byte)| model[*at] = *byte);
                }
                None => assert!(answered.starts_with('E'), "{answered}"),
            }
        }
        _ => {}
    }
}
