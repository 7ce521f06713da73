//! Kernel command lines.

use arbitrary::Arbitrary;
use hull::boot::cmdline;
use hull::memory::GuestMemory;
use hull::memory::layout::{CMDLINE, CMDLINE_CAPACITY, MmioSlot, virtio_slot};
use vm_memory::{Bytes, GuestAddress};

/// The user's words, and what is added.
#[derive(Arbitrary, Debug)]
pub struct Input {
    user: Vec<Word>,
    slots: u8,
    max: Option<u16>,
}

#[derive(Arbitrary, Debug)]
enum Word {
    Default(bool, u8),
    End,
    /// The end of the kernel's words beside what Linux takes for a space, or does not.
    Edge(u8),
    Any(String),
}

/// U+00E0 ends with the byte 0xa0, a space in Latin-1.
const EDGES: [&str; 6] = [
    "\u{e0}--",
    "a\u{e0}-- b",
    "\x0b--\x0b",
    "\u{85}",
    "a\u{3000}",
    "--\u{a0}",
];

/// The words for the kernel, and those for init behind ` -- `, as Linux divides them
/// (lib/cmdline.c, next_arg).
fn words(line: &str) -> (Vec<String>, Vec<String>) {
    // Linux reads Latin-1 (lib/ctype.c, isspace).
    let is_space = |byte: &u8| matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0);
    let words = line.as_bytes().split(is_space);
    let words = words.filter(|word| !word.is_empty());
    let mut all = words.map(|word| String::from_utf8_lossy(word).into_owned());
    let kernel = all.by_ref().take_while(|word| word != "--").collect();
    (kernel, all.collect())
}

/// Make and write a line.
pub fn check(input: &Input) {
    let word = |word: &Word| match word {
        Word::Default(first, value) => {
            let default = cmdline::DEFAULTS[usize::from(!first)];
            let (key, _) = default.split_once('=').unwrap();
            format!("{key}={value}")
        }
        Word::End => "--".into(),
        Word::Edge(which) => EDGES[usize::from(*which) % EDGES.len()].into(),
        // Linux takes a quoted word for one; what hull adds stays outside of quotes only then.
        Word::Any(text) => text.replace('"', "'"),
    };
    let user: Vec<String> = input.user.iter().map(word).collect();
    let user = user.join(" ");
    let Ok(mut line) = cmdline::new(&user, &cmdline::DEFAULTS) else {
        return;
    };
    let slots: Vec<MmioSlot> = (0..usize::from(input.slots % 17))
        .map_while(virtio_slot)
        .collect();
    if cmdline::add_virtio(&mut line, &slots).is_err() {
        return;
    }
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let max = input.max.map_or(2047, usize::from);
    let Ok(text) = cmdline::write(&memory, &line, max) else {
        return;
    };
    assert!(text.len() <= max && (text.len() as u64) < CMDLINE_CAPACITY);
    let mut written = vec![0xaa; text.len() + 1];
    memory
        .read_slice(&mut written, GuestAddress(CMDLINE))
        .unwrap();
    assert_eq!(written, [text.as_bytes(), b"\0"].concat());

    let (kernel, init) = words(&user);
    let key = |word: &str| word.split('=').next().map(str::to_string);
    let given: Vec<_> = kernel.iter().map(|word| key(word)).collect();
    let mut expected: Vec<String> = cmdline::DEFAULTS
        .iter()
        .filter(|word| !given.contains(&key(word)))
        .map(ToString::to_string)
        .collect();
    expected.extend(kernel);
    let device = |slot: &MmioSlot| format!("virtio_mmio.device=4K@{:#x}:{}", slot.base, slot.gsi);
    expected.extend(slots.iter().map(device));
    let (kernel, found) = words(&text);
    assert_eq!(kernel, expected, "{user:?}");
    assert_eq!(found, init, "{user:?}");
}
