//! XSAVE and its family: the processor's extended state to and from guest memory.
//!
//! KVM hands the state out in the standard format ([`Area`]); these functions do what Intel SDM 1,
//! chapter 13 (13.7 to 13.12) says with the guest's area. In use (XINUSE) is what XSTATE_BV of
//! KVM's copy says. Modified optimizations are not done: the manual makes them optional.

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use iced_x86::{Instruction, Mnemonic};

use super::area::{AREA_SIZE, Area, LEGACY_SIZE, MXCSR, MXCSR_DEFAULT, MXCSR_MASK, u64_at};
use super::cpu::{Cpu, Exception, Stop};
use super::operand::Operands;
use crate::kvm::msrs;

/// End of the XSAVE header in an area.
const HEADER_END: usize = 576;
const X87: u64 = 1;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const COMPACTED: u64 = 1 << 63;

const CR0_EM: u64 = 1 << 2;
const CR0_MP: u64 = 1 << 1;
const CR0_TS: u64 = 1 << 3;
const CR0_NE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXSAVE: u64 = 1 << 18;
const FSW_ES: u64 = 0x80;

/// WAIT: a pending x87 exception is raised; else nothing (Intel SDM 2, WAIT/FWAIT).
pub fn wait(cpu: &mut dyn Cpu, _: &Instruction) -> Result<(), Stop> {
    let cr0 = cpu.sregs().cr0;
    if cr0 & CR0_MP != 0 && cr0 & CR0_TS != 0 {
        return Err(Exception::NM.into());
    }
    let status_word = u64_at(cpu.xstate()?.bytes(2, 2));
    if cr0 & CR0_NE != 0 && status_word & FSW_ES != 0 {
        return Err(Exception::MF.into());
    }
    Ok(())
}

/// LDMXCSR, STMXCSR and their VEX forms.
pub fn mxcsr(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    if matches!(
        instruction.mnemonic(),
        Mnemonic::Vldmxcsr | Mnemonic::Vstmxcsr
    ) {
        // Intel SDM 2A, 2.4, class 5: #UD unless the system has enabled SSE and AVX state.
        if cpu.sregs().cr4 & CR4_OSXSAVE != 0 && cpu.xcr0()? & (SSE | AVX) != SSE | AVX {
            return Err(Exception::UD.into());
        }
        check_xsave_enabled(cpu)?;
    } else {
        check_fxsr_enabled(cpu)?;
    }
    let mut area = cpu.xstate()?;
    let mut operands = Operands::new(cpu, instruction);
    if matches!(
        instruction.mnemonic(),
        Mnemonic::Stmxcsr | Mnemonic::Vstmxcsr
    ) {
        return operands.write(0, u64::from(area.mxcsr()));
    }
    let value = operands.read(0)? as u32;
    if value & area.reserved_mxcsr() != 0 {
        return Err(Exception::gp(0).into());
    }
    area.put(MXCSR, &value.to_le_bytes());
    // With SSE not in use KVM would take MXCSR's initial value.
    area.set_in_use(area.in_use() | SSE);
    cpu.set_xstate(&area)
}

/// FXSAVE and FXSAVE64: x87 and SSE state, without a header.
pub fn fxsave(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    check_fxsr_enabled(cpu)?;
    let address = aligned_address(cpu, instruction, 16)?;
    let (registers, wide) = (
        legacy_sse_end(cpu),
        instruction.mnemonic() == Mnemonic::Fxsave64,
    );
    cpu.check_write(address, LEGACY_SIZE)?;
    let mut area = cpu.xstate()?;
    narrow_pointers(&mut area, wide);
    cpu.write(address, area.bytes(0, registers))
}

/// FXRSTOR and FXRSTOR64: loads x87 and SSE state.
pub fn fxrstor(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    check_fxsr_enabled(cpu)?;
    let address = aligned_address(cpu, instruction, 16)?;
    let mut image = [0; LEGACY_SIZE];
    cpu.read(address, &mut image)?;
    let mut area = cpu.xstate()?;
    let end = legacy_sse_end(cpu);
    if u64_at(image.get(MXCSR..MXCSR + 4).unwrap_or_default()) as u32 & area.reserved_mxcsr() != 0 {
        return Err(Exception::gp(0).into());
    }
    let mask = area.bytes(MXCSR_MASK, 4).to_vec();
    area.put(0, image.get(..end).unwrap_or_default());
    area.put(MXCSR_MASK, &mask);
    narrow_pointers(&mut area, instruction.mnemonic() == Mnemonic::Fxrstor64);
    area.set_in_use(area.in_use() | X87 | SSE);
    cpu.set_xstate(&area)
}

/// XSAVE, XSAVEOPT, XSAVEC, XSAVES and their 64-bit forms.
pub fn xsave(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    use Mnemonic::{Xsave, Xsave64, Xsavec, Xsavec64, Xsaveopt64, Xsaves, Xsaves64};
    let mnemonic = instruction.mnemonic();
    let compacted = matches!(mnemonic, Xsavec | Xsavec64 | Xsaves | Xsaves64);
    let all = matches!(mnemonic, Xsave | Xsave64);
    let wide = matches!(mnemonic, Xsave64 | Xsaveopt64 | Xsavec64 | Xsaves64);
    check_xsave_enabled(cpu)?;
    let requested = requested(cpu, matches!(mnemonic, Xsaves | Xsaves64))?;
    let address = aligned_address(cpu, instruction, 64)?;
    let format = if compacted { requested | COMPACTED } else { 0 };
    let places = places(requested, format, cpu.bitness() == 64);
    cpu.check_write(
        address,
        places
            .iter()
            .map(|place| place.end())
            .fold(HEADER_END, usize::max),
    )?;

    let mut area = cpu.xstate()?;
    narrow_pointers(&mut area, wide);
    let mut in_use = area.in_use();
    if compacted && area.mxcsr() != MXCSR_DEFAULT {
        in_use |= SSE;
    }
    let saved = if all { requested } else { requested & in_use };
    if saved & X87 != 0 {
        cpu.write(address, area.bytes(0, MXCSR))?;
        cpu.write(address + 32, area.bytes(32, 128))?;
    }
    let with_mxcsr = if compacted {
        saved & SSE
    } else {
        requested & (SSE | AVX)
    };
    if with_mxcsr != 0 {
        cpu.write(address + MXCSR as u64, area.bytes(MXCSR, 8))?;
    }
    if saved & SSE != 0 {
        let len = legacy_sse_end(cpu) - 160;
        cpu.write(address + 160, area.bytes(160, len))?;
    }
    for place in places.iter().filter(|place| saved & place.bit != 0) {
        cpu.write(
            address + place.offset as u64,
            area.bytes(place.standard, place.size),
        )?;
    }
    let mut old = [0; 8];
    if compacted {
        cpu.write(address + 520, &format.to_le_bytes())?;
    } else {
        cpu.read(address + LEGACY_SIZE as u64, &mut old)?;
    }
    let header = u64::from_le_bytes(old) & !requested | in_use & requested;
    cpu.write(address + LEGACY_SIZE as u64, &header.to_le_bytes())
}

/// XRSTOR, XRSTORS and their 64-bit forms, from either format.
pub fn xrstor(cpu: &mut dyn Cpu, instruction: &Instruction) -> Result<(), Stop> {
    use Mnemonic::{Xrstor64, Xrstors, Xrstors64};
    let mnemonic = instruction.mnemonic();
    let supervisor = matches!(mnemonic, Xrstors | Xrstors64);
    check_xsave_enabled(cpu)?;
    let requested = requested(cpu, supervisor)?;
    let xcr0 = cpu.xcr0()?;
    let address = aligned_address(cpu, instruction, 64)?;
    let mut header = [0; HEADER_END - LEGACY_SIZE];
    cpu.read(address + LEGACY_SIZE as u64, &mut header)?;
    let (present, format) = check_header(&header, xcr0, supervisor)?;

    let loaded = requested & present;
    let mut area = cpu.xstate()?;
    let mut legacy = [0; LEGACY_SIZE];
    let with_mxcsr = if format == 0 {
        requested & (SSE | AVX)
    } else {
        loaded & SSE
    };
    if (loaded & (X87 | SSE)) | with_mxcsr != 0 {
        cpu.read(address, &mut legacy)?;
    }
    let mut new = area.clone();
    let long = cpu.bitness() == 64;
    restore_legacy(&mut new, &legacy, requested, loaded, with_mxcsr != 0, long)?;
    if requested & X87 != 0 {
        narrow_pointers(&mut new, matches!(mnemonic, Xrstor64 | Xrstors64));
    }
    for place in places(requested, format, long) {
        let mut data = [0; AREA_SIZE];
        let data = data.get_mut(..place.size).unwrap_or_default();
        if loaded & place.bit != 0 {
            cpu.read(address + place.offset as u64, data)?;
        }
        new.put(place.standard, data);
    }
    let mut in_use = area.in_use() & !requested | loaded;
    if new.mxcsr() != MXCSR_DEFAULT {
        // MXCSR goes with SSE or AVX: KVM would drop it with both unused.
        in_use |= SSE;
    }
    new.set_in_use(in_use);
    std::mem::swap(&mut area, &mut new);
    cpu.set_xstate(&area)
}

/// XGETBV: XCR0, or which of its components are in use (ECX = 1).
pub fn xgetbv(cpu: &mut dyn Cpu, _: &Instruction) -> Result<(), Stop> {
    if cpu.sregs().cr4 & CR4_OSXSAVE == 0 {
        return Err(Exception::UD.into());
    }
    let value = match cpu.regs().rcx as u32 {
        0 => cpu.xcr0()?,
        1 => cpu.xcr0()? & cpu.xstate()?.in_use(),
        _ => return Err(Exception::gp(0).into()),
    };
    let regs = cpu.regs_mut();
    regs.rax = value & 0xffff_ffff;
    regs.rdx = value >> 32;
    Ok(())
}

/// XSETBV: sets XCR0; KVM knows which values are allowed.
pub fn xsetbv(cpu: &mut dyn Cpu, _: &Instruction) -> Result<(), Stop> {
    if cpu.sregs().cr4 & CR4_OSXSAVE == 0 {
        return Err(Exception::UD.into());
    }
    let value = edx_eax(cpu);
    if cpu.cpl() != 0 || cpu.regs().rcx as u32 != 0 || !cpu.set_xcr0(value)? {
        return Err(Exception::gp(0).into());
    }
    Ok(())
}

fn check_fxsr_enabled(cpu: &dyn Cpu) -> Result<(), Stop> {
    if cpu.sregs().cr0 & CR0_EM != 0 || cpu.sregs().cr4 & CR4_OSFXSR == 0 {
        Err(Exception::UD.into())
    } else if cpu.sregs().cr0 & CR0_TS != 0 {
        Err(Exception::NM.into())
    } else {
        Ok(())
    }
}

fn check_xsave_enabled(cpu: &dyn Cpu) -> Result<(), Stop> {
    if cpu.sregs().cr4 & CR4_OSXSAVE == 0 {
        Err(Exception::UD.into())
    } else if cpu.sregs().cr0 & CR0_TS != 0 {
        Err(Exception::NM.into())
    } else {
        Ok(())
    }
}

fn edx_eax(cpu: &dyn Cpu) -> u64 {
    (cpu.regs().rdx & 0xffff_ffff) << 32 | cpu.regs().rax & 0xffff_ffff
}

/// The requested-feature bitmap (RFBM).
fn requested(cpu: &mut dyn Cpu, supervisor: bool) -> Result<u64, Stop> {
    let requested = edx_eax(cpu) & cpu.xcr0()?;
    if supervisor {
        if cpu.cpl() != 0 {
            return Err(Exception::gp(0).into());
        }
        if edx_eax(cpu) & cpu.msr(msrs::XSS)? != 0 {
            return Err(Stop::Unsupported(
                "supervisor state components are not reachable by KVM",
            ));
        }
    }
    Ok(requested)
}

fn aligned_address(
    cpu: &mut dyn Cpu,
    instruction: &Instruction,
    alignment: u64,
) -> Result<u64, Stop> {
    let address = Operands::new(cpu, instruction).address(0)?;
    if address % alignment == 0 {
        Ok(address)
    } else {
        Err(Exception::gp(0).into())
    }
}

/// Outside 64-bit mode XMM8 to XMM15 are neither saved nor loaded.
fn legacy_sse_end(cpu: &dyn Cpu) -> usize {
    if cpu.bitness() == 64 { 416 } else { 288 }
}

/// Without REX.W the x87 pointers are 32-bit offsets beside selectors, which read as 0
/// (CPUID.7.0:EBX[13], FCS and FDS deprecated).
fn narrow_pointers(area: &mut Area, wide: bool) {
    if !wide {
        area.put(12, &[0; 4]);
        area.put(20, &[0; 4]);
    }
}

/// XSTATE_BV and XCOMP_BV of a valid header, else #GP (Intel SDM 1, 13.8 and 13.12).
fn check_header(header: &[u8; 64], xcr0: u64, supervisor: bool) -> Result<(u64, u64), Stop> {
    let word = |index: usize| u64_at(header.get(index * 8..index * 8 + 8).unwrap_or_default());
    let (present, format) = (word(0), word(1));
    let valid = if format & COMPACTED == 0 {
        !supervisor && format == 0 && word(2) == 0 && present & !xcr0 == 0
    } else {
        let components = format & !COMPACTED;
        components & !xcr0 == 0 && present & !components == 0 && (2..8).all(|i| word(i) == 0)
    };
    if valid {
        Ok((present, format))
    } else {
        Err(Exception::gp(0).into())
    }
}

/// The x87, MXCSR and SSE parts of XRSTOR.
fn restore_legacy(
    area: &mut Area,
    image: &[u8; LEGACY_SIZE],
    requested: u64,
    loaded: u64,
    with_mxcsr: bool,
    long: bool,
) -> Result<(), Stop> {
    let mask = area.bytes(MXCSR_MASK, 4).to_vec();
    let reserved = area.reserved_mxcsr();
    let initial = Area::initial();
    let piece = |bit: u64, offset: usize, len: usize| {
        if loaded & bit != 0 {
            image.get(offset..offset + len).unwrap_or_default().to_vec()
        } else {
            initial.bytes(offset, len).to_vec()
        }
    };
    if requested & X87 != 0 {
        area.put(0, &piece(X87, 0, MXCSR));
        area.put(32, &piece(X87, 32, 128));
    }
    if requested & SSE != 0 {
        area.put(160, &piece(SSE, 160, if long { 256 } else { 128 }));
    }
    if with_mxcsr {
        let value = u64_at(image.get(MXCSR..MXCSR + 4).unwrap_or_default()) as u32;
        if value & reserved != 0 {
            return Err(Exception::gp(0).into());
        }
        area.put(MXCSR, &value.to_le_bytes());
    } else if requested & SSE != 0 {
        area.put(MXCSR, &MXCSR_DEFAULT.to_le_bytes());
    }
    area.put(MXCSR_MASK, &mask);
    Ok(())
}

/// The place of a component from 2 on.
struct Place {
    bit: u64,
    size: usize,
    /// Offset in the guest's area.
    offset: usize,
    /// Offset in the standard format.
    standard: usize,
}

impl Place {
    fn end(&self) -> usize {
        self.offset + self.size
    }
}

/// The places of the requested components; `format` is XCOMP_BV, 0 for the standard format.
///
/// Outside 64-bit mode (not `long`) registers from 8 on are left alone: half of the AVX and
/// ZMM_Hi256 components, all of Hi16_ZMM (Intel SDM 1, 13.5.3 and 13.5.4).
fn places(requested: u64, format: u64, long: bool) -> Vec<Place> {
    let mut places = Vec::new();
    let mut next = HEADER_END;
    for (index, component) in layout().iter().enumerate().skip(2) {
        let bit = 1u64 << index;
        let mut offset = component.offset;
        if format & COMPACTED != 0 {
            if format & bit == 0 || index == 63 {
                continue;
            }
            if component.aligned {
                next = next.next_multiple_of(64);
            }
            offset = next;
            next += component.size;
        }
        let size = match index {
            2 | 6 if !long => component.size / 2,
            7 if !long => 0,
            _ => component.size.min(AREA_SIZE),
        };
        if requested & bit != 0 && size > 0 {
            places.push(Place {
                bit,
                size,
                offset,
                standard: component.offset,
            });
        }
    }
    places
}

/// A component as CPUID.(EAX=0DH, ECX=component) describes it.
#[derive(Clone, Copy, Default)]
struct Component {
    size: usize,
    offset: usize,
    aligned: bool,
}

/// The host's components, which are the guest's: software cannot move them.
fn layout() -> &'static [Component; 63] {
    static LAYOUT: OnceLock<[Component; 63]> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        let mut layout = [Component::default(); 63];
        if __cpuid_count(0, 0).eax < 0xd {
            return layout;
        }
        for (index, component) in (0..).zip(layout.iter_mut()).skip(2) {
            let leaf = __cpuid_count(0xd, index);
            *component = Component {
                size: leaf.eax as usize,
                offset: leaf.ebx as usize,
                aligned: leaf.ecx & 2 != 0,
            };
        }
        layout
    })
}

#[cfg(test)]
mod tests;
