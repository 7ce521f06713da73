//! What watching costs an exit, and a boot: `cargo bench --bench exits`.
//!
//! A flat guest writes to the UART's scratch register in a loop: the round trip of one OUT, from
//! the guest through KVM to the device and back. Turn by turn, each in a process of its own:
//! - bare: this program (started again with the word "bare"), a loop of its own over kvm-ioctls and
//!   the same bus with the same device, and nothing to watch by;
//! - off: `hull run`;
//! - on: `hull run --trace`.
//!
//! HULL_BENCH_RUNS=N sets how many rounds (15), HULL_BENCH_BOOTS=N adds as many boots of hull's own
//! guest each with and without a trace (0). Ratios are taken within a round, and given as least /
//! middle / most. Nothing is asserted. In the lab: `cargo bench --no-run`, and the program that it
//! names by tests/lab/run.

mod figures;

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use hull::devices::bus::{Bus, Interrupt};
use hull::devices::legacy::serial::{self, Serial, Sink};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use figures::{ratio, row, sorted};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Where hull loads flat payloads.
const START: u64 = 0x8000;
/// Round trips in one run.
const EXITS: u32 = 5_000;
const MEMORY: usize = 2 << 20;
/// The marks at the debug port around the loop: "init calls begin" and "init" in hull's report.
const BEGIN: u8 = 0x41;
const END: u8 = 0x60;
const DEBUG_PORT: u16 = 0x80;

fn main() -> Result<()> {
    if std::env::args().any(|word| word == "bare") {
        println!("{}", bare()?);
        return Ok(());
    }
    let number = |name: &str, usual| std::env::var(name).map_or(Ok(usual), |text| text.parse());
    let (rounds, boots) = (
        number("HULL_BENCH_RUNS", 15)?,
        number("HULL_BENCH_BOOTS", 0)?,
    );
    let folder = tempfile::Builder::new().tempdir_in("/dev/shm")?;
    let files = Files {
        hull: folder.path().join("hull"),
        payload: folder.path().join("payload"),
        report: folder.path().join("report"),
        trace: folder.path().join("trace"),
    };
    fs::copy(env!("CARGO_BIN_EXE_hull"), &files.hull)?;
    fs::write(&files.payload, payload())?;
    exits(&files, rounds)?;
    if boots > 0 {
        self::boots(&files, boots)?;
    }
    Ok(())
}

struct Files {
    hull: PathBuf,
    payload: PathBuf,
    report: PathBuf,
    trace: PathBuf,
}

impl Files {
    fn run(&self, traced: bool, arguments: &[&Path]) -> Result<serde_json::Value> {
        let mut run = Command::new(&self.hull);
        run.args(["run", "--cold"]).arg("--json").arg(&self.report);
        if traced {
            run.arg("--trace").arg(&self.trace);
        }
        let status = run.args(arguments).stdin(Stdio::null()).status()?;
        if !status.success() {
            return Err(format!("hull failed: {status}").into());
        }
        Ok(serde_json::from_slice(&fs::read(&self.report)?)?)
    }
}

/// Nanoseconds of a round trip.
fn exits(files: &Files, rounds: usize) -> Result<()> {
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        let output = Command::new(std::env::current_exe()?)
            .arg("bare")
            .output()?;
        times[0].push(String::from_utf8(output.stdout)?.trim().parse()?);
        for (traced, times) in [false, true].into_iter().zip(&mut times[1..]) {
            let report = files.run(traced, &[&files.payload])?;
            let at = |key: &str| report[key].as_f64().ok_or("the report has no such time");
            times.push((at("init_ms")? - at("initcalls_ms")?) * 1e6 / f64::from(EXITS));
        }
    }
    println!("a round trip in ns, {rounds} rounds of {EXITS}; least / middle / most");
    for (name, times) in ["bare loop", "hull", "hull --trace"].iter().zip(&times) {
        row(name, times, rounds);
    }
    for (name, one, other) in [("hull / bare", 1, 0), ("hull --trace / hull", 2, 1)] {
        ratios(name, &times[one], &times[other]);
        ratio(
            &format!("  {name}, of the middles"),
            &times[one],
            &times[other],
        );
    }
    Ok(())
}

fn boots(files: &Files, boots: usize) -> Result<()> {
    let mut times = [const { Vec::new() }; 2];
    let mut walls = [const { Vec::new() }; 2];
    for round in 0..boots {
        // Each goes first every other time.
        let order = [round % 2 == 1, round % 2 == 0];
        for traced in order {
            let start = Instant::now();
            let report = files.run(traced, &[Path::new("--"), Path::new("/bin/true")])?;
            walls[usize::from(traced)].push(start.elapsed().as_secs_f64() * 1e3);
            times[usize::from(traced)].extend(report["end_ms"].as_f64());
        }
    }
    println!("\nhull run -- /bin/true in ms, {boots} boots each; least / middle / most");
    for (index, name) in ["without", "with --trace"].into_iter().enumerate() {
        row(
            &format!("to the end of the guest, {name}"),
            &times[index],
            boots,
        );
        row(&format!("to the end of hull, {name}"), &walls[index], boots);
    }
    ratios("guest, with / without", &times[1], &times[0]);
    ratios("hull, with / without", &walls[1], &walls[0]);
    println!("  trace of {} KiB", fs::metadata(&files.trace)?.len() >> 10);
    Ok(())
}

/// The ratio of each round.
fn ratios(name: &str, one: &[f64], other: &[f64]) {
    let ratios: Vec<f64> = one
        .iter()
        .zip(other)
        .map(|(one, other)| one / other)
        .collect();
    let sorted = sorted(&ratios);
    if let (Some(least), Some(most)) = (sorted.first(), sorted.last()) {
        let middle = sorted[sorted.len() / 2];
        println!("  {name:<42} {least:>9.3} / {middle:>9.3} / {most:>9.3}");
    }
}

/// The guest, in real mode: the head of a flat payload, and a loop.
fn payload() -> Vec<u8> {
    let mut bytes = vec![0xeb, 0x0e];
    bytes.extend(b"HULLFLAT");
    bytes.extend([16, 0, 0, 0, 0, 0]);
    bytes.extend([0x66, 0xb9]); // mov ecx, EXITS
    bytes.extend(EXITS.to_le_bytes());
    bytes.extend([0xba, 0xff, 0x03]); // mov dx, 3ffh: the UART's scratch register
    bytes.extend([0xb0, BEGIN, 0xe6, DEBUG_PORT as u8]); // mov al, BEGIN; out 80h, al
    bytes.extend([0xee, 0x66, 0x49, 0x75, 0xfb]); // again: out dx, al; dec ecx; jnz again
    bytes.extend([0xb0, END, 0xe6, DEBUG_PORT as u8]); // mov al, END; out 80h, al
    bytes.extend([0xba, 0x04, 0x06, 0xb8, 0x00, 0x34, 0xef]); // off: ACPI's S5
    bytes.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp to it
    bytes
}

struct Nowhere;

impl Sink for Nowhere {
    fn write(&mut self, _: &[u8]) {}
}

impl Interrupt for Nowhere {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The same guest by a loop with nothing else in it; nanoseconds of a round trip.
fn bare() -> Result<f64> {
    let vm = Kvm::new()?.create_vm()?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)])?;
    memory.write_slice(&payload(), GuestAddress(START))?;
    let slot = kvm_userspace_memory_region {
        memory_size: MEMORY as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: the whole of a mapping that outlives the vCPU's last run.
    unsafe { vm.set_user_memory_region(slot) }?;
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    })?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (START, 2);
    vcpu.set_regs(&regs)?;

    let mut bus = Bus::new();
    let uart = Arc::new(Mutex::new(Serial::new(Nowhere, Arc::new(Nowhere))));
    bus.insert(0x3f8, serial::PORTS, "COM1", uart)?;
    let mut begun = Instant::now();
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(DEBUG_PORT, &[BEGIN]) => begun = Instant::now(),
            VcpuExit::IoOut(DEBUG_PORT, &[END]) => {
                return Ok(begun.elapsed().as_secs_f64() * 1e9 / f64::from(EXITS));
            }
            VcpuExit::IoOut(port, data) => {
                bus.write(port.into(), data);
            }
            other => return Err(format!("an exit that the guest does not make: {other:?}").into()),
        }
    }
}
