//! Build script: packs the built guest, if there is one, so that the program can carry it.
//!
//! Takes target/guest/{vmlinux, initramfs.cpio, System.map}, which `make build` leaves there, and
//! writes each as LZ4 blocks to OUT_DIR, with an `embedded.rs` that `src/memory/packed.rs`
//! includes. Without all three the program builds too and carries none. The guest of `hull bench`, which
//! needs a compiler and nothing else, is built here.

#[path = "src/sandbox/filters.rs"]
#[allow(dead_code)] // what the documentation shows
mod filters;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs, thread};

use filters::{Call, DEBUG, EVERY, LISTS, OWN_PROCESS, Only};
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpOp, SeccompCondition, SeccompFilter};
use seccompiler::{SeccompRule, TargetArch, sock_filter};

/// Bytes of each LZ4 block when unpacked, as in src/memory/packed.rs.
const CHUNK: usize = 256 << 10;
/// The order is the one of `Guest` in src/guest.rs.
const PARTS: [&str; 3] = ["vmlinux", "initramfs.cpio", "System.map"];

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let guest = manifest.join("target/guest");
    println!("cargo:rerun-if-changed=build.rs");
    // By which the program knows itself (src/memory/program.rs).
    println!("cargo:rustc-link-arg-bins=-Wl,--build-id=sha1");
    // Relocations take 2 of their 164 KiB, and the first pages of a start are not spent on reading them.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");

    await_guest();
    let packed = if PARTS.iter().all(|part| guest.join(part).is_file()) {
        let parts: Vec<String> = PARTS.iter().map(|part| pack(&guest, &out, part)).collect();
        format!("Some([{}])", parts.concat())
    } else {
        // Cargo takes a missing path for a changed one and would build the program anew each
        // time; the folder, even an empty one, changes when the guest appears in it.
        let _ = fs::create_dir_all(&guest);
        println!("cargo:rerun-if-changed={}", guest.display());
        "None".into()
    };
    write(&out.join("embedded.rs"), packed.as_bytes());
    bench(&manifest.join("guest/bench/main.rs"), &out.join("bench"));
    write(&out.join("filters.rs"), seccomp_filters().as_bytes());
}

/// The seccomp filters of src/sandbox/filters.rs as arrays of BPF instructions, for src/sandbox/seccomp.rs.
fn seccomp_filters() -> String {
    println!("cargo:rerun-if-changed=src/sandbox/filters.rs");
    let debug = env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    let filter = |list: &filters::List| {
        let common = [EVERY, if debug { DEBUG } else { &[] }];
        let calls = common.iter().chain(list.calls).copied().flatten();
        let instructions = search(&shorten(&compile(calls)))
            .into_iter()
            .map(|instruction| {
                let sock_filter { code, jt, jf, k } = instruction;
                format!("sock_filter {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},")
            });
        format!("&[{}],\n", instructions.collect::<String>())
    };
    let names = LISTS.iter().flat_map(|list| list.calls.iter().copied());
    let names: BTreeMap<i64, &str> = names
        .chain([EVERY, DEBUG])
        .flatten()
        .map(|call| (call.number, call.name()))
        .collect();
    format!(
        "pub static FILTERS: [&[sock_filter]; {}] = [{}];\npub const OWN_PROCESS: u32 = {OWN_PROCESS};\n\
         static NAMES: [(i64, &str); {}] = {:?};\n",
        LISTS.len(),
        LISTS.iter().map(filter).collect::<String>(),
        names.len(),
        names.iter().collect::<Vec<_>>()
    )
}

/// The program that allows `calls`, and has any other one trapped.
fn compile<'a>(calls: impl Iterator<Item = &'a Call>) -> BpfProgram {
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    for call in calls {
        let conditions = alternatives(call.only).into_iter();
        let built = conditions
            .filter(|all| !all.is_empty())
            .map(|all| SeccompRule::new(all).expect("it has a condition"));
        rules.entry(call.number).or_default().extend(built);
    }
    let (trap, allow) = (SeccompAction::Trap, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, trap, allow, TargetArch::x86_64);
    filter
        .and_then(BpfProgram::try_from)
        .expect("a filter of fewer than 4096 instructions")
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const IS_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
/// How many numbers of system calls are compared one after another where a search ends.
const COMPARED: usize = 6;

/// The same program in a quarter of the instructions: the kernel compiles each filter and tries it with
/// every system call when it is installed. Jumps lead where the jumps at their target would lead, a value
/// is loaded once, and each result is returned at one place.
fn shorten(program: &[sock_filter]) -> BpfProgram {
    let jumps = |at: usize| match program[at].code {
        RETURN => vec![],
        JUMP => vec![at + 1 + program[at].k as usize],
        code if code & 7 == libc::BPF_JMP as u16 => {
            vec![
                at + 1 + usize::from(program[at].jt),
                at + 1 + usize::from(program[at].jf),
            ]
        }
        _ => vec![at + 1],
    };
    // What is loaded before each instruction, where that is the same on all ways to it. Jumps only lead
    // forward.
    let mut loaded: Vec<Option<Option<u32>>> = vec![None; program.len()];
    loaded[0] = Some(None);
    let after = |at: usize, before: Option<u32>| match program[at].code {
        LOAD => Some(program[at].k),
        code if code & 7 == libc::BPF_ALU as u16 => None,
        _ => before,
    };
    for at in 0..program.len() {
        let Some(before) = loaded[at] else { continue };
        for to in jumps(at) {
            let value = after(at, before);
            loaded[to] = match loaded[to] {
                None => Some(value),
                Some(other) if other == value => Some(value),
                Some(_) => Some(None),
            };
        }
    }
    let first = |returned: u32| {
        let is_it = |it: &sock_filter| it.code == RETURN && it.k == returned;
        program.iter().rposition(is_it).expect("it is there")
    };
    // Where an arrival at `to` with `value` loaded really leads.
    let lead = |mut to: usize, value: Option<u32>| loop {
        match program[to] {
            sock_filter { code: JUMP, k, .. } => to += 1 + k as usize,
            sock_filter { code: LOAD, k, .. } if value == Some(k) => to += 1,
            sock_filter {
                code: RETURN, k, ..
            } => return first(k),
            _ => return to,
        }
    };
    let next = |at: usize| {
        let value = loaded[at].and_then(|before| after(at, before));
        jumps(at)
            .into_iter()
            .map(move |to| lead(to, value))
            .collect::<Vec<_>>()
    };
    let mut kept = BTreeSet::from([lead(0, None)]);
    for at in 0..program.len() {
        if kept.contains(&at) {
            kept.extend(next(at));
        }
    }
    let place = |at: usize| kept.range(..at).count();
    let emit = |at: &usize| {
        let mut instruction = program[*at].clone();
        let offset = |to: usize| u8::try_from(place(to) - place(*at) - 1).expect("a short program");
        match next(*at)[..] {
            [holds, fails] => (instruction.jt, instruction.jf) = (offset(holds), offset(fails)),
            [to] => assert_eq!(offset(to), 0, "it goes on with the next instruction"),
            _ => {}
        }
        instruction
    };
    kept.iter().map(emit).collect()
}

/// The same program with a binary search for the number of the system call in place of a comparison with each
/// one: to install it takes half the time.
fn search(program: &[sock_filter]) -> BpfProgram {
    let is_number = |it: &sock_filter| it.code == LOAD && it.k == 0;
    let start = 1 + program.iter().position(is_number).expect("it is loaded");
    let (mut listed, mut unlisted) = (BTreeMap::new(), start);
    while program[unlisted].code == IS_EQUAL {
        listed.insert(program[unlisted].k, unlisted);
        unlisted += 1 + usize::from(program[unlisted].jf);
    }
    let comparisons: BTreeSet<usize> = listed.values().copied().collect();
    let listed: Vec<usize> = listed.into_values().collect();
    // Where the search is followed by what was at `at`, which is no comparison.
    let place = |at: usize| {
        assert!(!comparisons.contains(&at), "it is part of the search");
        at + steps(listed.len()) - comparisons.range(..at).count()
    };
    let jump = |instruction: &sock_filter, to: [usize; 2], from: usize| {
        let offset = |to: usize| u8::try_from(to - from - 1).expect("a short program");
        let [jt, jf] = to.map(offset);
        sock_filter {
            jt,
            jf,
            ..instruction.clone()
        }
    };

    let (mut searching, mut ranges) = (program[..start].to_vec(), vec![&listed[..]]);
    while let Some(range) = ranges.pop() {
        let here = searching.len();
        if range.len() > COMPARED {
            let (low, high) = range.split_at(range.len().div_ceil(2));
            let least = sock_filter {
                code: AT_LEAST,
                ..program[high[0]].clone()
            };
            searching.push(jump(&least, [here + 1 + steps(low.len()), here + 1], here));
            ranges.extend([high, low]);
            continue;
        }
        for (at, here) in range.iter().zip(here..) {
            let found = place(at + 1 + usize::from(program[*at].jt));
            let is_last = Some(at) == range.last();
            let other = if is_last { place(unlisted) } else { here + 1 };
            searching.push(jump(&program[*at], [found, other], here));
        }
    }
    let rest = (start..program.len()).filter(|at| !comparisons.contains(at));
    searching.extend(rest.map(|at| match &program[at] {
        it if it.code & 7 == libc::BPF_JMP as u16 => {
            let to = [it.jt, it.jf].map(|offset| place(at + 1 + usize::from(offset)));
            jump(it, to, place(at))
        }
        it => it.clone(),
    }));
    searching
}

/// Instructions of a search for one of `numbers`.
fn steps(numbers: usize) -> usize {
    match numbers {
        0..=COMPARED => numbers,
        _ => 1 + steps(numbers.div_ceil(2)) + steps(numbers / 2),
    }
}

/// The conditions of each way in which all of `only` are met.
fn alternatives(only: &[Only]) -> Vec<Vec<SeccompCondition>> {
    let is = |argument, op, value: u32| {
        SeccompCondition::new(argument, Dword, op, value.into()).expect("one of six arguments")
    };
    let mut ways = vec![Vec::new()];
    for only in only {
        let one: Vec<SeccompCondition> = match only {
            Only::OneOf(argument, values) => values
                .iter()
                .map(|(_, value)| is(*argument, SeccompCmpOp::Eq, *value))
                .collect(),
            Only::Lacks(argument, _, bits) => {
                vec![is(*argument, SeccompCmpOp::MaskedEq((*bits).into()), 0)]
            }
            Only::OwnProcess(argument) => vec![is(*argument, SeccompCmpOp::Eq, OWN_PROCESS)],
        };
        ways = ways
            .iter()
            .flat_map(|way| {
                one.iter()
                    .map(|condition| [&way[..], std::slice::from_ref(condition)].concat())
            })
            .collect();
    }
    ways
}

/// Build a program of a few KiB that needs no library.
fn bench(source: &Path, to: &Path) {
    println!("cargo:rerun-if-changed={}", source.display());
    let codegen = "panic=abort lto=fat opt-level=s strip=symbols relocation-model=static";
    let link = "-nostartfiles -nostdlib -static -no-pie -Wl,--build-id=none,-z,noseparate-code";
    let mut rustc = Command::new(env::var_os("RUSTC").expect("cargo sets it"));
    rustc.args(["--edition", "2024", "--target", "x86_64-unknown-linux-gnu"]);
    rustc.args(codegen.split(' ').flat_map(|flag| ["-C", flag]));
    rustc.args(link.split(' ').map(|flag| format!("-Clink-arg={flag}")));
    let status = rustc.arg("-o").arg(to).arg(source).status();
    let done = status.as_ref().is_ok_and(|status| status.success());
    assert!(done, "rustc {}: {status:?}", source.display());
}

/// Pack one part into `out`; gives the expression of its `Packed`.
fn pack(guest: &Path, out: &Path, part: &str) -> String {
    let from = guest.join(part);
    println!("cargo:rerun-if-changed={}", from.display());
    let bytes = match part {
        "vmlinux" => {
            let kernel = stripped(&from, &out.join("stripped"));
            println!("cargo:rustc-env=HULL_GUEST_RELEASE={}", release(&kernel));
            kernel
        }
        "System.map" => functions(&read(&from)),
        _ => read(&from),
    };
    let file = out.join(format!("{part}.lz4"));
    let (mut blocks, mut ends) = (Vec::new(), Vec::new());
    for chunk in bytes.chunks(CHUNK) {
        let best = lz4::block::CompressionMode::HIGHCOMPRESSION(12);
        let block = lz4::block::compress(chunk, Some(best), false);
        blocks.extend(block.unwrap_or_else(|error| panic!("{part}: {error}")));
        ends.push(blocks.len());
    }
    write(&file, &blocks);
    let length = bytes.len();
    format!("Packed {{ blocks: include_bytes!({file:?}), ends: &{ends:?}, length: {length} }},")
}

/// Wait until the guest is built. `make` builds it beside the libraries that hull uses, and has the file
/// HULL_GUEST_PENDING until then.
fn await_guest() {
    let Some(pending) = env::var_os("HULL_GUEST_PENDING") else {
        return;
    };
    while Path::new(&pending).exists() {
        thread::sleep(Duration::from_millis(100));
    }
}

/// The release in the kernel's banner, `Linux version RELEASE (...`.
fn release(kernel: &[u8]) -> String {
    let text = String::from_utf8_lossy(kernel);
    // Others are templates, with %s instead.
    let banners = text.split("Linux version ").skip(1);
    let mut releases =
        banners.filter(|rest| rest.starts_with(|first: char| first.is_ascii_digit()));
    let banner = releases.next().expect("a kernel has a banner");
    banner.split(' ').next().unwrap_or_default().to_string()
}

/// The kernel without its symbol table: a loader needs the segments alone.
fn stripped(from: &Path, to: &Path) -> Vec<u8> {
    let status = Command::new("strip").arg("-o").arg(to).arg(from).status();
    let done = status.as_ref().is_ok_and(|status| status.success());
    assert!(done, "strip {}: {status:?}", from.display());
    read(to)
}

/// The lines that can name an instruction pointer: types t, T, w and W of nm(1).
fn functions(map: &[u8]) -> Vec<u8> {
    map.split_inclusive(|byte| *byte == b'\n')
        .filter(|line| {
            matches!(
                line.split(|byte| *byte == b' ').nth(1),
                Some(b"t" | b"T" | b"w" | b"W")
            )
        })
        .collect::<Vec<_>>()
        .concat()
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
