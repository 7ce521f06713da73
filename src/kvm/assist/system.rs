//! Instructions that change the processor's state rather than compute: software interrupts,
//! AC, segment bases, TSC_AUX.

use iced_x86::{Instruction, Mnemonic};

use super::cpu::{AC, Cpu, Exception, IOPL, Stop, VM};
use super::operand::Operands;
use crate::kvm::msrs;
use crate::kvm::walk::{CR0_PE, EFER_LMA};

const CR4_FSGSBASE: u64 = 1 << 16;

/// CLAC and STAC (Intel SDM 2): RFLAGS.AC, at CPL 0 only.
///
/// Without CR4.SMAP they still work: only CPUID decides, and the guest saw it there.
pub fn clac_stac(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    if cpu.cpl() != 0 {
        return Err(Exception::UD.into());
    }
    let value = if instruction.mnemonic() == Mnemonic::Stac {
        AC
    } else {
        0
    };
    cpu.set_flags(AC, value);
    Ok(())
}

/// UD0, UD1 and UD2: #UD, and nothing else.
pub fn undefined(_: &mut dyn Cpu, _: &Instruction) -> Result<(), Stop> {
    Err(Exception::UD.into())
}

/// In virtual-8086 mode INT n needs IOPL 3 (Intel SDM 3B, 21.2.8), INT3 does not.
pub fn check_iopl(cpu: &dyn Cpu) -> Result<(), Stop> {
    let rflags = cpu.regs().rflags;
    if cpu.sregs().cr0 & CR0_PE != 0 && rflags & VM != 0 && rflags & IOPL != IOPL {
        return Err(Exception::gp(0).into());
    }
    Ok(())
}

/// Whether the gate of a software interrupt lets CPL through; else #GP with the vector as
/// selector (Intel SDM 2, INT n; Intel SDM 3A, 6.12.1.1).
pub fn check_gate(cpu: &dyn Cpu, vector: u8) -> Result<(), Stop> {
    let sregs = cpu.sregs();
    if sregs.cr0 & CR0_PE == 0 {
        return Ok(());
    }
    let size = if sregs.efer & EFER_LMA != 0 { 16 } else { 8 };
    let denied = Exception::gp(u32::from(vector) << 3 | 2);
    let offset = u64::from(vector) * size;
    if offset + size - 1 > u64::from(sregs.idt.limit) {
        return Err(denied.into());
    }
    let mut access = [0];
    cpu.read_system(sregs.idt.base.wrapping_add(offset + 5), &mut access)?;
    // Interrupt and trap gates; outside long mode also those of 16 bits, and task gates.
    let types: &[u8] = if size == 16 {
        &[0xe, 0xf]
    } else {
        &[5, 6, 7, 0xe, 0xf]
    };
    if !types.contains(&(access[0] & 0x1f)) || access[0] >> 5 & 3 < cpu.cpl() {
        return Err(denied.into());
    }
    if access[0] & 0x80 == 0 {
        return Err(Exception {
            vector: 11,
            ..denied
        }
        .into());
    }
    Ok(())
}

/// RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE.
pub fn segment_base(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    if cpu.sregs().cr4 & CR4_FSGSBASE == 0 || cpu.bitness() != 64 {
        return Err(Exception::UD.into());
    }
    let mut operands = Operands::new(cpu, instruction);
    match instruction.mnemonic() {
        Mnemonic::Rdfsbase => operands.write(0, operands.cpu.sregs().fs.base),
        Mnemonic::Rdgsbase => operands.write(0, operands.cpu.sregs().gs.base),
        mnemonic => {
            let base = operands.read(0)?;
            if !operands.cpu.is_canonical(base) {
                return Err(Exception::gp(0).into());
            }
            let sregs = operands.cpu.sregs_mut();
            if mnemonic == Mnemonic::Wrfsbase {
                sregs.fs.base = base;
            } else {
                sregs.gs.base = base;
            }
            Ok(())
        }
    }
}

/// RDPID: TSC_AUX, to a register of the mode's width.
pub fn rdpid(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    let value = cpu.msr(msrs::TSC_AUX)? & 0xffff_ffff;
    Operands::new(cpu, instruction).write(0, value)
}

#[cfg(test)]
mod tests;
