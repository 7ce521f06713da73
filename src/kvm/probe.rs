//! The kind of this host's KVM and whether it has what hull needs, by measurement.
//!
//! [`NEEDS`] is the list of capabilities; [`measure`] runs guests of a few instructions and times
//! them. `hull doctor` shows all of it, and [`finishes_every_instruction`] decides what a booting
//! machine tells its kernel.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::*;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use serde::Serialize;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::cpuid::Place;
use super::debug::{Control, Point, PointKind, Powers, Stopped, Trap};
use super::processor::{Kind, Processor};
use super::vcpu::{Kicker, Vcpu};
use super::vm::Vm;
use super::{KvmError, msrs, refused};
use crate::boot::{BootError, Entry, Mode, tables};
use crate::memory::GuestMemory;
use crate::memory::backing::{self, BackingError};
use crate::memory::layout::{FLAT_PAYLOAD, PAGE_SIZE, PAGE_TABLES};
use crate::sandbox::{Role, spawn};

/// Words on a kernel's command line for a KVM that does not finish every instruction: do not use
/// instructions that each end in an exit to hull (`kvm::assist`), leave long copies to hull
/// (`assist::bulk`; hull's kernel then saves instructions elsewhere too, see guest/kernel/patches), do
/// not account memory to cgroups page by page, do not free the initrd's memory page by page, use
/// kvm-clock (such a KVM cannot set a guest's TSC, which jumps when the guest is restored), and do
/// not set the timer for each event.
pub const SOFTWARE_KVM_WORDS: [&str; 6] = [
    "clearcpuid=smap,popcnt,cx16,xsavec,xsaves",
    "hull.bulk",
    "cgroup_disable=memory",
    "retain_initrd",
    "clocksource=kvm-clock",
    "highres=off",
];

/// Guest memory of the probe in bytes: the low part of the layout.
const MEMORY: u64 = 2 << 20;
/// Time limit for a guest of a few instructions.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Each time is the shortest of this many: disturbances only make a measurement longer.
const ROUNDS: usize = 3;
/// Port exits that are timed together.
const EXITS: u32 = 32;
/// Iterations of a timed loop of two instructions: 12 ms in an emulator, and 1 ms on a processor.
const FEW_ITERATIONS: u32 = 10_000;
const MANY_ITERATIONS: u32 = 1_000_000;
/// How often the few are tried before the processor counts as emulated.
const CONFIRMATIONS: u32 = 6;
/// Instructions slower than this are emulated: an old processor takes 1 ns, an emulator 500.
const EMULATED_NS: f64 = 50.0;
/// A CPUID leaf in the range of hypervisors that no KVM uses, and the value set there.
const MARKER_LEAF: u32 = 0x4000_00f0;
const MARKER: u32 = u32::from_le_bytes(*b"hull");
/// CPUID.1:ECX[23], POPCNT: every processor with VT-x or SVM since 2008 has it; the probe hides it.
const HIDDEN_FEATURE: u32 = 1 << 23;

/// How much hull depends on a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Degree {
    /// No guest runs without it.
    Required,
    /// Without it a feature is missing, which this names.
    Wanted(&'static str),
}

/// A capability of KVM (Documentation/virt/kvm/api.rst, 4.4) that hull uses.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// The name in `<linux/kvm.h>`.
    pub name: &'static str,
    /// The number in that header.
    pub capability: u32,
    /// How much hull depends on it.
    pub degree: Degree,
}

macro_rules! required {
    ($name:ident) => {
        Need {
            name: stringify!($name),
            capability: $name,
            degree: Degree::Required,
        }
    };
}

macro_rules! wanted {
    ($name:ident, $for:literal) => {
        Need {
            name: stringify!($name),
            capability: $name,
            degree: Degree::Wanted($for),
        }
    };
}

/// Every capability that hull uses.
pub const NEEDS: [Need; 20] = [
    // The machine: memory, interrupt controllers, timer.
    required!(KVM_CAP_USER_MEMORY),
    required!(KVM_CAP_SET_TSS_ADDR),
    required!(KVM_CAP_SET_IDENTITY_MAP_ADDR),
    required!(KVM_CAP_IRQCHIP),
    required!(KVM_CAP_PIT2),
    // Devices: a notification without an exit to hull.
    required!(KVM_CAP_IOEVENTFD),
    // vCPUs: CPUID, the APIC timer that CPUID shows, and how they are stopped.
    required!(KVM_CAP_EXT_CPUID),
    required!(KVM_CAP_TSC_DEADLINE_TIMER),
    required!(KVM_CAP_IMMEDIATE_EXIT),
    // The state that `assist` and snapshots read and write.
    required!(KVM_CAP_MP_STATE),
    required!(KVM_CAP_VCPU_EVENTS),
    required!(KVM_CAP_XSAVE),
    required!(KVM_CAP_XCRS),
    wanted!(KVM_CAP_DEBUGREGS, "a snapshot loses hardware breakpoints"),
    wanted!(KVM_CAP_PIT_STATE2, "no snapshots"),
    wanted!(KVM_CAP_ADJUST_CLOCK, "kvm-clock jumps after a pause"),
    wanted!(
        KVM_CAP_KVMCLOCK_CTRL,
        "a pause looks like a lock-up to the guest"
    ),
    wanted!(
        KVM_CAP_CLOCKSOURCE,
        "guests have no kvm-clock and measure the TSC"
    ),
    wanted!(
        KVM_CAP_GET_TSC_KHZ,
        "a snapshot cannot be checked for its TSC's rate"
    ),
    wanted!(
        KVM_CAP_SET_GUEST_DEBUG,
        "no breakpoints and no single steps"
    ),
];

/// Those of [`NEEDS`] that `kvm` does not have.
pub fn missing(kvm: &Kvm) -> Vec<Need> {
    let mut needs = NEEDS.to_vec();
    needs.retain(|need| kvm.check_extension_raw(need.capability.into()) <= 0);
    needs
}

/// Whether `kvm` reports an instruction that it cannot emulate, with its bytes.
pub fn reports_instructions(kvm: &Kvm) -> bool {
    kvm.check_extension_raw(KVM_CAP_EXIT_ON_EMULATION_FAILURE.into()) > 0
}

/// Why the measurement failed.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// KVM refused a request.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory cannot be mapped.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// The guest's boot tables cannot be written.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Guest memory is too small for the probe.
    #[error("cannot write the probe to guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// The thread of the vCPU cannot be started.
    #[error("cannot start a vCPU's thread ({0}); raise the limit of processes (ulimit -u)")]
    Thread(std::io::Error),
    /// The guest did not exit in time.
    #[error("a guest of a few instructions did not exit")]
    Stuck,
    /// The guest exited for another reason than its code.
    #[error("a guest of a few instructions ended with {0}")]
    Exit(String),
}

/// The results of [`measure`].
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// What executes the guest's kernel.
    pub kind: Kind,
    /// The hypervisor under this host, if there is one.
    pub nested_in: Option<String>,
    /// Time of one instruction of a guest's kernel, in nanoseconds.
    pub instruction_ns: f64,
    /// Time from the guest to hull and back, for one byte to a port, in microseconds.
    pub port_exit_us: f64,
    /// Whether the guest's kernel sees the CPUID that hull sets, and nothing else.
    pub honours_cpuid: bool,
    /// Whether the guest's user space sees that CPUID, too.
    pub honours_user_cpuid: bool,
    /// Whether KVM runs every instruction that kernels use.
    pub finishes_instructions: bool,
    /// Whether SYSCALL in user code enters the kernel.
    pub enters_kernel_by_syscall: bool,
}

/// Create a machine and run guests of a few instructions. Takes some 10 ms on a processor, 100 ms in an
/// emulator, and at most 5 s.
///
/// # Errors
/// KVM refuses something that every machine needs, or the guest behaves wrongly.
pub fn measure(kvm: Kvm) -> Result<Measurement, ProbeError> {
    within(TIMEOUT, kvm, measure_on)
}

/// Run `work` on a machine with one vCPU; [`ProbeError::Stuck`] after `limit`.
fn within<T: Send + 'static>(
    limit: Duration,
    kvm: Kvm,
    work: impl FnOnce(&mut Vcpu, &GuestMemory) -> Result<T, ProbeError> + Send + 'static,
) -> Result<T, ProbeError> {
    Kicker::prepare()?;
    let memory = backing::allocate(MEMORY)?;
    let vm = Vm::new(kvm, memory.clone())?;
    let mut vcpu = vm.create_vcpu(&Place::ALONE)?;
    let kicker = vcpu.kicker();
    let (sender, done) = mpsc::channel();
    let probe = move || {
        let _ = sender.send(work(&mut vcpu, &memory));
    };
    let thread = spawn(Role::Probe, probe).map_err(ProbeError::Thread)?;
    let result = done.recv_timeout(limit);
    // Repeatedly, because `Guest::complete` may have cleared a kick.
    while result.is_err() && !thread.is_finished() {
        kicker.kick(&thread);
        thread::sleep(Duration::from_millis(1));
    }
    let _ = thread.join();
    result.unwrap_or(Err(ProbeError::Stuck))
}

fn measure_on(vcpu: &mut Vcpu, memory: &GuestMemory) -> Result<Measurement, ProbeError> {
    // First: KVM accepts no other CPUID once the vCPU has run.
    mark_cpuid(vcpu.fd())?;
    let finishes_instructions = finishes_every_instruction(vcpu, memory)?;
    let mut guest = Guest { vcpu, memory };
    let honours_cpuid = guest.sees_the_marks(Ring::Kernel)?;
    let honours_user_cpuid = guest.sees_the_marks(Ring::User)?;
    let exit = guest.least(Guest::port_exit)?;
    let instruction_ns = guest.instruction_ns()?;
    // Last, because a failure ends in a triple fault.
    let enters_kernel_by_syscall = guest.enters_kernel_by_syscall()?;
    let processor = Processor::of_host();
    Ok(Measurement {
        kind: match processor.virtualization {
            _ if instruction_ns > EMULATED_NS => Kind::Software,
            found => found.unwrap_or(Kind::Hardware),
        },
        nested_in: processor.hypervisor,
        instruction_ns: rounded(instruction_ns),
        port_exit_us: rounded(exit.as_secs_f64() * 1e6),
        honours_cpuid,
        honours_user_cpuid,
        finishes_instructions,
        enters_kernel_by_syscall,
    })
}

/// Rounded to two decimals.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Whether this KVM finishes all instructions that kernels use, as a processor does, or leaves some to
/// [`super::assist`]. Tested with one that emulators do not know.
///
/// Restores the vCPU's system registers, but not the general ones; guest memory keeps the tables of a
/// 64-bit entry and is otherwise unchanged.
///
/// # Errors
/// Guest memory is smaller than the layout's low part, or KVM refused the registers.
pub fn finishes_every_instruction(
    vcpu: &mut Vcpu,
    memory: &GuestMemory,
) -> Result<bool, ProbeError> {
    // popcnt eax, eax; out 80h, al
    const CODE: &[u8] = b"\xf3\x0f\xb8\xc0\xe6\x80";
    let before = vcpu.fd().get_sregs().map_err(refused("KVM_GET_SREGS"))?;
    let mut guest = Guest { vcpu, memory };
    guest.place(CODE, Ring::Kernel)?;
    let finished = !matches!(guest.vcpu.fd().run(), Ok(VcpuExit::InternalError));
    guest.complete();
    // KVM refuses an entry without paging (PVH, a 32-bit payload) while EFER says long mode.
    let fd = guest.vcpu.fd();
    fd.set_sregs(&before).map_err(refused("KVM_SET_SREGS"))?;
    memory.write_slice(&[0; CODE.len()], GuestAddress(FLAT_PAYLOAD))?;
    log::debug!("KVM finishes every instruction: {finished}");
    Ok(finished)
}

/// The debugging features of KVM, by measurement, because some KVMs claim features that do not work.
///
/// # Errors
/// As [`measure`].
pub fn debugging(kvm: Kvm) -> Result<Powers, ProbeError> {
    let flags = kvm.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into());
    within(TIMEOUT, kvm, move |vcpu, memory| {
        let mut guest = Guest { vcpu, memory };
        let mut stops = |code: &[u8], control: &Control| {
            guest.place(code, Ring::Kernel)?;
            Ok::<_, ProbeError>(guest.vcpu.stops_under(control)?)
        };
        let mut point = |code: &[u8], address, kind| {
            let len = 1;
            let mut control = Control::default();
            control.points[0] = Some(Point { address, len, kind });
            Ok::<_, ProbeError>(stops(code, &control)? == Stopped::Debug)
        };
        // nop; nop; out 80h, al
        let execute = point(b"\x90\x90\xe6\x80", FLAT_PAYLOAD + 1, PointKind::Execute)?;
        // mov [rip + 16], al; out 80h, al
        let watched = FLAT_PAYLOAD + 6 + 16;
        let watch = point(b"\x88\x05\x10\0\0\0\xe6\x80", watched, PointKind::Write)?;
        let breakpoints = Control {
            trap: Some(Trap::Exit),
            ..Default::default()
        };
        // Last: if the guest gets the exception, it has no handler and shuts down.
        // int3; out 80h, al
        let trap = match stops(b"\xcc\xe6\x80", &breakpoints)? {
            Stopped::Debug => Trap::Exit,
            Stopped::Failure => Trap::Failure,
            Stopped::Otherwise => Trap::Port,
        };
        Ok(Powers {
            trap,
            execute,
            watch,
            blocks_interrupts: flags as u32 & KVM_GUESTDBG_BLOCKIRQ != 0,
        })
    })
}

/// The time to create a machine with one vCPU and nothing else, from opening /dev/kvm: a lower bound for
/// every monitor.
///
/// # Errors
/// An ioctl that KVM refuses, with its errno.
pub fn bare_machine() -> Result<Duration, KvmError> {
    let started = Instant::now();
    let vm = super::vm::open()?
        .create_vm()
        .map_err(refused("KVM_CREATE_VM"))?;
    vm.create_irq_chip()
        .map_err(refused("KVM_CREATE_IRQCHIP"))?;
    vm.create_vcpu(0).map_err(refused("KVM_CREATE_VCPU"))?;
    Ok(started.elapsed())
}

/// Add the marker to the vCPU's CPUID, and hide a feature.
fn mark_cpuid(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let set = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("KVM_GET_CPUID2"))?;
    // Linux 6.1 does not return the number of entries; the unused ones are zeros.
    let there = |entry: &&kvm_cpuid_entry2| **entry != kvm_cpuid_entry2::default();
    let mut entries: Vec<_> = set.as_slice().iter().filter(there).copied().collect();
    for entry in &mut entries {
        if entry.function == 1 {
            entry.ecx &= !HIDDEN_FEATURE;
        }
    }
    entries.push(kvm_cpuid_entry2 {
        function: MARKER_LEAF,
        ebx: MARKER,
        ..Default::default()
    });
    match CpuId::from_entries(&entries) {
        Ok(marked) => vcpu.set_cpuid2(&marked).map_err(refused("KVM_SET_CPUID2")),
        // One entry too many: the marker will not be found.
        Err(_) => Ok(()),
    }
}

/// The privilege level of a snippet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ring {
    /// CPL 0, as a kernel.
    Kernel,
    /// CPL 3, with IOPL 3, so that it may write to ports.
    User,
}

/// A vCPU that runs snippets of 64-bit code, each up to a write to a port.
struct Guest<'a> {
    vcpu: &'a mut Vcpu,
    memory: &'a GuestMemory,
}

impl Guest<'_> {
    /// Write `code` to memory and set the vCPU's registers to start there.
    fn place(&mut self, code: &[u8], ring: Ring) -> Result<(), ProbeError> {
        let entry = Entry {
            mode: Mode::Flat64,
            rip: FLAT_PAYLOAD,
            params: 0,
        };
        tables::write(self.memory, entry.mode)?;
        self.memory.write_slice(code, GuestAddress(FLAT_PAYLOAD))?;
        self.vcpu.enter_at(&entry)?;
        match ring {
            Ring::Kernel => Ok(()),
            Ring::User => self.drop_privilege(),
        }
    }

    /// Set the vCPU, which is at a 64-bit entry, to CPL 3, and make its memory accessible to CPL 3.
    fn drop_privilege(&mut self) -> Result<(), ProbeError> {
        // U/S (bit 2) in the entries of all three levels that map the first 2 MiB (Intel SDM 3A,
        // 4.6).
        for table in 0..3 {
            let entry = GuestAddress(PAGE_TABLES + table * PAGE_SIZE);
            let byte: u8 = self.memory.read_obj(entry)?;
            self.memory.write_obj(byte | 1 << 2, entry)?;
        }
        let fd = self.vcpu.fd();
        let mut sregs = fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        sregs.efer |= 1; // SCE: SYSCALL is an instruction (AMD APM 2, 3.1.7)
        for segment in [&mut sregs.cs, &mut sregs.ss] {
            segment.selector |= 3;
            segment.dpl = 3;
        }
        fd.set_sregs(&sregs).map_err(refused("KVM_SET_SREGS"))?;
        let mut regs = fd.get_regs().map_err(refused("KVM_GET_REGS"))?;
        regs.rflags |= 3 << 12; // IOPL
        Ok(fd.set_regs(&regs).map_err(refused("KVM_SET_REGS"))?)
    }

    /// Run to the next write to a port.
    fn run(&mut self) -> Result<(), ProbeError> {
        match self.vcpu.fd().run() {
            Ok(VcpuExit::IoOut(..)) => Ok(()),
            Ok(VcpuExit::Intr) => Err(ProbeError::Stuck),
            Ok(exit) => Err(ProbeError::Exit(format!("the exit {exit:?}"))),
            Err(error) if error.errno() == libc::EINTR => Err(ProbeError::Stuck),
            Err(error) => Err(refused("KVM_RUN")(error).into()),
        }
    }

    /// Complete the port access that ended a snippet, so that none is pending later.
    fn complete(&mut self) {
        self.vcpu.complete();
    }

    /// The shortest of several measurements.
    fn least(
        &mut self,
        mut measure: impl FnMut(&mut Self) -> Result<Duration, ProbeError>,
    ) -> Result<Duration, ProbeError> {
        let mut least = Duration::MAX;
        for _ in 0..ROUNDS {
            least = least.min(measure(self)?);
        }
        Ok(least)
    }

    /// Whether CPUID returns what [`mark_cpuid`] has set.
    fn sees_the_marks(&mut self, ring: Ring) -> Result<bool, ProbeError> {
        // mov eax, MARKER_LEAF; cpuid; mov esi, ebx; mov eax, 1; cpuid; out 80h, al
        let leaf = MARKER_LEAF.to_le_bytes();
        let rest = b"\x0f\xa2\x89\xde\xb8\x01\0\0\0\x0f\xa2\xe6\x80";
        self.place(&[b"\xb8".as_slice(), &leaf, rest].concat(), ring)?;
        self.run()?;
        let regs = self.vcpu.fd().get_regs();
        self.complete();
        let regs = regs.map_err(refused("KVM_GET_REGS"))?;
        Ok(regs.rsi as u32 == MARKER && regs.rcx as u32 & HIDDEN_FEATURE == 0)
    }

    /// The time of one port exit, with the jump back to the next.
    fn port_exit(&mut self) -> Result<Duration, ProbeError> {
        // out 80h, al; jmp $-2
        self.place(b"\xe6\x80\xeb\xfc", Ring::Kernel)?;
        self.run()?;
        let start = Instant::now();
        for _ in 0..EXITS {
            self.run()?;
        }
        let time = start.elapsed() / EXITS;
        self.complete();
        Ok(time)
    }

    /// The time of one instruction of a loop, in nanoseconds.
    fn instruction_ns(&mut self) -> Result<f64, ProbeError> {
        // The time of entry and exit, with the first access to everything.
        let around = self.least(|guest| guest.count_down(1))?;
        let mut measure = |turns| {
            let time = self.least(|guest| guest.count_down(turns))?;
            let time = time.saturating_sub(around).as_secs_f64() * 1e9;
            Ok(time / f64::from(2 * turns))
        };
        // Few iterations for an emulator; on a processor few are too short to measure. On a busy host
        // other programs take some of the time: an emulator is as slow each time.
        let mut least = f64::INFINITY;
        for _ in 0..CONFIRMATIONS {
            least = measure(FEW_ITERATIONS)?.min(least);
            if least <= EMULATED_NS {
                return measure(MANY_ITERATIONS);
            }
        }
        Ok(least)
    }

    /// The time of a loop of two instructions and a port exit.
    fn count_down(&mut self, iterations: u32) -> Result<Duration, ProbeError> {
        // mov ecx, iterations; dec ecx; jnz $-2; out 80h, al
        let code = [
            b"\xb9".as_slice(),
            &iterations.to_le_bytes(),
            b"\xff\xc9\x75\xfc\xe6\x80",
        ];
        self.place(&code.concat(), Ring::Kernel)?;
        let start = Instant::now();
        self.run()?;
        let time = start.elapsed();
        self.complete();
        Ok(time)
    }

    /// Whether SYSCALL takes CPL 3 to CPL 0, which the code there sees in its CS.
    fn enters_kernel_by_syscall(&mut self) -> Result<bool, ProbeError> {
        const TARGET: u64 = FLAT_PAYLOAD + 0x10;
        // syscall; at TARGET: mov eax, cs; out 80h, al
        self.place(b"\x0f\x05", Ring::User)?;
        self.memory
            .write_slice(b"\x8c\xc8\xe6\x80", GuestAddress(TARGET))?;
        // STAR[47:32] is CS of the kernel. FMASK is 0, so that the flags stay and the port is allowed
        // at any CPL (AMD APM 2, 6.1.1).
        let star = u64::from(tables::CODE_SELECTOR) << 32;
        let values = [(msrs::STAR, star), (msrs::LSTAR, TARGET), (msrs::FMASK, 0)];
        for (index, data) in values {
            let set = self.vcpu.fd().set_msrs(&msrs::one(index, data)?);
            set.map_err(refused("KVM_SET_MSRS"))?;
        }
        match self.run() {
            Ok(()) => {
                let regs = self.vcpu.fd().get_regs();
                Ok(regs.map_err(refused("KVM_GET_REGS"))?.rax & 3 == 0)
            }
            // An exception, for which there is no handler.
            Err(ProbeError::Exit(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
