//! Names of addresses in a guest's kernel, from its System.map or from the ELF file's own table.
//!
//! Malformed lines and damaged tables are skipped.

#![forbid(unsafe_code)]

use std::ops::Range;

use object::read::elf::ElfFile64;
use object::{Object, ObjectSymbol, SymbolKind};

use crate::memory::image::Image;

/// The source of a kernel's symbols.
#[derive(Clone, Debug)]
pub enum Source {
    /// A System.map, as text.
    SystemMap(Image),
    /// The kernel itself, if it is an ELF file that is not stripped.
    Elf(Image),
}

impl Source {
    /// Read the symbols, which takes milliseconds; empty if they cannot be read.
    pub fn load(&self) -> Symbols {
        let (Self::SystemMap(image) | Self::Elf(image)) = self;
        let Ok(bytes) = image.read(0, usize::MAX) else {
            return Symbols::default();
        };
        match self {
            Self::SystemMap(_) => Symbols::from_system_map(&bytes),
            Self::Elf(_) => Symbols::from_elf(&bytes).unwrap_or_default(),
        }
    }
}

/// Function symbols by address.
#[derive(Debug, Default)]
pub struct Symbols {
    /// All names, one directly after the other.
    names: String,
    /// Addresses, ascending, and the range of each one's name in `names`.
    places: Vec<(u64, Range<u32>)>,
}

impl Symbols {
    /// From the text of a System.map: lines of address, type and name, as nm(1) prints them.
    pub fn from_system_map(text: &[u8]) -> Self {
        let lines = text.split(|byte| *byte == b'\n');
        Self::sorted(lines.filter_map(|line| {
            let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let kind = words.next()?;
            let name = words.next()?;
            matches!(kind, "t" | "T" | "w" | "W").then_some((address, name))
        }))
    }

    /// From the symbol table of a 64-bit ELF file; `None` if it has none that can be read.
    pub fn from_elf(file: &[u8]) -> Option<Self> {
        let file = ElfFile64::<object::LittleEndian>::parse(file).ok()?;
        let symbols = Self::sorted(file.symbols().filter_map(|symbol| {
            let function = matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Label);
            let named = function && symbol.is_definition();
            named.then_some((symbol.address(), symbol.name().ok()?))
        }));
        (!symbols.places.is_empty()).then_some(symbols)
    }

    fn sorted<'a>(symbols: impl Iterator<Item = (u64, &'a str)>) -> Self {
        let mut all = Self::default();
        for (address, name) in symbols {
            let start = all.names.len();
            let end = start + name.len();
            let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end)) else {
                break; // 4 GiB of names are enough
            };
            all.names.push_str(name);
            all.places.push((address, start..end));
        }
        // A stable sort: of several names of one address the last one in the file is used.
        all.places.sort_by_key(|(address, _)| *address);
        all
    }

    /// The last symbol at or below `address`, and how far below.
    pub fn lookup(&self, address: u64) -> Option<(&str, u64)> {
        let after = self.places.partition_point(|(at, _)| *at <= address);
        let (at, name) = self.places.get(after.checked_sub(1)?)?;
        Some((self.name(name)?, address - at))
    }

    /// `name+0x10`, or the address in hexadecimal if no symbol is below.
    pub fn describe(&self, address: u64) -> String {
        match self.lookup(address) {
            Some((name, offset)) => format!("{name}+{offset:#x}"),
            None => format!("{address:#x}"),
        }
    }

    /// The address of the symbol `name`.
    pub fn address(&self, name: &str) -> Option<u64> {
        let mut places = self.places.iter();
        places
            .find(|(_, range)| self.name(range) == Some(name))
            .map(|(address, _)| *address)
    }

    fn name(&self, range: &Range<u32>) -> Option<&str> {
        self.names.get(range.start as usize..range.end as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAP: &[u8] = b"\
        0000000000000010 D data\n\
        ffffffff81000000 T _stext\n\
        ffffffff81000020 t second\n\
        nonsense\n\
        ffffffff81000020 W alias\n\
        ffffffff81000010 T between\n";

    #[test]
    fn an_address_has_the_name_of_the_function_around_it() {
        let symbols = Symbols::from_system_map(MAP);
        for (address, expected) in [
            (0x10, None),
            (0xffff_ffff_8100_0000, Some(("_stext", 0))),
            (0xffff_ffff_8100_000f, Some(("_stext", 15))),
            (0xffff_ffff_8100_0012, Some(("between", 2))),
            (0xffff_ffff_8100_0020, Some(("alias", 0))),
            (u64::MAX, Some(("alias", 0x7eff_ffdf))),
        ] {
            assert_eq!(symbols.lookup(address), expected, "{address:#x}");
        }
        assert_eq!(symbols.address("between"), Some(0xffff_ffff_8100_0010));
        assert_eq!(symbols.address("data"), None);
        assert_eq!(symbols.describe(0xffff_ffff_8100_0012), "between+0x2");
        assert_eq!(symbols.describe(0x12), "0x12");
    }

    #[test]
    fn a_program_knows_its_own_functions() {
        // The test program itself is an ELF file with symbols.
        let file = std::fs::read("/proc/self/exe").unwrap();
        let symbols = Symbols::from_elf(&file).unwrap();
        let main = symbols.address("main").unwrap();
        assert_eq!(symbols.lookup(main + 1).map(|(_, offset)| offset), Some(1));
        assert!(Symbols::from_elf(b"\x7fELF").is_none());
    }

    proptest! {
        #[test]
        fn no_content_of_a_file_causes_a_panic(bytes: Vec<u8>, address: u64) {
            let symbols = Symbols::from_system_map(&bytes);
            let _ = symbols.lookup(address);
            let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
            elf.extend(bytes);
            let _ = Symbols::from_elf(&elf);
        }
    }
}
