//! Build script: packs the built guest, if there is one, so that the program can carry it.
//!
//! Takes target/guest/{vmlinux, initramfs.cpio, System.map}, which `make build` leaves there, and
//! writes each as LZ4 blocks to OUT_DIR, with an `embedded.rs` that `src/memory/packed.rs`
//! includes. Without all three the program builds too and carries none. The guest of `hull bench`, which
//! needs a compiler and nothing else, is built here.

#[path = "src/sandbox/compile.rs"]
mod compile;
#[path = "src/sandbox/filters.rs"]
#[allow(dead_code)] // what the documentation shows
mod filters;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs, thread};

use compile::compile;
use filters::{DEBUG, EVERY, LISTS, OWN_PROCESS};
use libc::sock_filter;

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
    println!("cargo:rerun-if-changed=src/sandbox/compile.rs");
    let debug = env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    let filter = |list: &filters::List| {
        let common = [EVERY, if debug { DEBUG } else { &[] }];
        let calls = common.iter().chain(list.calls).copied().flatten();
        let instructions = compile(calls).into_iter().map(|instruction| {
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
