//! Symbols of a guest's kernel.

use arbitrary::Arbitrary;
use hull::guest::add_symbols;
use hull::symbols::{Source, Symbols};

use crate::elf::Elf;
use crate::patch::Patches;

/// A System.map, a kernel without symbols, and addresses to name.
#[derive(Arbitrary, Debug)]
pub struct Input {
    lines: Vec<Line>,
    elf: Elf,
    /// Sections: address, size, and whether they are in memory.
    sections: Vec<(u16, u16, bool)>,
    /// Symbols that the kernel has.
    own: Vec<(u32, u8, u16)>,
    patches: Patches,
    addresses: Vec<u64>,
}

#[derive(Arbitrary, Debug)]
enum Line {
    Symbol(u32, u8, u16),
    Bytes(Vec<u8>),
}

const KINDS: [&str; 6] = ["t", "T", "w", "W", "D", "r"];

impl Line {
    fn symbol(&self) -> Option<(u64, &str, String)> {
        let Self::Symbol(address, kind, name) = self else {
            return None;
        };
        let kind = KINDS[usize::from(*kind) % KINDS.len()];
        Some((u64::from(*address), kind, format!("s{name}")))
    }
}

/// Bytes of a section header, and of a symbol.
const SECTION: usize = 64;
const SYMBOL: usize = 24;

/// A section header (the ELF specification, "Sections").
fn section(kind: u32, flags: u64, at: [u64; 3], link: u32, entry: u64) -> Vec<u8> {
    let [address, offset, size] = at;
    let mut bytes = 0u32.to_le_bytes().to_vec();
    bytes.extend(kind.to_le_bytes());
    for word in [flags, address, offset, size] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(link.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(entry.to_le_bytes());
    bytes
}

impl Input {
    /// The kernel with its sections, and with a table of the symbols that it has.
    fn kernel(&self) -> Vec<u8> {
        let mut file = self.elf.bytes();
        if file[4] != 2 || self.sections.is_empty() {
            return file;
        }
        let mut headers = section(0, 0, [0; 3], 0, 0);
        let sections = self.sections.len().min(50) as u16;
        for (address, size, in_memory) in self.sections.iter().take(50) {
            let place = [(*address).into(), 0, (*size).into()];
            headers.extend(section(8, 2 * u64::from(*in_memory), place, 0, 0));
        }
        // The names of sections: none.
        headers.extend(section(3, 0, [0; 3], 0, 0));
        file[62..64].copy_from_slice(&(sections + 1).to_le_bytes());
        if !self.own.is_empty() {
            let (mut names, mut symbols) = (vec![0], vec![0; SYMBOL]);
            for (address, kind, name) in &self.own {
                symbols.extend((names.len() as u32).to_le_bytes());
                // Global ones: a function, an object, or one that is not defined here.
                let (info, index) = [(0x12, 1u16), (0x11, 1), (0x12, 0)][usize::from(kind % 3)];
                symbols.extend([info, 0]);
                symbols.extend(index.to_le_bytes());
                symbols.extend(u64::from(*address).to_le_bytes());
                symbols.extend(0u64.to_le_bytes());
                names.extend(format!("o{name}\0").into_bytes());
            }
            let link = (headers.len() / SECTION) as u32 + 1;
            for (kind, bytes, link, entry) in [(2, symbols, link, SYMBOL), (3, names, 0, 0)] {
                file.resize(file.len().next_multiple_of(8), 0);
                let place = [0, file.len() as u64, bytes.len() as u64];
                headers.extend(section(kind, 0, place, link, entry as u64));
                file.extend(bytes);
            }
        }
        file.resize(file.len().next_multiple_of(8), 0);
        let at = file.len() as u64;
        file[40..48].copy_from_slice(&at.to_le_bytes());
        file[58..60].copy_from_slice(&(SECTION as u16).to_le_bytes());
        file[60..62].copy_from_slice(&((headers.len() / SECTION) as u16).to_le_bytes());
        file.extend(headers);
        file
    }

    /// Address and name of the functions that the kernel has.
    fn functions(&self) -> Vec<(u64, String)> {
        let functions = self.own.iter().filter(|(_, kind, _)| kind % 3 == 0);
        let function =
            |(address, _, name): &(u32, u8, u16)| ((*address).into(), format!("o{name}"));
        functions.map(function).collect()
    }
}

/// The last function at or below `address`, and how far below.
fn nearest(functions: &[(u64, String)], address: u64) -> Option<(&str, u64)> {
    let below = functions.iter().filter(|(at, _)| *at <= address);
    let nearest = below.max_by_key(|(at, _)| *at);
    nearest.map(|(at, name)| (name.as_str(), address - at))
}

/// Panic unless `symbols` are these functions.
fn same(symbols: &Symbols, functions: &[(u64, String)], addresses: &[u64]) {
    let own = functions.iter().map(|(at, _)| at);
    for address in addresses.iter().chain(own).chain([&0, &u64::MAX]) {
        let found = symbols.lookup(*address);
        assert_eq!(found, nearest(functions, *address), "{address:#x}");
        let described = symbols.describe(*address);
        assert_eq!(found.is_none(), described.starts_with("0x"), "{described}");
    }
    for (_, name) in functions {
        let address = symbols.address(name).expect("it is there");
        assert!(
            functions
                .iter()
                .any(|(at, other)| *at == address && other == name)
        );
    }
    assert_eq!(symbols.address("none"), None);
}

/// Panic unless each symbol that was added says in which section it lies: the last two sections of `named`
/// are the table and its names.
fn in_sections(named: &[u8], sections: &[(u16, u16, bool)]) {
    let number = |at: usize, size: usize| {
        let bytes = named[at..at + size].iter();
        bytes.rfold(0, |sum, byte| sum << 8 | u64::from(*byte)) as usize
    };
    let (headers, count) = (number(40, 8), number(60, 2));
    let table = headers + (count - 2) * SECTION;
    let (start, size) = (number(table + 24, 8), number(table + 32, 8));
    for at in (start + SYMBOL..start + size).step_by(SYMBOL) {
        let address = number(at + 8, 8);
        let holds = |(from, size, in_memory): &(u16, u16, bool)| {
            let from = usize::from(*from);
            *in_memory && (from..from + usize::from(*size)).contains(&address)
        };
        let expected = sections.iter().take(50).position(holds);
        assert_eq!(
            number(at + 6, 2),
            expected.map_or(0xfff1, |index| index + 1)
        );
    }
}

/// Read them, and add them to the kernel.
pub fn check(input: &Input) {
    let mut map = Vec::new();
    let mut expected = Vec::new();
    let mut plain = true;
    for line in &input.lines {
        match (line, line.symbol()) {
            (_, Some((address, kind, name))) => {
                map.extend(format!("{address:016x} {kind} {name}\n").into_bytes());
                if kind != "D" && kind != "r" {
                    expected.push((address, name));
                }
            }
            (Line::Bytes(bytes), _) => {
                plain = false;
                map.extend(bytes);
                map.push(b'\n');
            }
            (Line::Symbol(..), None) => {}
        }
    }
    let symbols = Symbols::from_system_map(&map);
    let loaded = Source::SystemMap(map.clone().into()).load();
    if plain {
        same(&symbols, &expected, &input.addresses);
        same(&loaded, &expected, &input.addresses);
    }
    for address in &input.addresses {
        assert_eq!(symbols.lookup(*address), loaded.lookup(*address));
        assert!(!symbols.describe(*address).is_empty());
    }
    let mut elf = input.kernel();
    input.patches.apply(&mut elf);
    let has = Source::Elf(elf.clone().into()).load();
    let sound = input.patches.is_empty() && elf[4] == 2 && !input.sections.is_empty();
    if sound {
        same(&has, &input.functions(), &input.addresses);
    }
    let named = add_symbols(elf.clone(), &map);
    assert!(named.len() <= elf.len() + map.len() * 4 + 64 * 256 * 256 + 4096);
    let found = Symbols::from_elf(&named);
    let all_functions = expected.len() == input.lines.len();
    if sound && all_functions {
        assert!(named != elf, "nothing is added");
        in_sections(&named, &input.sections);
        // A symbol of no section is none of a function for the one who reads them.
        let in_memory = |(address, _): &(u64, String)| {
            let holds = |(from, size, in_memory): &(u16, u16, bool)| {
                let from = u64::from(*from);
                *in_memory && (from..from + u64::from(*size)).contains(address)
            };
            input.sections.iter().take(50).any(holds)
        };
        expected.retain(in_memory);
        if input.own.is_empty() {
            let found = found.unwrap_or_default();
            same(&found, &expected, &input.addresses);
        }
    }
}
