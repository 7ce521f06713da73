//! Symbols of a guest's kernel.

use arbitrary::Arbitrary;
use hull::guest::add_symbols;
use hull::symbols::Symbols;

use crate::elf::Elf;
use crate::patch::Patches;

/// A System.map, a kernel without symbols, and addresses to name.
#[derive(Arbitrary, Debug)]
pub struct Input {
    lines: Vec<Line>,
    elf: Elf,
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
    for address in input.addresses.iter().chain([&0, &u64::MAX]) {
        let found = symbols.lookup(*address);
        assert!(!symbols.describe(*address).is_empty());
        if plain {
            let below = expected.iter().filter(|(at, _)| at <= address);
            let nearest = below.max_by_key(|(at, _)| *at);
            let nearest = nearest.map(|(at, name)| (name.as_str(), address - at));
            assert_eq!(found, nearest);
        }
    }
    let mut elf = input.elf.bytes();
    input.patches.apply(&mut elf);
    let named = add_symbols(elf.clone(), &map);
    assert!(named.len() <= elf.len() + map.len() * 4 + 64 * 256 * 256 + 4096);
    let found = Symbols::from_elf(&named);
    let all_functions = expected.len() == input.lines.len();
    if named != elf && all_functions && input.patches.is_empty() {
        for (address, _) in &expected {
            let place = found.as_ref().and_then(|found| found.lookup(*address));
            assert_eq!(place.map(|(_, offset)| offset), Some(0), "{address:#x}");
        }
    }
}
