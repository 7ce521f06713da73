//! Initial RAM disks: archives, compressed ones, and zeros between them.

use arbitrary::Arbitrary;
use hull::boot::initrd::{File, cpio, place, unpack};
use hull::memory::GuestMemory;
use hull::memory::image::Image;
use hull::memory::layout::PAGE_SIZE;
use vm_memory::{Bytes, GuestAddress};

use crate::packed::{Compression, stream};
use crate::patch::Patches;

/// Guest memory in bytes.
const MEMORY: usize = 1 << 20;
/// A block of lz4 is unpacked before the limit is checked.
const LZ4_BLOCK: usize = 8 << 20;

/// The parts of a file.
#[derive(Arbitrary, Debug)]
pub struct Input {
    parts: Vec<Part>,
    patches: Patches,
    /// What follows it in memory, which is as it is.
    more: Vec<Vec<u8>>,
    /// Bytes beyond a MiB that the kernel takes, and the highest address that it allows, from there on.
    kernel: u32,
    limit: Option<u32>,
}

#[derive(Arbitrary, Debug)]
enum Part {
    Archive(Vec<Entry>),
    Packed(Compression, Vec<Entry>),
    /// Unpacks to much more than the file has.
    Bomb(Compression, u16),
    Zeros(u8),
    /// Zeros, compressed.
    PackedZeros(Compression, u8),
    /// What hull names though it cannot unpack it.
    Known(bool),
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Entry {
    name: u16,
    mode: u32,
    content: Vec<u8>,
}

/// Name, mode and content.
type Found = (String, u32, Vec<u8>);

fn found(entries: &[Entry]) -> impl Iterator<Item = Found> {
    let found = |one: &Entry| (format!("f{}", one.name), one.mode, one.content.clone());
    entries.iter().map(found)
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    let all: Vec<Found> = found(entries).collect();
    let file = |(path, mode, content): &'_ Found| (path.clone(), *mode, content.clone());
    let all: Vec<_> = all.iter().map(file).collect();
    let files: Vec<File> = all
        .iter()
        .map(|(path, mode, content)| File {
            path,
            mode: *mode,
            content,
        })
        .collect();
    cpio(&files).unwrap()
}

/// What Linux finds in archives at multiples of 4 bytes with zeros between them
/// (init/initramfs.c).
fn read(mut bytes: &[u8]) -> Vec<Found> {
    let mut all = Vec::new();
    let mut at = 0usize;
    while let Some(zeros) = bytes.iter().position(|byte| *byte != 0) {
        at += zeros;
        assert!(at.is_multiple_of(4), "an archive at {at}");
        bytes = &bytes[zeros..];
        let reader = ::cpio::newc::Reader::new(bytes).unwrap();
        let entry = reader.entry();
        let (name, mode) = (entry.name().to_string(), entry.mode());
        let is_trailer = entry.is_trailer();
        let mut content = Vec::new();
        let rest = reader.to_writer(&mut content).unwrap();
        at += bytes.len() - rest.len();
        bytes = rest;
        if !is_trailer {
            all.push((name, mode, content));
        }
    }
    all
}

/// Place it with what follows it: page-aligned at the top, each part at a multiple of 4 bytes.
fn in_memory(input: &Input, first: &Image) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 * MEMORY)]).unwrap();
    let parts: Vec<Image> = input.more.iter().map(|part| part.clone().into()).collect();
    let parts = [std::slice::from_ref(first), &parts[..]].concat();
    let mut all = Vec::new();
    for part in &parts {
        all.resize(all.len().next_multiple_of(4), 0);
        all.extend(part.read(0, usize::MAX).unwrap().iter());
    }
    let (mib, page, size) = (MEMORY as u64, PAGE_SIZE, all.len() as u64);
    let kernel_end = mib + u64::from(input.kernel);
    let limit = input.limit.map_or(u64::MAX, |limit| mib + u64::from(limit));
    let top = limit.saturating_add(1).min(2 * mib);
    let start = top.checked_sub(size).map(|start| start / page * page);
    let start = start.filter(|start| *start >= kernel_end);
    match place(&memory, &parts, kernel_end, limit) {
        Ok(None) => assert_eq!(size, 0),
        Ok(Some(range)) => {
            let start = start.expect("no room for it");
            assert_eq!(range, start..start + size);
            let mut there = vec![0; 2 * MEMORY];
            memory.read_slice(&mut there, GuestAddress(0)).unwrap();
            let (before, rest) = there.split_at(start as usize);
            let (found, after) = rest.split_at(all.len());
            assert!(found == all, "other bytes");
            assert!(
                before.iter().chain(after).all(|byte| *byte == 0),
                "beyond its place"
            );
        }
        Err(error) => assert!(start.is_none() && size > 0, "{error}"),
    }
}

/// Unpack it.
pub fn check(input: &Input) {
    let mut file = Vec::new();
    let mut expected = Some(Vec::new());
    for part in &input.parts {
        match part {
            Part::Archive(entries) => {
                // An archive begins at a multiple of 4 bytes, as a part that is padded has it.
                file.resize(file.len().next_multiple_of(4), 0);
                file.extend(archive(entries));
                expected
                    .iter_mut()
                    .for_each(|all| all.extend(found(entries)));
            }
            Part::Packed(compression, entries) => {
                file.extend(stream(*compression, &archive(entries)));
                expected
                    .iter_mut()
                    .for_each(|all| all.extend(found(entries)));
                // lz4 ends where no block follows.
                if matches!(compression, Compression::Lz4) {
                    file.extend([0; 4]);
                }
            }
            Part::Bomb(compression, kib) => {
                file.extend(stream(*compression, &vec![0; usize::from(*kib) << 6]));
                expected = None;
            }
            Part::PackedZeros(compression, count) => {
                file.extend(stream(*compression, &vec![0; (*count).into()]));
                if matches!(compression, Compression::Lz4) {
                    file.extend([0; 4]);
                }
            }
            Part::Known(lzo) => {
                let magic: &[u8] = if *lzo {
                    b"\x89LZO\0\r\n\x1a\n"
                } else {
                    b"\x04\x22\x4d\x18"
                };
                file.extend(magic);
                expected = None;
            }
            Part::Zeros(count) => file.resize(file.len() + usize::from(*count), 0),
            Part::Bytes(bytes) => {
                file.extend(bytes);
                expected = None;
            }
        }
    }
    input.patches.apply(&mut file);
    let size = file.len();
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let unpacked = match unpack(&memory, &[Image::from(file)]) {
        Ok(unpacked) => unpacked,
        Err(error) => {
            assert!(expected.is_none() || !input.patches.is_empty(), "{error}");
            return;
        }
    };
    in_memory(input, &unpacked[0]);
    let [Image::Bytes(bytes)] = &unpacked[..] else {
        panic!("{unpacked:?}");
    };
    assert!(bytes.len() <= MEMORY.max(size) + LZ4_BLOCK);
    if let (Some(expected), true) = (expected, input.patches.is_empty()) {
        assert_eq!(read(bytes), expected);
    }
}
