//! Disks in qcow2 images: correct ones, alone and over a base, whose content is known before and after
//! the guest's requests; and damaged ones.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use hull::devices::virtio::block::{Range, Request};
use hull::disk::{Config, Disk};
use hull::memory::GuestMemory;
use hull::memory::transfer::Segment;
use vm_memory::{Bytes, GuestAddress};

const SECTOR: u64 = 512;
/// Most bytes of a request.
const MAX_BYTES: u64 = 64 << 10;
/// Most clusters of a disk, and most bytes.
const MAX_CLUSTERS: usize = 96;
const MAX_SIZE: usize = 96 << 10;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// An image, the requests to it, and damage.
#[derive(Arbitrary, Debug)]
pub struct Input {
    top: Layer,
    base: Option<Base>,
    read_only: bool,
    overlay: bool,
    unsafe_cache: bool,
    damage: Vec<Damage>,
    /// Whether the user names a base although there is none, or none although there is one.
    wrong_base: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Base {
    Raw(u8, u8),
    Qcow2(Layer),
}

#[derive(Arbitrary, Debug)]
struct Layer {
    version_3: bool,
    cluster_bits: u8,
    refcount_order: u8,
    clusters: Vec<Cluster>,
    /// Sectors that the last cluster is short.
    short: u8,
    autoclear: bool,
}

/// What a cluster is.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Cluster {
    Unallocated,
    Zero,
    ZeroAllocated,
    Data(u8),
    Compressed(u8),
}

/// A number in the file that is changed.
#[derive(Arbitrary, Debug)]
enum Damage {
    Byte(u16, u8),
    /// A field of the header, to a small number or any.
    Header {
        at: u8,
        value: Number,
    },
    /// An entry of a table.
    Entry {
        table: u8,
        index: u8,
        value: Number,
    },
    Cut(u16),
}

#[derive(Arbitrary, Debug)]
enum Number {
    Any(u64),
    /// A multiple of the cluster's size, with bits set.
    Cluster {
        index: u8,
        flags: u8,
    },
    Power(u8),
}

#[derive(Arbitrary, Debug)]
enum Step {
    Read(u16, u8),
    Write {
        at: u16,
        sectors: u8,
        byte: u8,
        stable: bool,
    },
    Flush,
    Discard(u16, u8),
    Zero {
        at: u16,
        sectors: u8,
        unmap: bool,
    },
    Again,
}

/// What a byte of the disk is; `None` after it was discarded.
type Model = Vec<Option<u8>>;

/// An image and where its parts are.
struct Built {
    bytes: Vec<u8>,
    /// The L1 table, the refcount table, the first refcount block and the first L2 table.
    tables: [u64; 4],
    cluster: u64,
}

impl Layer {
    fn cluster(&self) -> usize {
        1 << (9 + self.cluster_bits % 5)
    }

    fn version(&self) -> u32 {
        if self.version_3 { 3 } else { 2 }
    }

    fn order(&self) -> u32 {
        if self.version_3 {
            u32::from(self.refcount_order % 7)
        } else {
            4
        }
    }

    fn clusters(&self) -> &[Cluster] {
        let most = MAX_CLUSTERS.min(MAX_SIZE / self.cluster());
        &self.clusters[..self.clusters.len().min(most)]
    }

    /// Size of the disk in bytes.
    fn size(&self) -> usize {
        let cluster = self.cluster();
        let whole = self.clusters().len() * cluster;
        whole.saturating_sub(usize::from(self.short) * 512 % cluster)
    }

    /// What the disk has, over `base`.
    fn model(&self, base: &[Option<u8>]) -> Model {
        let mut model = Vec::with_capacity(self.size() + self.cluster());
        for (index, kind) in self.clusters().iter().enumerate() {
            let start = model.len();
            match kind {
                Cluster::Unallocated => {
                    let below = base.get(start..).unwrap_or_default();
                    model.extend(&below[..below.len().min(self.cluster())]);
                    model.resize(start + self.cluster(), Some(0));
                }
                _ => model.extend(self.content(index).into_iter().map(Some)),
            }
        }
        model.truncate(self.size());
        model
    }

    fn build(&self, backing: Option<(&str, &str)>) -> Built {
        let cluster = self.cluster();
        let l2_entries = cluster / 8;
        let l2_count = self.clusters().len().div_ceil(l2_entries);
        // The header, the L1 table, L2 tables, then data; refcounts are behind all.
        let mut data = vec![0u8; (2 + l2_count) * cluster];
        for (index, kind) in self.clusters().iter().enumerate() {
            let content = self.content(index);
            let entry = match kind {
                Cluster::Unallocated => 0,
                Cluster::Zero if self.version_3 => 1,
                Cluster::Compressed(_) => {
                    match compress(&content).filter(|bytes| bytes.len() < cluster) {
                        Some(bytes) => {
                            let sectors = (bytes.len() as u64).div_ceil(SECTOR) - 1;
                            let shift = 62 - (cluster.trailing_zeros() - 8);
                            let entry = append(&mut data, &bytes, cluster) | sectors << shift;
                            entry | COMPRESSED
                        }
                        None => append(&mut data, &content, cluster) | COPIED,
                    }
                }
                Cluster::ZeroAllocated if self.version_3 => {
                    append(&mut data, &content, cluster) | COPIED | 1
                }
                _ => append(&mut data, &content, cluster) | COPIED,
            };
            let at = 2 * cluster + 8 * index;
            data[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        }
        for table in 0..l2_count {
            let entry = ((2 + table) * cluster) as u64 | COPIED;
            data[cluster + 8 * table..][..8].copy_from_slice(&entry.to_be_bytes());
        }
        let refcounts = self.append_refcounts(&mut data);
        self.write_header(&mut data, l2_count, refcounts, backing);
        Built {
            tables: [
                cluster as u64,
                refcounts,
                refcounts + cluster as u64,
                2 * cluster as u64,
            ],
            cluster: cluster as u64,
            bytes: data,
        }
    }

    /// What a cluster has that is not its base's.
    fn content(&self, index: usize) -> Vec<u8> {
        let len = self.cluster();
        match self.clusters()[index] {
            Cluster::Data(byte) | Cluster::Compressed(byte) => {
                let bytes = (0..251).map(|at| byte.wrapping_add(at)).cycle();
                bytes.take(len).collect()
            }
            // Version 2 has no clusters of zeroes: they are data.
            _ => vec![0; len],
        }
    }

    /// Append a refcount table of one cluster, and blocks that count all clusters once; returns its place.
    fn append_refcounts(&self, data: &mut Vec<u8>) -> u64 {
        let (cluster, bits) = (self.cluster(), 1usize << self.order());
        let per_block = cluster * 8 / bits;
        let used = data.len() / cluster;
        let blocks = (1..)
            .find(|blocks| blocks * per_block > used + blocks)
            .unwrap_or(1);
        let count = used + 1 + blocks;
        let at = data.len();
        data.resize(at + (1 + blocks) * cluster, 0);
        for block in 0..blocks {
            let place = at + (1 + block) * cluster;
            data[at + 8 * block..][..8].copy_from_slice(&(place as u64).to_be_bytes());
            for index in 0..per_block.min(count - (block * per_block).min(count)) {
                match bits {
                    // Of refcounts below a byte, the first is in the lowest bits.
                    1..8 => data[place + index * bits / 8] |= 1 << (index * bits % 8),
                    _ => data[place + (index + 1) * bits / 8 - 1] = 1,
                }
            }
        }
        at as u64
    }

    fn write_header(
        &self,
        data: &mut [u8],
        l1: usize,
        refcounts: u64,
        backing: Option<(&str, &str)>,
    ) {
        let cluster = self.cluster();
        let mut header = b"QFI\xfb".to_vec();
        header.extend(self.version().to_be_bytes());
        let mut tail = Vec::new();
        let (mut name_at, mut name_len) = (0u64, 0u32);
        if self.version_3 {
            tail.extend(0u64.to_be_bytes());
            tail.extend(0u64.to_be_bytes());
            tail.extend(u64::from(self.autoclear).to_be_bytes());
            tail.extend(self.order().to_be_bytes());
            tail.extend(104u32.to_be_bytes());
        }
        if let Some((name, format)) = backing {
            // The extension with the base's format.
            tail.extend(0xe279_2aca_u32.to_be_bytes());
            tail.extend((format.len() as u32).to_be_bytes());
            tail.extend(format.as_bytes());
            tail.resize(tail.len().next_multiple_of(8), 0);
            tail.extend([0; 8]);
            (name_at, name_len) = (72 + tail.len() as u64, name.len() as u32);
            tail.extend(name.as_bytes());
        }
        header.extend(name_at.to_be_bytes());
        header.extend(name_len.to_be_bytes());
        header.extend(cluster.trailing_zeros().to_be_bytes());
        header.extend((self.size() as u64).to_be_bytes());
        header.extend(0u32.to_be_bytes());
        header.extend((l1 as u32).to_be_bytes());
        header.extend((cluster as u64).to_be_bytes());
        header.extend(refcounts.to_be_bytes());
        header.extend(1u32.to_be_bytes());
        header.extend(0u32.to_be_bytes());
        header.extend(0u64.to_be_bytes());
        assert_eq!(header.len(), 72);
        header.extend(tail);
        data[..header.len()].copy_from_slice(&header);
    }
}

/// Append whole clusters; returns where they are.
fn append(data: &mut Vec<u8>, bytes: &[u8], cluster: usize) -> u64 {
    let at = data.len();
    data.extend(bytes);
    data.resize(data.len().next_multiple_of(cluster), 0);
    at as u64
}

fn compress(content: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).ok()?;
    encoder.finish().ok()
}

impl Damage {
    fn apply(&self, built: &mut Built) {
        let cluster = built.cluster;
        let put = |bytes: &mut Vec<u8>, at: usize, value: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
        };
        let number = |value: &Number| match value {
            Number::Any(value) => *value,
            Number::Cluster { index, flags } => {
                (u64::from(*index) * cluster) | (u64::from(*flags) << 56)
            }
            Number::Power(bit) => 1 << (bit % 64),
        };
        let bytes = &mut built.bytes;
        match self {
            Self::Byte(at, byte) => put(bytes, usize::from(*at) % bytes.len().max(1), &[*byte]),
            Self::Header { at, value } => {
                // Fields of 4 or 8 bytes.
                let at = usize::from(at % 28) * 4;
                let value = number(value);
                match at {
                    8 | 24 | 40 | 48 | 64 | 72 | 80 | 88 => put(bytes, at, &value.to_be_bytes()),
                    _ => put(bytes, at, &(value as u32).to_be_bytes()),
                }
            }
            Self::Entry {
                table,
                index,
                value,
            } => {
                let table = built.tables[usize::from(table % 4)] as usize;
                put(
                    bytes,
                    table + 8 * usize::from(*index),
                    &number(value).to_be_bytes(),
                );
            }
            Self::Cut(len) => bytes.truncate((*len).into()),
        }
    }
}

/// The files of all inputs: an image and its base.
fn files() -> &'static [PathBuf; 2] {
    static FILES: OnceLock<[PathBuf; 2]> = OnceLock::new();
    FILES.get_or_init(|| {
        let folder = crate::folder("qcow2");
        ["top", "base"].map(|name| folder.join(name))
    })
}

/// Use the image, and check what it holds.
pub fn check(input: &Input) {
    let [top, base] = files();
    let (base_bytes, below, format) = match &input.base {
        None => (Vec::new(), Vec::new(), None),
        Some(Base::Raw(sectors, byte)) => {
            let bytes = vec![*byte; (usize::from(*sectors) + 1) * 512];
            let model = bytes.iter().map(|byte| Some(*byte)).collect();
            (bytes, model, Some("raw"))
        }
        Some(Base::Qcow2(layer)) => (layer.build(None).bytes, layer.model(&[]), Some("qcow2")),
    };
    fs::write(base, &base_bytes).unwrap();
    let backing = format.map(|format| ("base", format));
    let mut built = input.top.build(backing);
    let whole = built.bytes.clone();
    for damage in input.damage.iter().take(16) {
        damage.apply(&mut built);
    }
    let is_whole = built.bytes == whole;
    fs::write(top, &built.bytes).unwrap();
    let has_base = format.is_some() != input.wrong_base;
    let config = [
        (true, top.display().to_string()),
        (true, ",format=qcow2".into()),
        (input.read_only && !input.overlay, ",ro".into()),
        (input.overlay, ",overlay".into()),
        (input.unsafe_cache && !input.overlay, ",cache=unsafe".into()),
        (has_base, format!(",backing={}", base.display())),
    ];
    let config: String = config
        .into_iter()
        .filter(|(on, _)| *on)
        .map(|(_, text)| text)
        .collect();
    let config: Config = config.parse().unwrap();
    let is_right = is_whole && !input.wrong_base && input.top.size() > 0;
    let mut user = User {
        memory: GuestMemory::from_ranges(&[(GuestAddress(0), MAX_BYTES as usize)]).unwrap(),
        writable: config.overlay || !config.read_only,
        // Without one there is nothing to compare with.
        model: is_right.then(|| input.top.model(&below)),
        config,
    };
    user.run(&input.steps, is_right && base_is_right(input));
    assert_eq!(fs::read(base).unwrap(), base_bytes, "the base has changed");
    if input.read_only || input.overlay {
        assert!(
            fs::read(top).unwrap() == built.bytes,
            "an image that is read has changed"
        );
    } else if let Some(model) = &user.model {
        read_back(&File::open(top).unwrap(), &input.top, model, &below);
    }
}

fn base_is_right(input: &Input) -> bool {
    match &input.base {
        Some(Base::Qcow2(layer)) => layer.size() > 0,
        _ => true,
    }
}

/// A guest with one disk.
struct User {
    memory: GuestMemory,
    config: Config,
    writable: bool,
    model: Option<Model>,
}

impl User {
    fn run(&mut self, steps: &[Step], must_open: bool) {
        let open = |config: &Config| match Disk::open(config) {
            Ok(disk) => Some(disk),
            Err(error) if must_open => panic!("{error}"),
            Err(_) => None,
        };
        let Some(mut disk) = open(&self.config) else {
            self.model = None;
            return;
        };
        if let Some(model) = &self.model {
            assert_eq!(disk.geometry.sectors * SECTOR, model.len() as u64);
        }
        for step in steps.iter().take(32) {
            if let Step::Again = step {
                let written = disk.write_back();
                assert!(written.is_ok() || self.model.is_none(), "{written:?}");
                // An overlay begins anew.
                if self.config.overlay {
                    continue;
                }
                drop(disk);
                match open(&self.config) {
                    Some(again) => disk = again,
                    None => return,
                }
            }
            self.step(&disk, step);
        }
        let written = disk.write_back();
        assert!(written.is_ok() || self.model.is_none(), "{written:?}");
    }

    /// Part of the disk, near its beginning or its end.
    fn part(disk: &Disk, at: u16, sectors: u8) -> (u64, u64) {
        let size = disk.geometry.sectors;
        let at = u64::from(at);
        let at = if at >= 0xff00 {
            size.saturating_sub(0x10000 - at)
        } else {
            at % size.max(1)
        };
        let sectors = (u64::from(sectors) % 128 + 1).min(size - at);
        (at * SECTOR, sectors * SECTOR)
    }

    fn step(&mut self, disk: &Disk, step: &Step) {
        // In two parts, as guests have them.
        let segments = |len: u64| {
            let first = len.min(SECTOR);
            let parts = [(0, first), (first, len - first)].into_iter();
            let segment = |(at, len): (u64, u64)| Segment {
                addr: GuestAddress(at),
                len: len as u32,
            };
            parts.filter(|(_, len)| *len > 0).map(segment).collect()
        };
        let range = |(at, len), unmap| vec![Range { at, len, unmap }];
        let (request, part) = match step {
            Step::Again => return,
            Step::Flush => (Request::Flush, (0, 0)),
            Step::Read(at, sectors) => {
                let part = Self::part(disk, *at, *sectors);
                let (at, to) = (part.0, segments(part.1));
                (Request::Read { at, to }, part)
            }
            _ if !self.writable => return,
            Step::Write {
                at,
                sectors,
                byte,
                stable,
            } => {
                let part = Self::part(disk, *at, *sectors);
                let bytes: Vec<u8> = (0..part.1)
                    .map(|n| byte.wrapping_add((n / 7) as u8))
                    .collect();
                self.memory.write_slice(&bytes, GuestAddress(0)).unwrap();
                let (at, from, stable) = (part.0, segments(part.1), *stable);
                (Request::Write { at, from, stable }, part)
            }
            Step::Discard(at, sectors) => {
                let part = Self::part(disk, *at, *sectors);
                (Request::Discard(range(part, false)), part)
            }
            Step::Zero { at, sectors, unmap } => {
                let part = Self::part(disk, *at, *sectors);
                let ranges = range(part, *unmap);
                (
                    Request::WriteZeroes {
                        ranges,
                        stable: false,
                    },
                    part,
                )
            }
        };
        let served = disk.serve(&self.memory, &[request]);
        let [served] = &served[..] else {
            panic!("{} results", served.len())
        };
        let Some(model) = &mut self.model else {
            return;
        };
        assert!(served.is_ok(), "{step:?}: {served:?}");
        let place = &mut model[part.0 as usize..(part.0 + part.1) as usize];
        let mut bytes = vec![0; part.1 as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        match step {
            Step::Read(..) => agree(place, &bytes, part.0),
            Step::Write { .. } => place
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, byte)| *to = Some(byte)),
            Step::Discard(..) => place.fill(None),
            Step::Zero { .. } => place.fill(Some(0)),
            Step::Flush | Step::Again => {}
        }
    }
}

/// The bytes found from byte `at` of a disk on are those of the model.
fn agree(model: &[Option<u8>], found: &[u8], at: u64) {
    let wrong = model
        .iter()
        .zip(found)
        .position(|(model, found)| model.is_some_and(|byte| byte != *found));
    if let Some(wrong) = wrong {
        panic!(
            "byte {} is {}, not {:?}",
            at + wrong as u64,
            found[wrong],
            model[wrong]
        );
    }
}

/// Read the image without hull: its content is that of `model`, and its refcounts are right.
fn read_back(file: &File, layer: &Layer, model: &[Option<u8>], below: &[Option<u8>]) {
    let mut image = Vec::new();
    std::io::Read::read_to_end(&mut &*file, &mut image).unwrap();
    let word = |at: u64| {
        let mut bytes = [0; 8];
        let _ = file.read_at(&mut bytes, at);
        u64::from_be_bytes(bytes)
    };
    let cluster = layer.cluster() as u64;
    let offset = |entry: u64| entry & 0x00ff_ffff_ffff_fe00;
    let mut uses = vec![0u64; image.len().div_ceil(cluster as usize)];
    let mut used = |at: u64, len: u64| {
        for index in at / cluster..(at + len).div_ceil(cluster) {
            *uses.get_mut(index as usize).expect("within the file") += 1;
        }
    };
    let (l1, l1_len) = (word(40), word(32) & 0xffff_ffff);
    let (table, table_len) = (word(48), word(56) >> 32);
    used(0, 1);
    used(l1, l1_len.max(1) * 8);
    used(table, table_len * cluster);
    for (index, place) in model.chunks(cluster as usize).enumerate() {
        let start = index as u64 * cluster;
        let entry = match offset(word(l1 + 8 * (start / cluster / (cluster / 8)))) {
            0 => 0,
            l2 => {
                if (start / cluster).is_multiple_of(cluster / 8) {
                    used(l2, cluster);
                }
                word(l2 + 8 * (start / cluster % (cluster / 8)))
            }
        };
        let from = |at: u64, len: u64| {
            let mut bytes = vec![0; len as usize];
            let _ = file.read_at(&mut bytes, at);
            bytes
        };
        if entry & COMPRESSED != 0 {
            let shift = 62 - (cluster.trailing_zeros() - 8);
            let at = entry & ((1 << shift) - 1);
            used(
                at,
                ((entry & !COMPRESSED) >> shift) * SECTOR + SECTOR - at % SECTOR,
            );
            // It was not written since it was made.
            agree(place, &layer.content(index), start);
            continue;
        }
        if offset(entry) != 0 {
            used(offset(entry), cluster);
        }
        match (entry & 1, offset(entry)) {
            (1, _) => agree(place, &vec![0; place.len()], start),
            (_, 0) => {
                let base = below.get(start as usize..).unwrap_or_default();
                let base = base
                    .iter()
                    .map(|byte| byte.unwrap_or(0))
                    .chain(std::iter::repeat(0));
                agree(place, &base.take(place.len()).collect::<Vec<u8>>(), start);
            }
            (_, at) => agree(place, &from(at, cluster), start),
        }
    }
    let bits = 1u64 << layer.order();
    let per_block = cluster * 8 / bits;
    for index in 0..table_len * cluster / 8 {
        if word(table + 8 * index) != 0 {
            used(word(table + 8 * index), cluster);
        }
    }
    for (index, uses) in uses.iter().enumerate() {
        let index = index as u64;
        let block = word(table + 8 * (index / per_block));
        let bit = index % per_block * bits;
        let value = match bits {
            1..8 => word(block + bit / 8) >> 56 >> (bit % 8) & ((1 << bits) - 1),
            64 => word(block + bit / 8),
            _ => word(block + bit / 8) >> (64 - bits),
        };
        let value = if block == 0 { 0 } else { value };
        assert!(
            value >= *uses,
            "cluster {index} is used {uses} times and counted {value} times"
        );
    }
}
