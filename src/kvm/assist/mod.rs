//! Emulates instructions that the emulator of the host's KVM does not know.
//!
//! Only a software KVM needs this; where the processor runs the guest's kernel, the exit does not
//! happen. [`assist`] decodes the bytes that KVM reports, finds the instruction in its table and
//! executes it on a [`cpu::Cpu`]; [`vcpu`] connects that to the KVM exit, and [`bulk`] is the port by
//! which a guest kernel leaves long copies to hull.
//!
//! A software KVM emulates some instructions wrongly, without an exit that hull could handle:
//! at CPL 0 its emulator takes LZCNT for BSR and TZCNT for BSF, does MOVBE and RDPID only if CPUID
//! as KVM supports it has them, and lets FXSAVE have any address; INT n at CPL 3 is #UD. Tests of
//! them say so and are skipped there.
//!
//! Not done: single-stepping over a finished instruction (RFLAGS.TF raises no #DB), segment
//! limits, protection keys, and SSE or AVX arithmetic in kernel code.

pub mod area;
pub mod bulk;
pub mod cpu;
pub mod vcpu;

mod atomic;
mod integer;
mod operand;
mod system;
pub mod xstate;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, Formatter, Instruction, Mnemonic, NasmFormatter,
};

use cpu::{Cpu, Exception, Stop};

/// Longest x86 instruction, in bytes.
const LONGEST: usize = 15;

/// How an instruction is finished.
#[derive(Clone, Copy)]
enum Finish {
    /// By this function; RIP continues after it.
    Run(fn(&mut dyn Cpu, &Instruction) -> Result<(), Stop>),
    /// By an event with this vector, RIP after the instruction.
    Trap(u8),
    /// By the interrupt its immediate names, RIP after the instruction.
    SoftwareInterrupt,
}

/// One instruction hull can finish.
struct Row {
    mnemonic: Mnemonic,
    name: &'static str,
    finish: Finish,
}

const fn row(
    mnemonic: Mnemonic,
    name: &'static str,
    run: fn(&mut dyn Cpu, &Instruction) -> Result<(), Stop>,
) -> Row {
    Row {
        mnemonic,
        name,
        finish: Finish::Run(run),
    }
}

/// Every instruction hull can finish, with what meets it in a kernel.
static TABLE: [Row; 57] = [
    // Instruction patching (Linux text_poke, its self-test at boot) and kernel probes.
    Row {
        mnemonic: Mnemonic::Int3,
        name: "int3",
        finish: Finish::Trap(3),
    },
    // 32-bit system calls, and any other gate for user code.
    Row {
        mnemonic: Mnemonic::Int,
        name: "int",
        finish: Finish::SoftwareInterrupt,
    },
    // hweight64(): CPU masks, bitmaps.
    row(Mnemonic::Popcnt, "popcnt", integer::popcnt),
    // Every access to user memory on a processor with SMAP.
    row(Mnemonic::Clac, "clac", system::clac_stac),
    row(Mnemonic::Stac, "stac", system::clac_stac),
    // this_cpu_cmpxchg_double(): the slab allocator. CMPXCHG8B: 32-bit kernels.
    row(
        Mnemonic::Cmpxchg16b,
        "cmpxchg16b",
        integer::compare_exchange_wide,
    ),
    row(
        Mnemonic::Cmpxchg8b,
        "cmpxchg8b",
        integer::compare_exchange_wide,
    ),
    // BUG() and WARN(); a sanitizer's trap.
    row(Mnemonic::Ud0, "ud0", system::undefined),
    row(Mnemonic::Ud1, "ud1", system::undefined),
    row(Mnemonic::Ud2, "ud2", system::undefined),
    // FPU set-up and context switches.
    row(Mnemonic::Wait, "wait", xstate::wait),
    row(Mnemonic::Xsave, "xsave", xstate::xsave),
    row(Mnemonic::Xsave64, "xsave64", xstate::xsave),
    row(Mnemonic::Xsaveopt, "xsaveopt", xstate::xsave),
    row(Mnemonic::Xsaveopt64, "xsaveopt64", xstate::xsave),
    row(Mnemonic::Xsavec, "xsavec", xstate::xsave),
    row(Mnemonic::Xsavec64, "xsavec64", xstate::xsave),
    row(Mnemonic::Xsaves, "xsaves", xstate::xsave),
    row(Mnemonic::Xsaves64, "xsaves64", xstate::xsave),
    row(Mnemonic::Xrstor, "xrstor", xstate::xrstor),
    row(Mnemonic::Xrstor64, "xrstor64", xstate::xrstor),
    row(Mnemonic::Xrstors, "xrstors", xstate::xrstor),
    row(Mnemonic::Xrstors64, "xrstors64", xstate::xrstor),
    row(Mnemonic::Fxsave, "fxsave", xstate::fxsave),
    row(Mnemonic::Fxsave64, "fxsave64", xstate::fxsave),
    row(Mnemonic::Fxrstor, "fxrstor", xstate::fxrstor),
    row(Mnemonic::Fxrstor64, "fxrstor64", xstate::fxrstor),
    row(Mnemonic::Xgetbv, "xgetbv", xstate::xgetbv),
    row(Mnemonic::Xsetbv, "xsetbv", xstate::xsetbv),
    // kernel_fpu_begin().
    row(Mnemonic::Ldmxcsr, "ldmxcsr", xstate::mxcsr),
    row(Mnemonic::Stmxcsr, "stmxcsr", xstate::mxcsr),
    row(Mnemonic::Vldmxcsr, "vldmxcsr", xstate::mxcsr),
    row(Mnemonic::Vstmxcsr, "vstmxcsr", xstate::mxcsr),
    // Context switches and entry code on a processor with FSGSBASE.
    row(Mnemonic::Rdfsbase, "rdfsbase", system::segment_base),
    row(Mnemonic::Rdgsbase, "rdgsbase", system::segment_base),
    row(Mnemonic::Wrfsbase, "wrfsbase", system::segment_base),
    row(Mnemonic::Wrgsbase, "wrgsbase", system::segment_base),
    // vdso_read_cpunode(), paranoid entry.
    row(Mnemonic::Rdpid, "rdpid", system::rdpid),
    // Byte order, checksums, bit search; compilers and hand-written crypto use the rest.
    row(Mnemonic::Movbe, "movbe", integer::movbe),
    row(Mnemonic::Crc32, "crc32", integer::crc32),
    row(Mnemonic::Lzcnt, "lzcnt", integer::count_zeros),
    row(Mnemonic::Tzcnt, "tzcnt", integer::count_zeros),
    row(Mnemonic::Andn, "andn", integer::bmi1),
    row(Mnemonic::Bextr, "bextr", integer::bmi1),
    row(Mnemonic::Bzhi, "bzhi", integer::bmi1),
    row(Mnemonic::Blsi, "blsi", integer::bmi1),
    row(Mnemonic::Blsmsk, "blsmsk", integer::bmi1),
    row(Mnemonic::Blsr, "blsr", integer::bmi1),
    row(Mnemonic::Shlx, "shlx", integer::bmi2),
    row(Mnemonic::Shrx, "shrx", integer::bmi2),
    row(Mnemonic::Sarx, "sarx", integer::bmi2),
    row(Mnemonic::Rorx, "rorx", integer::bmi2),
    row(Mnemonic::Pdep, "pdep", integer::bmi2),
    row(Mnemonic::Pext, "pext", integer::bmi2),
    row(Mnemonic::Mulx, "mulx", integer::mulx),
    row(Mnemonic::Adcx, "adcx", integer::add_carry),
    row(Mnemonic::Adox, "adox", integer::add_carry),
];

/// What became of an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done; registers and memory are as after it.
    Finished(Mnemonic),
    /// It faults: RIP still points to it, the exception is to be injected.
    Fault(Mnemonic, Exception),
    /// It is a trap (INT3): RIP is after it, the exception with this vector is to be injected.
    Trap(Mnemonic, u8),
    /// It is INT n: RIP is after it, an interrupt with this vector is to be injected.
    Interrupt(Mnemonic, u8),
    /// Not finished; the guest cannot continue.
    Unsupported(Unsupported),
}

/// An instruction that neither KVM nor hull can finish.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the guest stopped at {rip:#x}: `{disassembly}` ({}) at CPL {cpl} cannot be finished, {reason}",
    hex(bytes)
)]
pub struct Unsupported {
    /// RIP of the instruction.
    pub rip: u64,
    /// The current privilege level, 0 to 3.
    pub cpl: u8,
    /// The instruction in NASM's syntax.
    pub disassembly: String,
    /// Its bytes, or as many as are known.
    pub bytes: Vec<u8>,
    /// What is not supported.
    pub reason: String,
}

/// Finishes the instruction at RIP, of which KVM reported `bytes` (any number, none included).
pub fn assist(bytes: &[u8], cpu: &mut dyn Cpu) -> Outcome {
    let instruction = match decode(bytes, cpu) {
        Ok(instruction) => instruction,
        Err(Stop::Exception(exception)) => return Outcome::Fault(Mnemonic::INVALID, exception),
        Err(stop) => {
            let reason = format!("its bytes cannot be read: {stop}");
            return Outcome::Unsupported(unsupported(cpu, bytes, reason));
        }
    };
    let mnemonic = instruction.mnemonic();
    match finish(&instruction, cpu) {
        Ok(outcome) => {
            let width = if cpu.bitness() == 64 { 8 } else { 4 };
            cpu.regs_mut().rip = cpu::truncate(instruction.next_ip(), width);
            cpu.set_flags(cpu::RF, 0);
            outcome
        }
        Err(Stop::Exception(exception)) => Outcome::Fault(mnemonic, exception),
        Err(stop) => {
            let bytes = reread(bytes, &instruction, cpu);
            Outcome::Unsupported(unsupported(cpu, &bytes, stop.to_string()))
        }
    }
}

/// How often each instruction was finished, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    rows: [u64; TABLE.len()],
    /// Requests at the bulk-memory port.
    pub bulk_requests: u64,
    /// Bytes copied and filled for them.
    pub bulk_bytes: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Counts {
            rows: [0; TABLE.len()],
            bulk_requests: 0,
            bulk_bytes: 0,
        }
    }
}

impl Counts {
    /// Counts one instruction; its name, if it is in the table.
    pub fn add(&mut self, mnemonic: Mnemonic) -> Option<&'static str> {
        let rows = TABLE.iter().zip(&mut self.rows);
        let (row, count) = rows.into_iter().find(|(row, _)| row.mnemonic == mnemonic)?;
        *count += 1;
        Some(row.name)
    }

    /// Adds another vCPU's counts.
    pub fn merge(&mut self, other: &Counts) {
        for (count, more) in self.rows.iter_mut().zip(&other.rows) {
            *count += more;
        }
        self.bulk_requests += other.bulk_requests;
        self.bulk_bytes += other.bulk_bytes;
    }

    /// The instructions that occurred, with their counts, in the table's order.
    pub fn instructions(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        TABLE
            .iter()
            .zip(self.rows)
            .filter(|(_, count)| *count > 0)
            .map(|(row, n)| (row.name, n))
    }

    /// The number of all instructions together.
    pub fn total(&self) -> u64 {
        self.rows.iter().sum()
    }
}

fn finish(instruction: &Instruction, cpu: &mut dyn Cpu) -> Result<Outcome, Stop> {
    let mnemonic = instruction.mnemonic();
    let row = TABLE
        .iter()
        .find(|row| row.mnemonic == mnemonic)
        .ok_or(Stop::Unsupported(
            "it is not among the instructions hull knows",
        ))?;
    match row.finish {
        Finish::Run(run) => {
            run(cpu, instruction)?;
            Ok(Outcome::Finished(mnemonic))
        }
        Finish::Trap(vector) => {
            system::check_gate(cpu, vector)?;
            Ok(Outcome::Trap(mnemonic, vector))
        }
        Finish::SoftwareInterrupt => {
            let vector = instruction.immediate8();
            system::check_iopl(cpu)?;
            system::check_gate(cpu, vector)?;
            Ok(Outcome::Interrupt(mnemonic, vector))
        }
    }
}

/// Decodes what KVM reported; if that is not a whole instruction, what is in memory.
///
/// Bytes that are no instruction (an unknown opcode, LOCK where it may not stand) are #UD, more
/// than 15 of them #GP, and code that is not there the fault of fetching it.
fn decode(bytes: &[u8], cpu: &dyn Cpu) -> Result<Instruction, Stop> {
    match decode_all(bytes, cpu) {
        Ok(instruction) => return Ok(instruction),
        Err(DecoderError::NoMoreBytes) if bytes.len() < LONGEST => {}
        Err(error) => return Err(undecodable(error)),
    }
    let (bytes, end) = from_memory(cpu);
    decode_all(&bytes, cpu).map_err(|error| match (error, end) {
        (DecoderError::NoMoreBytes, Err(stop)) => stop,
        _ => undecodable(error),
    })
}

fn undecodable(error: DecoderError) -> Stop {
    match error {
        DecoderError::NoMoreBytes => Exception::gp(0).into(),
        _ => Exception::UD.into(),
    }
}

fn decode_all(bytes: &[u8], cpu: &dyn Cpu) -> Result<Instruction, DecoderError> {
    let once = |bytes: &[u8]| {
        let (bitness, rip) = (cpu.bitness(), cpu.regs().rip);
        let mut decoder = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        match decoder.last_error() {
            DecoderError::None => Ok(instruction),
            error => Err(error),
        }
    };
    once(bytes).map_err(|error| match bytes.get(..LONGEST - 1) {
        // The decoder calls an instruction invalid that is longer than 15 bytes.
        Some(start) => once(start).err().unwrap_or(error),
        None => error,
    })
}
/// Up to 15 bytes at CS:RIP, and why there are not more.
fn from_memory(cpu: &dyn Cpu) -> (Vec<u8>, Result<(), Stop>) {
    let base = if cpu.bitness() == 64 {
        0
    } else {
        cpu.sregs().cs.base
    };
    let mut bytes = vec![0; LONGEST];
    let (known, end) = cpu.fetch(base.wrapping_add(cpu.regs().rip), &mut bytes);
    bytes.truncate(known);
    (bytes, end)
}

/// The bytes of just this instruction.
fn reread(bytes: &[u8], instruction: &Instruction, cpu: &dyn Cpu) -> Vec<u8> {
    match bytes.get(..instruction.len()) {
        Some(bytes) => bytes.to_vec(),
        None => {
            let (mut bytes, _) = from_memory(cpu);
            bytes.truncate(instruction.len());
            bytes
        }
    }
}

fn unsupported(cpu: &dyn Cpu, bytes: &[u8], reason: String) -> Unsupported {
    let rip = cpu.regs().rip;
    let instruction = Decoder::with_ip(cpu.bitness(), bytes, rip, DecoderOptions::NONE).decode();
    let mut disassembly = String::new();
    NasmFormatter::new().format(&instruction, &mut disassembly);
    Unsupported {
        rip,
        cpl: cpu.cpl(),
        disassembly,
        bytes: bytes.to_vec(),
        reason,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(" ")
}
