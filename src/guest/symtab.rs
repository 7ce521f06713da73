//! A symbol table for a stripped kernel, from its System.map.
//!
//! Source: the ELF specification (gabi), "Sections" and "Symbol Table".

/// Offsets in the 64-bit ELF header of the fields for the section headers: place, size, count.
const SHOFF: usize = 40;
const SHENTSIZE: usize = 58;
const SHNUM: usize = 60;
/// Sizes of a section header and of a symbol in bytes.
const HEADER: usize = 64;
const SYMBOL: usize = 24;

const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
/// `st_info`: STT_FUNC with STB_GLOBAL.
const GLOBAL_FUNCTION: u8 = 1 << 4 | 2;
/// SHN_ABS: the symbol is in no section.
const NO_SECTION: u16 = 0xfff1;

/// `elf` with a symbol for each line of `system_map`, which has only functions; unchanged if either is
/// malformed.
pub fn add(elf: Vec<u8>, system_map: &[u8]) -> Vec<u8> {
    with(&elf, system_map).unwrap_or(elf)
}

fn with(elf: &[u8], system_map: &[u8]) -> Option<Vec<u8>> {
    if elf.get(..5)? != b"\x7fELF\x02" || u16_at(elf, SHENTSIZE)? as usize != HEADER {
        return None;
    }
    let start = usize::try_from(u64_at(elf, SHOFF)?).ok()?;
    let count = usize::from(u16_at(elf, SHNUM)?);
    let headers = elf.get(start..start.checked_add(count * HEADER)?)?;

    let mut names = vec![0];
    let mut symbols = vec![0; SYMBOL];
    for line in std::str::from_utf8(system_map).ok()?.lines() {
        let mut words = line.split(' ');
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let name = words.nth(1)?;
        symbols.extend((names.len() as u32).to_le_bytes());
        symbols.extend([GLOBAL_FUNCTION, 0]);
        let section = section(headers, address);
        symbols.extend(section.unwrap_or(NO_SECTION).to_le_bytes());
        symbols.extend(address.to_le_bytes());
        symbols.extend(0u64.to_le_bytes());
        names.extend(name.as_bytes());
        names.push(0);
    }

    let mut out = elf.to_vec();
    out.resize(out.len().next_multiple_of(8), 0);
    let symbols_at = out.len();
    out.extend(&symbols);
    let names_at = out.len();
    out.extend(&names);
    out.resize(out.len().next_multiple_of(8), 0);
    let headers_at = out.len();
    out.extend(headers);
    // Symbol 0, the only local one, is the null symbol.
    let link = count as u32 + 1;
    out.extend(header(
        SHT_SYMTAB,
        symbols_at,
        symbols.len(),
        [link, 1],
        SYMBOL,
    ));
    out.extend(header(SHT_STRTAB, names_at, names.len(), [0, 0], 0));
    let place = out.get_mut(SHOFF..SHOFF + 8)?;
    place.copy_from_slice(&(headers_at as u64).to_le_bytes());
    let place = out.get_mut(SHNUM..SHNUM + 2)?;
    place.copy_from_slice(&(count as u16).checked_add(2)?.to_le_bytes());
    Some(out)
}

/// The index of the section that contains `address`.
fn section(headers: &[u8], address: u64) -> Option<u16> {
    let holds = |header: &[u8]| {
        let (at, size) = (u64_at(header, 16)?, u64_at(header, 32)?);
        let allocated = u64_at(header, 8)? & 2 != 0;
        Some(allocated && address.checked_sub(at).is_some_and(|offset| offset < size))
    };
    let mut all = headers.chunks_exact(HEADER);
    let index = all.position(|header| holds(header) == Some(true))?;
    u16::try_from(index).ok()
}

/// A section header, without a name.
fn header(kind: u32, at: usize, size: usize, [link, info]: [u32; 2], entry: usize) -> Vec<u8> {
    let mut header = vec![0; 4];
    header.extend(kind.to_le_bytes());
    header.extend([0; 16]); // flags, address
    header.extend((at as u64).to_le_bytes());
    header.extend((size as u64).to_le_bytes());
    header.extend(link.to_le_bytes());
    header.extend(info.to_le_bytes());
    header.extend(8u64.to_le_bytes());
    header.extend((entry as u64).to_le_bytes());
    header
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use object::read::elf::ElfFile64;
    use object::{Object, ObjectSymbol};

    use super::*;

    #[test]
    fn the_names_of_the_map_are_in_the_file() {
        // The test program itself is an ELF file.
        let elf = std::fs::read("/proc/self/exe").unwrap();
        let map = b"0000000000001000 T first\nffffffff81000000 t start_kernel\n";
        let named = add(elf.clone(), map);
        let file = ElfFile64::<object::LittleEndian>::parse(named.as_slice()).unwrap();
        let found = |name: &str| {
            let mut symbols = file.symbols();
            let symbol = symbols.find(|symbol| symbol.name() == Ok(name));
            symbol.map(|symbol| symbol.address())
        };
        // The first table counts; a stripped file has none.
        let plain = ElfFile64::<object::LittleEndian>::parse(elf.as_slice()).unwrap();
        if plain.symbols().next().is_none() {
            assert_eq!(found("start_kernel"), Some(0xffff_ffff_8100_0000));
        }
        assert_eq!(
            file.sections().count(),
            plain.sections().count() + 2,
            "two sections more"
        );
    }

    #[test]
    fn other_files_stay_unchanged() {
        for bytes in [&b""[..], b"\x7fELF\x02", &[0xff; 100]] {
            assert_eq!(add(bytes.to_vec(), b"10 T a\n"), bytes);
        }
    }
}
