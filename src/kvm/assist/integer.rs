//! Instructions on general registers: bit counts, BMI1, BMI2, ADX, CRC32, MOVBE, and the wide
//! compare-and-exchange. Flags the manual leaves undefined stay as they were.

use iced_x86::{Instruction, Mnemonic};

use super::cpu::{AF, CF, Cpu, Exception, OF, PF, SF, Stop, ZF, truncate};
use super::operand::Operands;
use crate::kvm::walk::Kind;

/// POPCNT: ZF says zero, the other status flags are cleared (Intel SDM 2, POPCNT).
pub fn popcnt(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    let mut operands = Operands::new(cpu, instruction);
    let source = operands.read(1)?;
    operands.write(0, u64::from(source.count_ones()))?;
    cpu.set_flags(OF | SF | ZF | AF | CF | PF, flag(ZF, source == 0));
    Ok(())
}

/// LZCNT and TZCNT: CF says the source was zero, ZF that the result is.
pub fn count_zeros(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    let mut operands = Operands::new(cpu, instruction);
    let bits = operands.size(0) as u32 * 8;
    let source = operands.read(1)?;
    let count = if instruction.mnemonic() == Mnemonic::Lzcnt {
        source.leading_zeros() - (64 - bits)
    } else {
        source.trailing_zeros().min(bits)
    };
    operands.write(0, u64::from(count))?;
    cpu.set_flags(CF | ZF, flag(CF, source == 0) | flag(ZF, count == 0));
    Ok(())
}

/// MOVBE: a move that swaps bytes; no flags.
pub fn movbe(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    let mut operands = Operands::new(cpu, instruction);
    let unused = 64 - operands.size(0) as u32 * 8;
    let source = operands.read(1)?;
    operands.write(0, source.swap_bytes() >> unused)
}

/// CRC32 with the polynomial 11EDC6F41H, bits reflected; no flags.
pub fn crc32(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    const REFLECTED: u32 = 0x82f6_3b78;
    let mut operands = Operands::new(cpu, instruction);
    let source = operands.read(1)?.to_le_bytes();
    let size = operands.size(1);
    let mut crc = operands.read(0)? as u32;
    for byte in source.iter().take(size) {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { REFLECTED } else { 0 };
        }
    }
    operands.write(0, u64::from(crc))
}

/// ANDN, BEXTR, BZHI, BLSI, BLSMSK and BLSR.
pub fn bmi1(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    let mut operands = Operands::new(cpu, instruction);
    let size = operands.size(0);
    let bits = size as u32 * 8;
    let first = operands.read(1)?;
    let second = if instruction.op_count() > 2 {
        operands.read(2)?
    } else {
        0
    };
    let (result, carry) = match instruction.mnemonic() {
        Mnemonic::Andn => (!first & second, false),
        Mnemonic::Bextr => {
            let (start, len) = (second as u32 & 0xff, (second >> 8) as u32 & 0xff);
            (low_bits(first.checked_shr(start).unwrap_or(0), len), false)
        }
        Mnemonic::Bzhi => {
            let index = second as u32 & 0xff;
            (low_bits(first, index), index >= bits)
        }
        Mnemonic::Blsi => (first & first.wrapping_neg(), first != 0),
        Mnemonic::Blsmsk => (first ^ first.wrapping_sub(1), first == 0),
        Mnemonic::Blsr => (first & first.wrapping_sub(1), first == 0),
        _ => return Err(Stop::Unsupported("it is not in BMI1")),
    };
    let result = truncate(result, size);
    operands.write(0, result)?;
    let mut changed = OF | SF | ZF | CF;
    let mut flags =
        flag(ZF, result == 0) | flag(SF, result >> (bits - 1) & 1 != 0) | flag(CF, carry);
    match instruction.mnemonic() {
        // BEXTR leaves SF undefined.
        Mnemonic::Bextr => changed &= !SF,
        // BLSMSK's result is never zero.
        Mnemonic::Blsmsk => flags &= !ZF,
        _ => {}
    }
    cpu.set_flags(changed, flags);
    Ok(())
}

/// SHLX, SHRX, SARX, RORX, PDEP and PEXT: no flags.
pub fn bmi2(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    let mut operands = Operands::new(cpu, instruction);
    let size = operands.size(0);
    let bits = size as u32 * 8;
    let (first, second) = (operands.read(1)?, operands.read(2)?);
    let count = second as u32 & (bits - 1);
    let signed = ((first << (64 - bits)) as i64) >> (64 - bits);
    let result = match instruction.mnemonic() {
        Mnemonic::Shlx => first << count,
        Mnemonic::Shrx => first >> count,
        Mnemonic::Sarx => (signed >> count) as u64,
        Mnemonic::Rorx if bits == 32 => u64::from((first as u32).rotate_right(count)),
        Mnemonic::Rorx => first.rotate_right(count),
        Mnemonic::Pdep => deposit(first, second),
        Mnemonic::Pext => extract(first, second),
        _ => return Err(Stop::Unsupported("it is not in BMI2")),
    };
    operands.write(0, truncate(result, size))
}

/// MULX: RDX times the source, high half to operand 0, low half to operand 1; no flags.
pub fn mulx(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    let mut operands = Operands::new(cpu, instruction);
    let size = operands.size(0);
    let source = operands.read(2)?;
    let product = u128::from(source) * u128::from(truncate(operands.cpu.regs().rdx, size));
    // With both the same register the high half stays: it is written last.
    operands.write(1, truncate(product as u64, size))?;
    operands.write(0, truncate((product >> (size * 8)) as u64, size))
}

/// ADCX and ADOX: addition with CF or OF as carry in and out, the other flags untouched.
pub fn add_carry(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    let carry = if instruction.mnemonic() == Mnemonic::Adcx {
        CF
    } else {
        OF
    };
    let mut operands = Operands::new(cpu, instruction);
    let size = operands.size(0);
    let carry_in = u128::from(operands.cpu.regs().rflags & carry != 0);
    let sum = u128::from(operands.read(0)?) + u128::from(operands.read(1)?) + carry_in;
    operands.write(0, truncate(sum as u64, size))?;
    cpu.set_flags(carry, flag(carry, sum >> (size * 8) != 0));
    Ok(())
}

/// CMPXCHG8B and CMPXCHG16B: ZF says whether the exchange happened, no other flag changes.
///
/// The exchange is one atomic operation of the host on the guest's mapping, with LOCK or
/// without, so other vCPUs see all of it or nothing. An operand that CMPXCHG8B lets straddle an
/// alignment boundary is not: it is read, compared and written.
pub fn compare_exchange_wide(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    let wide = instruction.mnemonic() == Mnemonic::Cmpxchg16b;
    let size: usize = if wide { 16 } else { 8 };
    let address = Operands::new(cpu, instruction).address(0)?;
    if wide && address % 16 != 0 {
        return Err(Exception::gp(0).into());
    }
    let regs = *cpu.regs();
    let pair = |high: u64, low: u64| {
        if wide {
            u128::from(high) << 64 | u128::from(low)
        } else {
            u128::from((high & 0xffff_ffff) << 32 | low & 0xffff_ffff)
        }
    };
    let (expected, new) = (pair(regs.rdx, regs.rax), pair(regs.rcx, regs.rbx));
    // The processor always writes, the old value if the comparison fails.
    cpu.check_write(address, size)?;
    let found = if address % size as u64 == 0 {
        let (gpa, _) = cpu.translate(address, Kind::Write)?;
        super::atomic::compare_exchange(cpu.memory(), gpa, size, expected, new)
            .ok_or(Stop::NotRam { gpa })?
    } else {
        let mut data = [0; 8];
        cpu.read(address, &mut data)?;
        let found = u64::from_le_bytes(data);
        let write = if u128::from(found) == expected {
            new as u64
        } else {
            found
        };
        cpu.write(address, &write.to_le_bytes())?;
        u128::from(found)
    };
    cpu.set_flags(ZF, flag(ZF, found == expected));
    if found != expected {
        let (high, low) = if wide {
            ((found >> 64) as u64, found as u64)
        } else {
            ((found as u64) >> 32, found as u64 & 0xffff_ffff)
        };
        cpu.regs_mut().rax = low;
        cpu.regs_mut().rdx = high;
    }
    Ok(())
}

fn flag(mask: u64, set: bool) -> u64 {
    if set { mask } else { 0 }
}

fn low_bits(value: u64, count: u32) -> u64 {
    if count >= 64 {
        value
    } else {
        value & ((1 << count) - 1)
    }
}

/// PDEP: the low bits of `value` go where `mask` has ones.
fn deposit(value: u64, mut mask: u64) -> u64 {
    let mut result = 0;
    for bit in 0..mask.count_ones() {
        let lowest = mask & mask.wrapping_neg();
        result |= lowest * (value >> bit & 1);
        mask ^= lowest;
    }
    result
}

/// PEXT: the bits of `value` where `mask` has ones, packed low.
fn extract(value: u64, mut mask: u64) -> u64 {
    let mut result = 0;
    for bit in 0..mask.count_ones() {
        let lowest = mask & mask.wrapping_neg();
        result |= u64::from(value & lowest != 0) << bit;
        mask ^= lowest;
    }
    result
}

#[cfg(test)]
mod tests;
