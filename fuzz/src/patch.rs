//! Damage to bytes that were correct.

use arbitrary::Arbitrary;

/// Bytes that are replaced.
#[derive(Arbitrary, Debug, Default)]
pub struct Patches(Vec<(u16, u8)>);

impl Patches {
    /// Whether nothing is replaced.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Replace bytes of `bytes`; a position is taken modulo their number.
    pub fn apply(&self, bytes: &mut [u8]) {
        for (at, byte) in &self.0 {
            if !bytes.is_empty() {
                let at = usize::from(*at) % bytes.len();
                bytes[at] = *byte;
            }
        }
    }
}
