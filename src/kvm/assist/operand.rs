//! Operands: one way to read and write a register, an immediate or memory.

use iced_x86::{Instruction, OpKind, Register};

use super::cpu::{Cpu, Exception, Stop};

/// An instruction at the vCPU it belongs to.
pub struct Operands<'a, 'b> {
    /// The vCPU that executes it.
    pub cpu: &'a mut (dyn Cpu + 'b),
    instruction: &'a Instruction,
}

impl<'a, 'b> Operands<'a, 'b> {
    /// The operands of `instruction`.
    pub fn new(cpu: &'a mut (dyn Cpu + 'b), instruction: &'a Instruction) -> Self {
        Operands { cpu, instruction }
    }

    /// Bytes of an operand: the register's, or memory's as the instruction defines it.
    pub fn size(&self, index: u32) -> usize {
        match self.instruction.op_kind(index) {
            OpKind::Register => self.instruction.op_register(index).size(),
            _ => self.instruction.memory_size().size(),
        }
    }

    /// The linear address of a memory operand; one that is not canonical faults right here.
    pub fn address(&self, index: u32) -> Result<u64, Stop> {
        let address = self
            .instruction
            .virtual_address(index, 0, |register, _, _| self.cpu.address_part(register))
            .ok_or(Stop::Unsupported("its operand has no address"))?;
        if self.cpu.bitness() != 64 {
            // Linear addresses have 32 bits.
            Ok(address & 0xffff_ffff)
        } else if self.cpu.is_canonical(address) {
            Ok(address)
        } else if self.instruction.memory_segment() == Register::SS {
            Err(Exception::SS.into())
        } else {
            Err(Exception::gp(0).into())
        }
    }

    /// An operand of up to 8 bytes, zero-extended.
    pub fn read(&mut self, index: u32) -> Result<u64, Stop> {
        match self.instruction.op_kind(index) {
            OpKind::Register => self.cpu.register(self.instruction.op_register(index)),
            OpKind::Memory => {
                let mut data = [0; 8];
                let size = self.size(index);
                let part = data
                    .get_mut(..size)
                    .ok_or(Stop::Unsupported("its operand is too wide"))?;
                self.cpu.read(self.address(index)?, part)?;
                Ok(u64::from_le_bytes(data))
            }
            _ => self
                .instruction
                .try_immediate(index)
                .map_err(|_| Stop::Unsupported("its operand is not a value")),
        }
    }

    /// Writes an operand of up to 8 bytes.
    pub fn write(&mut self, index: u32, value: u64) -> Result<(), Stop> {
        if self.instruction.op_kind(index) == OpKind::Register {
            return self
                .cpu
                .set_register(self.instruction.op_register(index), value);
        }
        let data = value.to_le_bytes();
        let part = data
            .get(..self.size(index))
            .ok_or(Stop::Unsupported("its operand is too wide"))?;
        self.cpu.write(self.address(index)?, part)
    }
}
