//! Makes empty ext4 file systems: without a program of the host, without any right, and of any size in
//! little time, for only what is not zero is written.
//!
//! ```text
//!  group 0   | superblock | descriptors | bitmaps | inodes | root folder | journal | free ...
//!  group N   | (a copy of both) |         bitmaps | inodes | free ...
//! ```
//! Blocks have 4 KiB and groups 128 MiB. The bitmaps of all groups but the first and the last are left to the
//! kernel, which the flags of their descriptors tell. There is no lost+found: programs that want an empty
//! folder get one. (Documentation/filesystems/ext4, fs/ext4/ext4.h.)

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use rustix::rand::{GetRandomFlags, getrandom};
use thiserror::Error;

/// Sizes of a file system in bytes, 8 MiB to 16 TiB.
pub const SIZES: RangeInclusive<u64> = 8 << 20..=1 << 44;

const BLOCK: u64 = 4096;
const BLOCKS_PER_GROUP: u64 = 8 * BLOCK;
const INODE: u64 = 256;
/// One inode for so many bytes, as mke2fs has it.
const BYTES_PER_INODE: u64 = 16 << 10;
const DESCRIPTOR: usize = 32;
/// A last group with fewer blocks than its own tables and these is left out.
const MIN_FREE: u64 = 64;
/// The first inode that is not reserved.
const FIRST_INODE: u32 = 11;
const ROOT: u64 = 2;
const JOURNAL: u64 = 8;

const SUPERBLOCK_AT: u64 = 1024;
const MAGIC: u16 = 0xef53;
/// has_journal, ext_attr, dir_index.
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x20;
/// filetype, extents.
const INCOMPATIBLE: u32 = 0x2 | 0x40;
/// The journal is to be replayed.
const RECOVER: u32 = 0x4;
/// sparse_super, large_file, huge_file, gdt_csum, dir_nlink, extra_isize.
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40;

/// Of a group: its bitmaps are made by the kernel; its inodes are zeroes.
const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;
const INODE_ZEROED: u16 = 4;

/// Why a file holds no file system that a guest could mount. Continues after the file's name.
#[derive(Debug, Error)]
pub enum Ext4Error {
    /// The file cannot be read.
    #[error("it cannot be read ({0})")]
    Read(io::Error),
    /// It begins otherwise.
    #[error("it holds no ext4")]
    Magic,
    /// A part of it is missing.
    #[error("it is damaged: its ext4 has {of} bytes and the file {len}")]
    Cut {
        /// Bytes of the file system.
        of: u64,
        /// Bytes of the file.
        len: u64,
    },
}

/// What the superblock of a file system says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was made, in seconds of Unix time.
    pub created: u64,
    /// Whether the last machine that wrote to it has left it as it was.
    pub recover: bool,
}

/// What the superblock in `file` says.
///
/// # Errors
/// It is none, or the file is shorter than it says.
pub fn look(file: &File) -> Result<About, Ext4Error> {
    let len = file.metadata().map_err(Ext4Error::Read)?.len();
    let mut block = Block::default();
    match file.read_exact_at(block.0.as_mut_slice(), 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Ext4Error::Magic),
        read => read.map_err(Ext4Error::Read)?,
    }
    let word = |at: u64| {
        let at = (SUPERBLOCK_AT + at) as usize;
        let bytes = block.0.get(at..at + 4).and_then(|it| it.try_into().ok());
        u32::from_le_bytes(bytes.unwrap_or_default())
    };
    let shift = word(0x18);
    if word(0x38) as u16 != MAGIC || shift > 6 {
        return Err(Ext4Error::Magic);
    }
    let bytes = u64::from(word(0x4)) << (10 + shift);
    if bytes > len {
        return Err(Ext4Error::Cut { of: bytes, len });
    }
    Ok(About {
        bytes,
        created: word(0x108).into(),
        recover: word(0x60) & RECOVER != 0,
    })
}

/// The length of the file for so many bytes: whole blocks.
pub fn rounded(bytes: u64) -> u64 {
    bytes / BLOCK * BLOCK
}

/// Make the empty `file` an empty ext4 of `bytes` bytes, [`SIZES`], rounded down to whole blocks. Only its
/// tables take room on the host's disk.
///
/// # Errors
/// The host has no room for it, or refuses a file of this size.
pub fn format(file: &File, bytes: u64) -> io::Result<()> {
    file.set_len(rounded(bytes))?;
    let layout = Layout::new(bytes);
    let mut uuids = [[0; 16]; 2];
    for uuid in &mut uuids {
        getrandom(&mut *uuid, GetRandomFlags::empty())?;
        // A random one (RFC 9562, 5.4).
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs() as u32);
    let [uuid, seed] = uuids;
    let descriptors: Vec<u8> = (0..layout.groups)
        .flat_map(|group| layout.descriptor(group, &uuid))
        .collect();
    let write = |block: u64, bytes: &[u8]| file.write_all_at(bytes, block * BLOCK);
    for group in (0..layout.groups).filter(|group| has_superblock(*group)) {
        write(group * BLOCKS_PER_GROUP + 1, &descriptors)?;
    }
    write(layout.block_bitmap(0), &layout.used_blocks(0).0)?;
    write(layout.inode_bitmap(0), &layout.used_inodes().0)?;
    let last = layout.groups - 1;
    if last > 0 {
        write(layout.block_bitmap(last), &layout.used_blocks(last).0)?;
    }
    write(layout.inodes(0), &layout.first_inodes(now).0)?;
    write(layout.root(), &root_folder().0)?;
    write(layout.journal(), &layout.journal_superblock(&uuid).0)?;
    // Last of all: without it there is no file system.
    for group in (0..layout.groups).rev().filter(|it| has_superblock(*it)) {
        let superblock = layout.superblock(group, now, &uuid, &seed);
        // In the first group it lies behind the boot sector.
        let at = if group == 0 { SUPERBLOCK_AT } else { 0 };
        file.write_all_at(&superblock, group * BLOCKS_PER_GROUP * BLOCK + at)?;
    }
    Ok(())
}

/// Whether a group begins with a superblock and all descriptors (fs/ext4/balloc.c, ext4_bg_has_super).
fn has_superblock(group: u64) -> bool {
    let is_power = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power)
}

/// A block of bytes that are zero at first.
struct Block(Vec<u8>);

impl Default for Block {
    fn default() -> Self {
        Self(vec![0; BLOCK as usize])
    }
}

impl Block {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        put(&mut self.0, at, bytes);
    }

    /// Set the bits `range`.
    fn set(&mut self, range: std::ops::Range<u64>) {
        for bit in range {
            if let Some(byte) = self.0.get_mut((bit / 8) as usize) {
                *byte |= 1 << (bit % 8);
            }
        }
    }
}

fn put(to: &mut [u8], at: u64, bytes: &[u8]) {
    let at = at as usize;
    if let Some(place) = to.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Where everything lies, in blocks.
struct Layout {
    blocks: u64,
    groups: u64,
    inodes_per_group: u64,
    /// Of the descriptors.
    descriptor_blocks: u64,
    journal_blocks: u64,
}

impl Layout {
    fn new(bytes: u64) -> Self {
        // A block's number has 32 bits.
        let mut blocks = (bytes / BLOCK).min(u32::MAX.into());
        let mut layout = Self::of(blocks);
        let last = layout.groups - 1;
        if last > 0 && layout.len(last) < layout.overhead(last) + MIN_FREE {
            blocks = last * BLOCKS_PER_GROUP;
            layout = Self::of(blocks);
        }
        layout
    }

    fn of(blocks: u64) -> Self {
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        let inodes = (blocks * BLOCK / BYTES_PER_INODE).div_ceil(groups);
        Self {
            blocks,
            groups,
            // Whole blocks of them.
            inodes_per_group: inodes.next_multiple_of(BLOCK / INODE),
            descriptor_blocks: (groups * DESCRIPTOR as u64).div_ceil(BLOCK),
            // As mke2fs, but at most 64 MiB.
            journal_blocks: match blocks {
                ..0x8000 => 1024,
                0x8000..0x40000 => 4096,
                0x40000..0x80000 => 8192,
                _ => 16384,
            },
        }
    }

    /// Blocks of a group.
    fn len(&self, group: u64) -> u64 {
        (self.blocks - group * BLOCKS_PER_GROUP).min(BLOCKS_PER_GROUP)
    }

    /// Blocks of a group before its bitmaps.
    fn copies(&self, group: u64) -> u64 {
        match has_superblock(group) {
            true => 1 + self.descriptor_blocks,
            false => 0,
        }
    }

    fn block_bitmap(&self, group: u64) -> u64 {
        group * BLOCKS_PER_GROUP + self.copies(group)
    }

    fn inode_bitmap(&self, group: u64) -> u64 {
        self.block_bitmap(group) + 1
    }

    fn inodes(&self, group: u64) -> u64 {
        self.block_bitmap(group) + 2
    }

    fn inode_blocks(&self) -> u64 {
        self.inodes_per_group * INODE / BLOCK
    }

    /// Blocks of a group that its tables take.
    fn overhead(&self, group: u64) -> u64 {
        self.copies(group) + 2 + self.inode_blocks()
    }

    fn root(&self) -> u64 {
        self.overhead(0)
    }

    fn journal(&self) -> u64 {
        self.root() + 1
    }

    /// Blocks of a group that are taken.
    fn used(&self, group: u64) -> u64 {
        match group {
            0 => self.journal() + self.journal_blocks,
            _ => self.overhead(group),
        }
    }

    /// Inodes of a group that are taken.
    fn used_inodes_of(group: u64) -> u64 {
        match group {
            0 => u64::from(FIRST_INODE) - 1,
            _ => 0,
        }
    }

    /// The descriptor of a group (Documentation/filesystems/ext4/group_descr.rst).
    fn descriptor(&self, group: u64, uuid: &[u8; 16]) -> [u8; DESCRIPTOR] {
        let mut bytes = [0; DESCRIPTOR];
        let unused = self.inodes_per_group - Self::used_inodes_of(group);
        let flags = match group {
            0 => INODE_ZEROED,
            // e2fsprogs wants to see the end of the last.
            _ if group == self.groups - 1 => INODE_ZEROED | INODE_UNINIT,
            _ => INODE_ZEROED | INODE_UNINIT | BLOCK_UNINIT,
        };
        let words = [
            self.block_bitmap(group),
            self.inode_bitmap(group),
            self.inodes(group),
        ];
        for (at, word) in [0, 4, 8].into_iter().zip(words) {
            put(&mut bytes, at, &(word as u32).to_le_bytes());
        }
        let free = self.len(group) - self.used(group);
        let root = u64::from(group == 0);
        for (at, half) in [
            (0xc, free),
            (0xe, unused),
            (0x10, root),
            (0x12, flags.into()),
            (0x1c, unused),
        ] {
            put(&mut bytes, at, &(half as u16).to_le_bytes());
        }
        let number = (group as u32).to_le_bytes();
        let (covered, _) = bytes.split_at(DESCRIPTOR - 2);
        let sum = crc16(uuid.iter().chain(&number).chain(covered));
        put(&mut bytes, 0x1e, &sum.to_le_bytes());
        bytes
    }

    /// The bitmap of a group's blocks. Those behind its end are taken.
    fn used_blocks(&self, group: u64) -> Block {
        let mut bitmap = Block::default();
        bitmap.set(0..self.used(group));
        bitmap.set(self.len(group)..BLOCKS_PER_GROUP);
        bitmap
    }

    fn used_inodes(&self) -> Block {
        let mut bitmap = Block::default();
        bitmap.set(0..Self::used_inodes_of(0));
        bitmap.set(self.inodes_per_group..8 * BLOCK);
        bitmap
    }

    /// The first block of inodes, with those of the root folder and the journal.
    fn first_inodes(&self, now: u32) -> Block {
        let mut inodes = Block::default();
        let root = inode(0o040_755, 2, (self.root(), 1), now);
        inodes.put((ROOT - 1) * INODE, &root);
        let journal = inode(0o100_600, 1, (self.journal(), self.journal_blocks), now);
        inodes.put((JOURNAL - 1) * INODE, &journal);
        inodes
    }

    /// The first block of the journal, big endian (Documentation/filesystems/ext4/journal.rst).
    fn journal_superblock(&self, uuid: &[u8; 16]) -> Block {
        let mut block = Block::default();
        let words = [
            0xc03b_3998, // its magic number
            4,           // a superblock of version 2
            0,
            BLOCK as u32,
            self.journal_blocks as u32,
            1, // the first block of the log
            1, // the first transaction
        ];
        for (at, word) in (0..).step_by(4).zip(words) {
            block.put(at, &u32::to_be_bytes(word));
        }
        block.put(0x30, uuid);
        block.put(0x40, &1_u32.to_be_bytes());
        block
    }

    /// The superblock of `group`, 1 KiB (Documentation/filesystems/ext4/super.rst).
    fn superblock(&self, group: u64, now: u32, uuid: &[u8; 16], seed: &[u8; 16]) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        let inodes = self.groups * self.inodes_per_group;
        let used: u64 = (0..self.groups).map(|group| self.used(group)).sum();
        let journal = inode(0o100_600, 1, (self.journal(), self.journal_blocks), now);
        for (at, word) in [
            (0x0, inodes),
            (0x4, self.blocks),
            (0xc, self.blocks - used),
            (0x10, inodes - Self::used_inodes_of(0)),
            (0x18, 2), // blocks and clusters of 1 KiB << 2
            (0x1c, 2),
            (0x20, BLOCKS_PER_GROUP),
            (0x24, BLOCKS_PER_GROUP),
            (0x28, self.inodes_per_group),
            (0x30, now.into()),
            (0x40, now.into()),
            (0x4c, 1), // with features
            (0x54, FIRST_INODE.into()),
            (0x5c, COMPATIBLE.into()),
            (0x60, INCOMPATIBLE.into()),
            (0x64, READ_ONLY_COMPATIBLE.into()),
            (0xe0, JOURNAL),
            (0x100, 0xc), // user_xattr and acl
            (0x108, now.into()),
            (0x248, used - 1), // tables and journal, which the kernel would count otherwise
            (0x160, 1),        // names are hashed as signed bytes
        ] {
            put(&mut bytes, at, &(word as u32).to_le_bytes());
        }
        for (at, half) in [
            (0x36, 0xffff), // no check after so many mounts
            (0x38, MAGIC),
            (0x3a, 1), // clean
            (0x3c, 2), // after an error read-only
            (0x58, INODE as u16),
            (0x5a, group as u16),
            (0x15c, 32),
            (0x15e, 32),
        ] {
            put(&mut bytes, at, &u16::to_le_bytes(half));
        }
        put(&mut bytes, 0x68, uuid);
        put(&mut bytes, 0xec, seed);
        // Names are hashed by half MD4; a copy of the journal's inode follows below.
        put(&mut bytes, 0xfc, &[1, 1]);
        put(
            &mut bytes,
            0x10c,
            journal.get(0x28..0x64).unwrap_or_default(),
        );
        put(
            &mut bytes,
            0x10c + 64,
            journal.get(4..8).unwrap_or_default(),
        );
        bytes
    }
}

/// An inode with `links` links and the blocks `(first, count)` (Documentation/filesystems/ext4/inodes.rst).
fn inode(mode: u16, links: u16, blocks: (u64, u64), now: u32) -> [u8; INODE as usize] {
    const EXTENTS: u64 = 0x80000;
    let mut bytes = [0; INODE as usize];
    let (first, count) = blocks;
    for (at, word) in [
        (0x4, count * BLOCK),
        (0x8, now.into()),
        (0xc, now.into()),
        (0x10, now.into()),
        (0x1c, count * BLOCK / 512),
        (0x20, EXTENTS),
        (0x3c, first),
        (0x90, now.into()),
    ] {
        put(&mut bytes, at, &(word as u32).to_le_bytes());
    }
    for (at, half) in [
        (0x0, mode),
        (0x1a, links),
        (0x28, 0xf30a), // extents: one of at most four, no level below
        (0x2a, 1),
        (0x2c, 4),
        (0x38, count as u16),
        (0x80, 32), // bytes beyond the first 128 that are used
    ] {
        put(&mut bytes, at, &u16::to_le_bytes(half));
    }
    bytes
}

/// The block of a folder with `.` and `..`, both itself.
fn root_folder() -> Block {
    const FOLDER: u8 = 2;
    let mut block = Block::default();
    for (at, len, name) in [(0, 12, &b"."[..]), (12, BLOCK as u16 - 12, b"..")] {
        block.put(at, &(ROOT as u32).to_le_bytes());
        block.put(at + 4, &u16::to_le_bytes(len));
        block.put(at + 6, &[name.len() as u8, FOLDER]);
        block.put(at + 8, name);
    }
    block
}

/// CRC-16 with the polynomial 0x8005 (lib/crc16.c), from all bits set.
fn crc16<'a>(bytes: impl Iterator<Item = &'a u8>) -> u16 {
    bytes.fold(0xffff, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte), |sum, _| match sum & 1 {
            0 => sum >> 1,
            _ => sum >> 1 ^ 0xa001,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    /// The output of a program of e2fsprogs on `file`, which must approve of it; `None` without them.
    fn e2fsprogs(program: &str, flags: &str, file: &tempfile::NamedTempFile) -> Option<String> {
        let mut command = Command::new(program);
        command
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .stdin(Stdio::null());
        let output = match command.arg(flags).arg(file.path()).output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                eprintln!("left out: {program} is not there");
                return None;
            }
            output => output.expect("it runs"),
        };
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(output.status.success(), "{text}");
        Some(text)
    }

    fn formatted(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        format(file.as_file(), bytes).expect("made");
        file
    }

    #[test]
    fn e2fsck_finds_nothing_in_file_systems_of_all_sizes() {
        const GROUP: u64 = BLOCKS_PER_GROUP * BLOCK;
        for bytes in [
            8 << 20,
            (8 << 20) + 5000,
            100 << 20,
            GROUP - BLOCK,
            GROUP,
            GROUP + BLOCK,
            // The last group has just no room, and just room.
            GROUP + 100 * BLOCK,
            GROUP + 700 * BLOCK,
            GROUP + GROUP / 2,
            2 << 30,
            10 << 30,
            64 << 30,
        ] {
            let file = formatted(bytes);
            let about = look(file.as_file()).expect("an ext4");
            assert!(
                about.bytes <= bytes && bytes - about.bytes < 4 << 20,
                "{bytes}"
            );
            assert!(!about.recover && about.created > 1_600_000_000);
            if let Some(text) = e2fsprogs("e2fsck", "-fn", &file) {
                assert!(
                    text.contains(": 10/") && !text.contains('?'),
                    "{bytes}: {text}"
                );
            }
        }
    }

    #[test]
    fn dumpe2fs_reads_what_was_written() {
        let file = formatted(1 << 30);
        let Some(text) = e2fsprogs("dumpe2fs", "-f", &file) else {
            return;
        };
        for line in [
            "Filesystem state:         clean",
            "Block count:              262144",
            "Inode count:              65536",
            "Free inodes:              65526",
            "Journal inode:            8",
            "Total journal size:       32M",
            "Errors behavior:          Remount read-only",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(
            text.contains("BLOCK_UNINIT") && !text.contains("INVALID"),
            "{text}"
        );
    }

    #[test]
    fn the_largest_takes_little_room() {
        // Less than 16 TiB is the most that a file of an ext4 of the host has.
        for (bytes, room) in [(1 << 40, 16 << 20), (15 << 40, 256 << 20)] {
            let file = formatted(bytes);
            let about = file.as_file().metadata().expect("a file");
            assert!(about.blocks() * 512 < room, "{} blocks", about.blocks());
            assert!(look(file.as_file()).expect("an ext4").bytes <= bytes);
        }
    }

    #[test]
    fn what_is_no_file_system_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert!(matches!(look(file.as_file()), Err(Ext4Error::Magic)));
        file.as_file().set_len(1 << 20).expect("longer");
        assert!(matches!(look(file.as_file()), Err(Ext4Error::Magic)));
        let file = formatted(8 << 20);
        file.as_file().set_len(4 << 20).expect("shorter");
        assert!(matches!(look(file.as_file()), Err(Ext4Error::Cut { .. })));
    }

    proptest! {
        #[test]
        fn everything_lies_apart_and_inside(bytes in SIZES) {
            let layout = Layout::new(bytes);
            prop_assert!(layout.blocks * BLOCK <= bytes);
            for group in [0, 1, layout.groups / 2, layout.groups - 1] {
                prop_assert!(layout.used(group) <= layout.len(group));
            }
            prop_assert!(layout.groups * layout.inodes_per_group <= u64::from(u32::MAX));
        }
    }
}
