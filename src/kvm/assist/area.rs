//! A processor's extended state in the standard format, as KVM_GET_XSAVE hands it out (Intel SDM 1,
//! 13.4).

/// Bytes of state KVM_GET_XSAVE hands out.
pub const AREA_SIZE: usize = 4096;
/// Bytes of x87 and SSE state, which come first, as FXSAVE writes them.
pub const LEGACY_SIZE: usize = 512;
/// Offset of MXCSR in the area.
pub const MXCSR: usize = 24;
/// Offset of MXCSR_MASK: the bits that MXCSR may have.
pub const MXCSR_MASK: usize = 28;
/// MXCSR after a reset.
pub const MXCSR_DEFAULT: u32 = 0x1f80;
/// The x87 control word after FNINIT.
const FCW_DEFAULT: u16 = 0x37f;

/// Extended state in the standard format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area(pub Box<[u8; AREA_SIZE]>);

impl Area {
    /// Every component in its initial configuration (Intel SDM 1, 13.6).
    pub fn initial() -> Area {
        let mut area = Area(Box::new([0; AREA_SIZE]));
        area.put(0, &FCW_DEFAULT.to_le_bytes());
        area.put(MXCSR, &MXCSR_DEFAULT.to_le_bytes());
        area.put(MXCSR_MASK, &0xffff_u32.to_le_bytes());
        area
    }

    /// `len` bytes at `offset`; none where the area ends before.
    pub fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        offset
            .checked_add(len)
            .and_then(|end| self.0.get(offset..end))
            .unwrap_or_default()
    }

    /// Write `data` at `offset`; nothing where the area ends before.
    pub fn put(&mut self, offset: usize, data: &[u8]) {
        if let Some(to) = self
            .0
            .get_mut(offset..)
            .and_then(|area| area.get_mut(..data.len()))
        {
            to.copy_from_slice(data);
        }
    }

    /// XSTATE_BV: the components that are in use.
    pub fn in_use(&self) -> u64 {
        u64_at(self.bytes(LEGACY_SIZE, 8))
    }

    /// Sets XSTATE_BV, the components that are in use.
    pub fn set_in_use(&mut self, components: u64) {
        self.put(LEGACY_SIZE, &components.to_le_bytes());
    }

    /// MXCSR, the control and status register of SSE.
    pub fn mxcsr(&self) -> u32 {
        u64_at(self.bytes(MXCSR, 4)) as u32
    }

    /// The bits that must not be set in MXCSR.
    pub fn reserved_mxcsr(&self) -> u32 {
        match u64_at(self.bytes(MXCSR_MASK, 4)) as u32 {
            0 => !0xffbf,
            mask => !mask,
        }
    }
}

/// Up to 8 bytes as a little-endian number.
pub fn u64_at(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}
