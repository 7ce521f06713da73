//! What a boot costs on this machine: `cargo bench --bench boot`.
//!
//! - hull's own guest, from exec to the first instruction, the kernel's first output, init, the end;
//! - of that, hull's part beside a bare sequence of the KVM calls that it cannot do without, made
//!   by a process that does nothing else: this program, started again with the word "bare";
//! - memory that is resident beyond the guest's, while a guest sleeps; the program's size;
//! - with HULL_PEER_FIRECRACKER=PATH the time to the first line of user space, turn by turn with
//!   Firecracker: same kernel, initial RAM disk and arguments, 1 vCPU, 128 MiB, a quiet console.
//!
//! HULL_BENCH_RUNS=N sets how often (11). Each figure is least / middle / most of its runs; files
//! are read from memory (/dev/shm). Nothing is asserted. A KVM as hardware has it is in the lab:
//! build with `cargo bench --no-run` and give the program that it names to tests/lab/run. There
//! a boot takes seconds: ask for few runs. One that does not end is left out and counted.

mod figures;

use std::error::Error;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hull::memory::layout::KVM_TSS;
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};
use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::MmapRegion;

use figures::{ratio, row};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MEMORY_MIB: u64 = 128;
/// Longest that one run may take.
const LIMIT: Duration = Duration::from_secs(60);
/// What the guest of the comparison prints.
const LINE: &str = "user space\n";

fn main() -> Result<()> {
    let started = process_start();
    if let Some(order) = std::env::args().skip_while(|word| word != "bare").nth(1) {
        set_up_kvm(&order)?;
        println!("{}", ms(started.elapsed()));
        return Ok(());
    }
    let runs = std::env::var("HULL_BENCH_RUNS").map_or(Ok(11), |runs| runs.parse())?;
    let files = Files::new()?;
    println!("{runs} runs each; ms: least / middle / most");
    own_guest(&files, runs)?;
    resident(&files)?;
    size(&files)?;
    match std::env::var_os("HULL_PEER_FIRECRACKER") {
        Some(peer) => compare(&files, Path::new(&peer), runs)?,
        None => println!("\nHULL_PEER_FIRECRACKER is not set: no comparison"),
    }
    Ok(())
}

/// hull's own guest, and the bare calls in between.
fn own_guest(files: &Files, runs: usize) -> Result<()> {
    if hull::guest::embedded().is_none() {
        println!("hull carries no guest: run `make build` first");
        return Ok(());
    }
    let points = [
        ("exec to first instruction", "first_instruction_ms"),
        ("exec to the kernel's output", "kernel_output_ms"),
        ("exec to init", "init_ms"),
        ("exec to the end", "end_ms"),
    ];
    let orders = ["least", "usual"];
    let mut times = vec![Vec::new(); points.len()];
    let mut bare = vec![Vec::new(); orders.len()];
    let report = files.path("report");
    for _ in 0..runs {
        let mut run = Command::new(&files.hull);
        run.args(["run", "--cold"]).arg("--json").arg(&report);
        let run = run.args(["--", "/bin/true"]).stdin(Stdio::null());
        if finish(run.spawn()?)? {
            let report: serde_json::Value = serde_json::from_slice(&fs::read(&report)?)?;
            for ((_, key), times) in points.iter().zip(&mut times) {
                times.extend(report[key].as_f64());
            }
        }
        for (order, times) in orders.iter().zip(&mut bare) {
            let mut child = Command::new(std::env::current_exe()?);
            let output = child.args(["bare", order]).output()?.stdout;
            times.push(String::from_utf8(output)?.trim().parse()?);
        }
    }
    println!("\nhull run -- /bin/true");
    for ((name, _), times) in points.iter().zip(&times) {
        row(name, times, runs);
    }
    println!(
        "bare calls; least: /dev/kvm, VM, irqchip, vCPU; usual: and slot, PIT, CPUID, registers"
    );
    for (order, times) in orders.iter().zip(&bare) {
        row(&format!("exec to vCPU, {order}"), times, runs);
    }
    for (order, bare) in orders.iter().zip(&bare) {
        ratio(&format!("first instruction / {order}"), &times[0], bare);
    }
    Ok(())
}

/// What no VMM can do without, or what each does before its first KVM_RUN.
fn set_up_kvm(order: &str) -> Result<()> {
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    if order == "least" {
        vm.create_irq_chip()?;
        vm.create_vcpu(0)?;
        return Ok(());
    }
    let memory = MmapRegion::<()>::new((MEMORY_MIB << 20) as usize)?;
    set_slot(&vm, &memory)?;
    vm.set_tss_address(KVM_TSS as usize)?;
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    })?;
    let vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    vcpu.set_sregs(&vcpu.get_sregs()?)?;
    vcpu.set_regs(&vcpu.get_regs()?)?;
    Ok(())
}

fn set_slot(vm: &VmFd, memory: &MmapRegion<()>) -> Result<()> {
    let slot = kvm_userspace_memory_region {
        memory_size: memory.size() as u64,
        userspace_addr: memory.as_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the whole of a mapping; no vCPU ever runs on it.
    unsafe { vm.set_user_memory_region(slot) }?;
    Ok(())
}

/// Memory beyond the guest's, while its command sleeps.
fn resident(files: &Files) -> Result<()> {
    let mut run = Command::new(&files.hull);
    run.args(["run", "--cold", "--memory", &format!("{MEMORY_MIB}M"), "--"]);
    run.args(["/bin/sh", "-c", "echo up; exec sleep 1000"])
        .stdin(Stdio::null());
    let mut child = run.stdout(Stdio::piped()).spawn()?;
    let up = wait_for(&mut child, "up\n")?.is_some();
    std::thread::sleep(Duration::from_millis(500));
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", child.id()));
    end(child)?;
    if up {
        let (guest, beyond) = kib_resident(&smaps?);
        println!("\nresident memory: {beyond} KiB beyond the guest's {guest} KiB");
    } else {
        println!("\nresident memory: the guest did not come up");
    }
    Ok(())
}

/// Resident KiB of the guest's memory, which is the one mapping of its size that can be written,
/// and of all others (proc(5), /proc/pid/smaps).
fn kib_resident(smaps: &str) -> (u64, u64) {
    let (mut guest, mut beyond) = (0, 0);
    let (mut is_guest, mut writable) = (false, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let kib = value.parse::<u64>().unwrap_or(0);
        match key {
            "Size:" => is_guest = writable && kib >= MEMORY_MIB << 10,
            "Rss:" if is_guest => guest += kib,
            "Rss:" => beyond += kib,
            _ if !key.ends_with(':') => writable = value.starts_with("rw"),
            _ => {}
        }
    }
    (guest, beyond)
}

fn size(files: &Files) -> Result<()> {
    let program = fs::metadata(&files.hull)?.len();
    let parts =
        hull::guest::embedded().map(|guest| [guest.vmlinux, guest.initramfs, guest.system_map]);
    let guest: usize = parts.iter().flatten().map(|part| part.packed_len()).sum();
    let kib = |bytes: u64| bytes.div_ceil(1024);
    println!(
        "program: {} KiB, {} KiB without the guest",
        kib(program),
        kib(program.saturating_sub(guest as u64))
    );
    Ok(())
}

/// The same guest under hull and under Firecracker, in turns.
fn compare(files: &Files, firecracker: &Path, runs: usize) -> Result<()> {
    let kernel = files.copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest/vmlinux"))?;
    let firecracker = files.copy(firecracker)?;
    let initrd = files.path("initrd");
    fs::write(&initrd, guest_files()?)?;
    let words = "console=ttyS0 reboot=k panic=-1 quiet";
    let config = files.path("config");
    let machine = serde_json::json!({
        "boot-source": {"kernel_image_path": kernel, "initrd_path": initrd, "boot_args": words},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
        "drives": [],
    });
    fs::write(&config, machine.to_string())?;

    let mut hull = Command::new(&files.hull);
    hull.arg("run").arg(&kernel).arg("--initrd").arg(&initrd);
    hull.args(["--cmdline", words, "--memory", &format!("{MEMORY_MIB}M")]);
    let mut peer = Command::new(firecracker);
    peer.args(["--no-api", "--no-seccomp", "--config-file"])
        .arg(&config);
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..runs {
        for (command, times) in [&mut hull, &mut peer].into_iter().zip(&mut times) {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
            let mut child = command.spawn()?;
            times.extend(wait_for(&mut child, LINE)?.map(ms));
            finish(child)?;
        }
    }
    println!("\nexec to the first line of user space, same kernel, initrd and arguments");
    row("hull", &times[0], runs);
    row("Firecracker", &times[1], runs);
    ratio("hull / Firecracker", &times[0], &times[1]);
    Ok(())
}

/// An initial RAM disk: a console, and an init that prints [`LINE`] and reboots.
fn guest_files() -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    let entries = [
        ("dev", 0o040_755, 0, Vec::new()),
        ("dev/console", 0o020_600, 5, Vec::new()),
        ("init", 0o100_755, 0, init()),
    ];
    for (name, mode, major, content) in entries {
        let header = cpio::newc::Builder::new(name).mode(mode).rdev_major(major);
        let header = header.rdev_minor(major.min(1));
        let mut entry = header.write(archive, content.len() as u32);
        std::io::Write::write_all(&mut entry, &content)?;
        archive = entry.finish()?;
    }
    Ok(cpio::newc::trailer(archive)?)
}

/// A program of 200 bytes: write(1, LINE), reboot(RESTART) (System V ABI, 4; reboot(2)).
fn init() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut code = vec![0xb8, 1, 0, 0, 0]; // mov eax, write
    code.extend([0xbf, 1, 0, 0, 0]); // mov edi, 1
    code.extend([0x48, 0x8d, 0x35, 31, 0, 0, 0]); // lea rsi, [rip + 31]: the line
    code.extend([0xba, LINE.len() as u8, 0, 0, 0, 0x0f, 0x05]); // mov edx, length; syscall
    code.extend([0xb8, 169, 0, 0, 0]); // mov eax, reboot
    code.extend([0xbf, 0xad, 0xde, 0xe1, 0xfe]); // mov edi, LINUX_REBOOT_MAGIC1
    code.extend([0xbe, 0x69, 0x19, 0x12, 0x28]); // mov esi, LINUX_REBOOT_MAGIC2
    code.extend([0xba, 0x67, 0x45, 0x23, 0x01]); // mov edx, LINUX_REBOOT_CMD_RESTART
    code.extend([0x0f, 0x05, 0xeb, 0xfe]); // syscall; jmp $
    code.extend(LINE.as_bytes());

    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend([BASE + HEADERS, 64, 0].map(u64::to_le_bytes).concat()); // entry, phoff, shoff
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // flags, sizes, one segment
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, readable and executable
    let size = HEADERS + code.len() as u64;
    file.extend(
        [0, BASE, BASE, size, size, 0x1000]
            .map(u64::to_le_bytes)
            .concat(),
    );
    file.extend(code);
    file
}

/// How long it takes until `line` is on the child's standard output; `None` if it never is.
fn wait_for(child: &mut Child, line: &str) -> Result<Option<Duration>> {
    let started = Instant::now();
    let mut stdout = child.stdout.take().ok_or("no pipe")?;
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while let Some(left) = LIMIT.checked_sub(started.elapsed()) {
        let mut fds = [PollFd::new(&stdout, PollFlags::IN)];
        if poll(&mut fds, Some(&left.try_into()?))? == 0 {
            break;
        }
        match stdout.read(&mut buffer)? {
            0 => break,
            read => seen.extend_from_slice(&buffer[..read]),
        }
        // Carriage returns are the terminal's.
        seen.retain(|byte| *byte != b'\r');
        if seen
            .windows(line.len())
            .any(|window| window == line.as_bytes())
        {
            let time = started.elapsed();
            child.stdout = Some(stdout);
            return Ok(Some(time));
        }
    }
    Ok(None)
}

/// Let the child end, but not for ever. Whether it did, and well.
fn finish(mut child: Child) -> Result<bool> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    end(child)?;
    Ok(false)
}

fn end(mut child: Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// When this process was executed, as `hull run --timing` has it: the CPU time used so far ago.
fn process_start() -> Instant {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let now = Instant::now();
    now.checked_sub(Duration::try_from(used).unwrap_or_default())
        .unwrap_or(now)
}

/// A folder in memory, with the program in it.
struct Files {
    folder: tempfile::TempDir,
    hull: PathBuf,
}

impl Files {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir_in("/dev/shm")?;
        let hull = folder.path().join("hull");
        fs::copy(env!("CARGO_BIN_EXE_hull"), &hull)?;
        Ok(Self { folder, hull })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn copy(&self, from: &Path) -> Result<PathBuf> {
        let to = self.path(&from.file_name().unwrap_or_default().to_string_lossy());
        fs::copy(from, &to).map_err(|error| format!("{}: {error}", from.display()))?;
        Ok(to)
    }
}
