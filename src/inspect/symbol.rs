//! Addresses by the name of a symbol.

use crate::symbols::Symbols;

/// Largest offset from a symbol that is still part of it: no function of a kernel is larger.
const MAX_OFFSET: u64 = 1 << 20;

/// `name+0x10`, if a symbol is at `address` or below it within 1 MiB.
pub fn symbol(symbols: &Symbols, address: u64) -> Option<String> {
    let (name, offset) = symbols.lookup(address)?;
    match offset {
        0 => Some(name.into()),
        1..MAX_OFFSET => Some(format!("{name}+{offset:#x}")),
        _ => None,
    }
}
