//! Writes the index of an image: an EROFS without the files' data, which stays in the layers' archives.
//!
//! The disk of an image is the index and then the archives. Data in an archive begins at a multiple of 512
//! bytes, which is the block size here, so that an inode points straight at it.
//!
//! ```text
//!  0       1024         1152
//!  | zeroes | superblock | root's inode | names of the root | inodes of its files | names of .. | .. | sparse files
//! ```
//! The names of a folder and the inodes of what is in it lie together: a lookup reads one place. Reference:
//! Linux, fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use zerocopy::{Immutable, IntoBytes};

use super::tar::{BLOCK, Data, Meta, Region};
use super::tree::{Node, ROOT, Tree, What};

const BLOCK_BITS: u8 = 9;
const MAGIC: u32 = 0xe0f5_e1e2;
const SUPER: u64 = 1024;
/// Bytes of an extended inode, and the unit of inode numbers.
const INODE: u64 = 64;
const SLOT: u64 = 32;
/// Bytes of an entry of a folder without its name.
const ENTRY: usize = 12;
/// Bytes before the extended attributes of an inode.
const XATTRS: usize = 12;
const EXTENDED: u16 = 1;
const PLAIN: u16 = 0;
const INLINE: u16 = 2;
/// The least size of the disk: the kernel reads this much for the superblock.
const LEAST: u64 = 4096;
/// Most bytes of the index without sparse files.
const MAX_INDEX: u64 = 2 << 30;
/// Bytes copied at once.
const CHUNK: usize = 1 << 20;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct SuperBlock {
    magic: u32,
    checksum: u32,
    feature_compat: u32,
    block_bits: u8,
    extra_slots: u8,
    root: u16,
    inodes: u64,
    build_time: u64,
    build_time_ns: u32,
    blocks: u32,
    meta_block: u32,
    xattr_block: u32,
    uuid: [u8; 16],
    volume_name: [u8; 16],
    feature_incompat: u32,
    rest: [u8; 44],
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Inode {
    format: u16,
    xattr_count: u16,
    mode: u16,
    reserved: u16,
    size: u64,
    /// The first block of the data, or the number of a device.
    value: u32,
    number: u32,
    uid: u32,
    gid: u32,
    mtime: u64,
    mtime_ns: u32,
    links: u32,
    reserved2: [u8; 16],
}

/// Where everything lies.
struct Plan {
    /// Byte of each inode in the index, by number of the file; 0 if it is not in the tree any more.
    inodes: Vec<u64>,
    /// Number of names of each file, or of links to a folder.
    links: Vec<u32>,
    /// Folders in the order in which they lie, with their names' bytes and the folder above.
    folders: Vec<(usize, u64, usize)>,
    /// Files in that order.
    files: Vec<usize>,
    /// The first block of symbolic links that do not lie behind their inode.
    outside: HashMap<usize, u64>,
    /// Sparse files and their first bytes.
    sparse: Vec<(usize, u64)>,
    /// Bytes of the index without sparse files, and with them.
    meta: u64,
    len: u64,
}

/// Write the index of `tree` to `out`; `layers` are the archives, in the order in which they follow it.
///
/// # Errors
/// The image is too large, or a file cannot be read or written.
pub fn write(tree: &Tree, layers: &[File], out: &File) -> io::Result<()> {
    let plan = plan(tree)?;
    let mut starts = Vec::with_capacity(layers.len());
    let mut end = plan.len;
    for layer in layers {
        starts.push(end);
        end += layer.metadata()?.len().next_multiple_of(BLOCK);
    }
    // Block numbers have 32 bits.
    let blocks = u32::try_from(end / BLOCK).map_err(|_| too_large())?;
    let mut bytes = vec![0; plan.meta as usize];
    let mut index = Index {
        tree,
        plan: &plan,
        starts: &starts,
        bytes: &mut bytes,
    };
    index.super_block(blocks);
    for number in &plan.files {
        index.inode(*number)?;
    }
    for (number, at, above) in &plan.folders {
        index.names(*number, *at, *above);
    }
    out.set_len(plan.len)?;
    out.write_all_at(&bytes, 0)?;
    for (number, at) in &plan.sparse {
        if let What::File(layer, data) = &tree.node(*number).what {
            let from = layers.get(*layer).ok_or(io::ErrorKind::NotFound)?;
            copy(from, data.regions.as_deref().unwrap_or_default(), out, *at)?;
        }
    }
    Ok(())
}

fn too_large() -> io::Error {
    io::Error::other("the image is larger than 2 TiB, or has too many names and attributes")
}

/// Copy the regions of a sparse file whose first byte is to be at `at`.
fn copy(from: &File, regions: &[Region], out: &File, at: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    for region in regions {
        let mut done = 0;
        while done < region.len {
            let now = (region.len - done).min(CHUNK as u64) as usize;
            let part = &mut buffer[..now];
            from.read_exact_at(part, region.start + done)?;
            out.write_all_at(part, at + region.at + done)?;
            done += now as u64;
        }
    }
    Ok(())
}

fn plan(tree: &Tree) -> io::Result<Plan> {
    let mut plan = Plan {
        inodes: vec![0; tree.len()],
        links: vec![0; tree.len()],
        folders: Vec::new(),
        files: Vec::new(),
        outside: HashMap::new(),
        sparse: Vec::new(),
        meta: SUPER + size_of::<SuperBlock>() as u64,
        len: 0,
    };
    let mut left = VecDeque::from([(ROOT, ROOT)]);
    plan.place(tree, ROOT);
    plan.links[ROOT] = 2;
    while let Some((number, above)) = left.pop_front() {
        let What::Folder(children) = &tree.node(number).what else {
            continue;
        };
        plan.meta = plan.meta.next_multiple_of(BLOCK);
        plan.folders.push((number, plan.meta, above));
        plan.meta += names_len(children.keys().map(Vec::as_slice)).next_multiple_of(BLOCK);
        for child in children.values() {
            if plan.inodes[*child] == 0 {
                plan.place(tree, *child);
            }
            plan.links[*child] += 1;
            if matches!(tree.node(*child).what, What::Folder(_)) {
                // Its own name `.`, and the `..` in it.
                plan.links[*child] += 1;
                plan.links[number] += 1;
                left.push_back((*child, number));
            }
        }
        if plan.meta > MAX_INDEX {
            return Err(too_large());
        }
    }
    plan.meta = plan.meta.next_multiple_of(BLOCK).max(LEAST);
    plan.len = plan.meta;
    for number in plan.files.clone() {
        if let What::File(
            _,
            data @ Data {
                regions: Some(_), ..
            },
        ) = &tree.node(number).what
        {
            plan.sparse.push((number, plan.len));
            let end = data.size.checked_add(plan.len + BLOCK);
            let end = end.filter(|end| *end < 1 << 41).ok_or_else(too_large)?;
            plan.len = (end - BLOCK).next_multiple_of(BLOCK);
        }
    }
    Ok(plan)
}

impl Plan {
    /// Give a file's inode its place.
    fn place(&mut self, tree: &Tree, number: usize) {
        let node = tree.node(number);
        let head = INODE + xattrs_len(&node.meta) as u64;
        let mut at = self.meta.next_multiple_of(SLOT);
        let mut len = head;
        if let What::Symlink(text) = &node.what {
            // Behind the inode it must not cross the end of a block.
            let text = text.len() as u64;
            let fits = |at: u64| (at + head) % BLOCK + text <= BLOCK;
            if !fits(at) {
                at = at.next_multiple_of(BLOCK);
            }
            if fits(at) && text < BLOCK {
                len += text;
            } else {
                let block = (at + head).next_multiple_of(BLOCK);
                self.outside.insert(number, block);
                len = block + text.next_multiple_of(BLOCK) - at;
            }
        }
        self.inodes[number] = at;
        self.files.push(number);
        self.meta = at + len;
    }

    /// The number by which the kernel knows a file.
    fn nid(&self, number: usize) -> u64 {
        self.inodes[number] / SLOT
    }
}

struct Index<'a> {
    tree: &'a Tree,
    plan: &'a Plan,
    /// The first byte of each layer on the disk.
    starts: &'a [u64],
    bytes: &'a mut [u8],
}

impl Index<'_> {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let at = at as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn super_block(&mut self, blocks: u32) {
        let super_block = SuperBlock {
            magic: MAGIC,
            checksum: 0,
            feature_compat: 0,
            block_bits: BLOCK_BITS,
            extra_slots: 0,
            root: self.plan.nid(ROOT) as u16,
            inodes: self.plan.files.len() as u64,
            build_time: 0,
            build_time_ns: 0,
            blocks,
            meta_block: 0,
            xattr_block: 0,
            uuid: [0; 16],
            volume_name: [0; 16],
            feature_incompat: 0,
            rest: [0; 44],
        };
        self.put(SUPER, super_block.as_bytes());
    }

    fn inode(&mut self, number: usize) -> io::Result<()> {
        let node = self.tree.node(number);
        let at = self.plan.inodes[number];
        let head = at + INODE;
        let xattrs = xattrs(&node.meta);
        self.put(head, &xattrs);
        let (mut layout, mut size, mut value) = (PLAIN, 0, 0);
        match &node.what {
            What::Folder(children) => {
                size = names_len(children.keys().map(Vec::as_slice));
                value = self.names_at(number) / BLOCK;
            }
            What::File(layer, data) => {
                size = data.size;
                value = self.data(number, *layer, data)? / BLOCK;
            }
            What::Symlink(text) => {
                size = text.len() as u64;
                let outside = self.plan.outside.get(&number).copied();
                self.put(outside.unwrap_or(head + xattrs.len() as u64), text);
                match outside {
                    Some(block) => value = block / BLOCK,
                    None => layout = INLINE,
                }
            }
            What::Character(major, minor) | What::Block(major, minor) => {
                value = u64::from(device(*major, *minor));
            }
            What::Fifo => {}
        }
        let inode = Inode {
            format: EXTENDED | layout << 1,
            xattr_count: match xattrs.len() {
                0 => 0,
                len => ((len - XATTRS) / 4 + 1) as u16,
            },
            mode: mode(node),
            reserved: 0,
            size,
            value: u32::try_from(value).map_err(|_| too_large())?,
            number: number as u32 + 1,
            uid: node.meta.uid,
            gid: node.meta.gid,
            mtime: node.meta.mtime.0 as u64,
            mtime_ns: node.meta.mtime.1,
            links: self.plan.links[number],
            reserved2: [0; 16],
        };
        self.put(at, inode.as_bytes());
        Ok(())
    }

    /// The first byte of a file's data on the disk.
    fn data(&self, number: usize, layer: usize, data: &Data) -> io::Result<u64> {
        if data.regions.is_some() {
            // In the order of their inodes.
            let place = |it: usize| self.plan.inodes[it];
            let sparse = &self.plan.sparse;
            let found = sparse.binary_search_by_key(&place(number), |it| place(it.0));
            return Ok(found.map_or(0, |found| sparse[found].1));
        }
        let start = self.starts.get(layer).ok_or(io::ErrorKind::NotFound)?;
        Ok(start + data.start)
    }

    /// The first byte of a folder's names.
    fn names_at(&self, number: usize) -> u64 {
        let found = self
            .plan
            .folders
            .binary_search_by_key(&self.plan.inodes[number], |it| self.plan.inodes[it.0]);
        found.map_or(0, |found| self.plan.folders[found].1)
    }

    /// The names of a folder: blocks of entries, and behind them their names.
    fn names(&mut self, number: usize, at: u64, above: usize) {
        let What::Folder(children) = &self.tree.node(number).what else {
            return;
        };
        let all = with_dots(
            children.iter().map(|(name, child)| (&**name, *child)),
            number,
            above,
        );
        let (mut at, mut rest) = (at, &all[..]);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(in_block(rest.iter().map(|(name, _)| name.len())).0);
            let mut name_at = ENTRY * now.len();
            for (index, (name, child)) in now.iter().enumerate() {
                let mut entry = [0; ENTRY];
                entry[..8].copy_from_slice(&self.plan.nid(*child).to_le_bytes());
                entry[8..10].copy_from_slice(&(name_at as u16).to_le_bytes());
                entry[10] = kind(self.tree.node(*child));
                self.put(at + (ENTRY * index) as u64, &entry);
                self.put(at + name_at as u64, name);
                name_at += name.len();
            }
            (at, rest) = (at + BLOCK, later);
        }
    }
}

/// The names of a folder in order, with `.` and `..`, and the numbers of what they name.
fn with_dots<'a, T>(
    children: impl Iterator<Item = (&'a [u8], T)>,
    own: T,
    above: T,
) -> Vec<(&'a [u8], T)> {
    let dots = [(&b"."[..], own), (&b".."[..], above)];
    let mut all: Vec<_> = dots.into_iter().chain(children).collect();
    all.sort_by_key(|(name, _)| *name);
    all
}

/// How many of the next names fit into a block, and the bytes that they take.
fn in_block(lengths: impl Iterator<Item = usize>) -> (usize, usize) {
    let (mut count, mut used) = (0, 0);
    for len in lengths {
        if used + ENTRY + len > BLOCK as usize {
            break;
        }
        used += ENTRY + len;
        count += 1;
    }
    (count, used)
}

/// Bytes of a folder with these names.
fn names_len<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let all = with_dots(names.map(|name| (name, ())), (), ());
    let (mut rest, mut len) = (&all[..], 0);
    loop {
        let (count, used) = in_block(rest.iter().map(|(name, ())| name.len()));
        rest = &rest[count..];
        if rest.is_empty() {
            return len + used as u64;
        }
        len += BLOCK;
    }
}

/// The prefix of an attribute's name as a number, and the rest (`EROFS_XATTR_INDEX_*`); `None` for one that
/// no Linux file has.
fn prefix(name: &[u8]) -> Option<(u8, &[u8])> {
    const PREFIXES: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
    match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        _ => {}
    }
    PREFIXES
        .iter()
        .find_map(|(index, prefix)| Some((*index, name.strip_prefix(*prefix)?)))
}

/// The extended attributes of a file as they lie behind its inode; nothing if it has none.
fn xattrs(meta: &Meta) -> Vec<u8> {
    let mut bytes = vec![0; XATTRS];
    for (name, value) in &meta.xattrs {
        let Some((index, rest)) = prefix(name) else {
            continue;
        };
        bytes.extend([rest.len() as u8, index]);
        bytes.extend((value.len() as u16).to_le_bytes());
        bytes.extend(rest);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    // The count of 4-byte units has 16 bits.
    if bytes.len() == XATTRS || bytes.len() > 4 * usize::from(u16::MAX) {
        bytes.clear();
    }
    bytes
}

fn xattrs_len(meta: &Meta) -> usize {
    match meta.xattrs.is_empty() {
        true => 0,
        false => xattrs(meta).len(),
    }
}

/// As the kernel has it (`new_encode_dev`, include/linux/kdev_t.h).
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// Kind and permissions (inode(7)).
fn mode(node: &Node) -> u16 {
    let kind = match node.what {
        What::Fifo => 0o010_000,
        What::Character(..) => 0o020_000,
        What::Folder(_) => 0o040_000,
        What::Block(..) => 0o060_000,
        What::File(..) => 0o100_000,
        What::Symlink(_) => 0o120_000,
    };
    kind | node.meta.mode
}

/// The kind in an entry of a folder (`FT_*`, include/linux/fs_types.h).
fn kind(node: &Node) -> u8 {
    match node.what {
        What::File(..) => 1,
        What::Folder(_) => 2,
        What::Character(..) => 3,
        What::Block(..) => 4,
        What::Fifo => 5,
        What::Symlink(_) => 7,
    }
}
