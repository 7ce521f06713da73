//! The files of a snapshot, as far as they are read without KVM: whole ones, ones with wrong values, and
//! damaged ones.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use hull::boot::{Entry, Format, Loaded, Mode, Via};
use hull::config::{Console, Kernel, Machine};
use hull::devices::state::encode;
use hull::kvm::save::{SavedChips, SavedVcpu};
use hull::snapshot::{SnapshotError, VERSION, merge, open_layer};
use hull::vmm::snapshot::Saved;
use hull::vmm::snapshot::shape::{
    AGENT, CHIPS, DEVICES, SHAPE, SavedDevice, SavedLink, Shape, VCPUS,
};

use crate::patch::Patches;

const PAGE: u64 = 4096;
const MEMO: [u8; 4] = *b"MEMO";
const TAGS: [[u8; 4]; 6] = [MEMO, SHAPE, VCPUS, CHIPS, DEVICES, AGENT];
/// Most bytes of memory whose content is looked at.
const MAX_MEMORY: u64 = 256 << 10;

/// A snapshot, and what is wrong with it.
#[derive(Arbitrary, Debug)]
pub struct Input {
    memo: Memo,
    cpus: u8,
    devices: Vec<(bool, u64, Vec<u8>)>,
    pipe: Option<u8>,
    /// Where the kernel and the initial RAM disk lie: beginning and length, or end and length.
    loaded: Option<[(u32, u16, bool); 2]>,
    content: Vec<u8>,
    /// What the file of the pages says that a guest writes first.
    written: Option<Vec<(u8, u8)>>,
    /// A diff to it, for a merge.
    diff: Option<Diff>,
    wrongs: Vec<Wrong>,
}

/// A diff: mostly it follows, and has the same regions.
#[derive(Arbitrary, Debug)]
struct Diff {
    memo: Memo,
    parent: Option<Option<[u8; 2]>>,
    same_regions: bool,
    content: Vec<u8>,
}

/// Something that is wrong with a snapshot.
#[derive(Arbitrary, Debug)]
enum Wrong {
    /// vCPUs whose state is there beyond those that it has.
    Vcpus(i8),
    /// Damage to a section that is stored with its right CRC.
    Within(u8, Patches, u8),
    /// Bytes behind a section's.
    Behind(u8, Vec<u8>),
    Version(u32),
    Count(u32),
    /// Instead of a section's tag, length or CRC.
    Tag(u8, u8),
    Length(u8, u64),
    Crc(u8, u32),
    LeftOut(u8),
    TableCrc,
    /// Damage to the whole file.
    Damage(Patches),
    Cut(u16),
    Trailing(Vec<u8>),
    /// The size of the file of memory.
    Memory(i16),
    MemoryCrc,
    Parent([u8; 2]),
}

/// The section of memory.
#[derive(Arbitrary, Clone, Debug)]
struct Memo {
    id: [u8; 2],
    regions: Regions,
    /// Pages between, and pages.
    extents: Vec<(u8, u8)>,
    far_extent: Option<(u64, u64)>,
    #[arbitrary(default)]
    parent: Option<[u8; 2]>,
    #[arbitrary(default)]
    wrong_crc: bool,
}

#[derive(Arbitrary, Clone, Debug)]
enum Regions {
    One(u8),
    Two(u8, u8, u8),
    Any(Vec<(u64, u64)>),
}

/// What the table of sections says.
#[derive(Debug, Default)]
struct Table {
    version: Option<u32>,
    count: Option<u32>,
    /// Instead of a section's tag, length or CRC.
    tag: Option<(u8, u8)>,
    length: Option<(u8, u64)>,
    crc: Option<(u8, u32)>,
    left_out: Option<u8>,
    wrong_crc: bool,
}

impl Table {
    /// The file with `sections`.
    fn file(&self, sections: &[Vec<u8>]) -> Vec<u8> {
        let is = |which: u8, index: usize| usize::from(which % 6) == index;
        let kept = (0..6).filter(|index| !self.left_out.is_some_and(|which| is(which, *index)));
        let kept: Vec<usize> = kept.collect();
        let mut file = b"HULLSNAP".to_vec();
        file.extend(self.version.unwrap_or(VERSION).to_le_bytes());
        file.extend(self.count.unwrap_or(kept.len() as u32).to_le_bytes());
        for index in &kept {
            let payload = &sections[*index];
            let tag = self.tag.filter(|(which, _)| is(*which, *index));
            file.extend(tag.map_or(TAGS[*index], |(_, tag)| TAGS[usize::from(tag % 6)]));
            let length = self.length.filter(|(which, _)| is(*which, *index));
            file.extend(
                length
                    .map_or(payload.len() as u64, |(_, len)| len)
                    .to_le_bytes(),
            );
            let crc = self.crc.filter(|(which, _)| is(*which, *index));
            file.extend(
                crc.map_or(crc32fast::hash(payload), |(_, crc)| crc)
                    .to_le_bytes(),
            );
        }
        let crc = crc32fast::hash(&file) ^ u32::from(self.wrong_crc);
        file.extend(crc.to_le_bytes());
        kept.iter().for_each(|index| file.extend(&sections[*index]));
        file
    }
}

type Stored = (
    [u8; 16],
    Option<[u8; 16]>,
    Vec<(u64, u64)>,
    Vec<(u64, u64)>,
    u32,
);

impl Memo {
    fn regions(&self) -> Vec<(u64, u64)> {
        let pages = |count: &u8| (u64::from(*count % 24) + 1) * PAGE;
        match &self.regions {
            Regions::One(count) => vec![(0, pages(count))],
            Regions::Two(one, gap, two) => {
                vec![
                    (0, pages(one)),
                    (pages(one) + u64::from(*gap) * PAGE, pages(two)),
                ]
            }
            Regions::Any(regions) => regions.clone(),
        }
    }

    /// Bytes of all regions, if a guest can have them.
    fn bytes(&self) -> Option<u64> {
        let (mut free, mut total) = (0u64, 0u64);
        let regions = self.regions();
        for (start, bytes) in &regions {
            let end = start.checked_add(*bytes).filter(|end| *end <= 1 << 52)?;
            let whole = *bytes > 0 && start % PAGE == 0 && bytes % PAGE == 0;
            if !whole || *start < free {
                return None;
            }
            free = end;
            total += bytes;
        }
        (1..=16).contains(&regions.len()).then_some(total)
    }

    fn stored_extents(&self) -> Vec<(u64, u64)> {
        let extents = self
            .extents
            .iter()
            .map(|(between, pages)| ((*between).into(), (*pages).into()));
        extents.chain(self.far_extent).collect()
    }

    /// The extents as places in the file, if it can have them.
    fn places(&self) -> Option<Vec<(u64, u64)>> {
        let (mut end, mut places) = (0u64, Vec::new());
        for (between, pages) in self.stored_extents() {
            if pages == 0 || (between == 0 && !places.is_empty()) {
                return None;
            }
            let start = between.checked_mul(PAGE)?.checked_add(end)?;
            end = pages.checked_mul(PAGE)?.checked_add(start)?;
            places.push((start, end));
        }
        (end <= self.bytes()?).then_some(places)
    }

    /// The section, given the file of memory.
    fn section(&self, content: &[u8]) -> Vec<u8> {
        let wide = |id: [u8; 2]| {
            let mut wide = [0; 16];
            wide[..2].copy_from_slice(&id);
            wide
        };
        let mut crc = crc32fast::Hasher::new();
        for (start, end) in self.places().unwrap_or_default() {
            let place = content.get(start as usize..end as usize);
            crc.update(place.unwrap_or_default());
        }
        let crc = crc.finalize() ^ u32::from(self.wrong_crc);
        let parent = self.parent.map(wide);
        let stored: Stored = (
            wide(self.id),
            parent,
            self.regions(),
            self.stored_extents(),
            crc,
        );
        encode(&stored).unwrap()
    }

    /// The file of memory in the folder `dir`.
    fn file(&self, dir: &Path) -> PathBuf {
        dir.join(format!(
            "memory-{:02x}{:02x}{}",
            self.id[0],
            self.id[1],
            "0".repeat(28)
        ))
    }

    /// Its content: of a large one, nothing.
    fn content(&self, content: &[u8]) -> Vec<u8> {
        let len = self.bytes().filter(|bytes| *bytes <= MAX_MEMORY);
        let pattern = if content.is_empty() { &[0] } else { content };
        let bytes = pattern.iter().copied().cycle();
        bytes.take(len.unwrap_or(0) as usize).collect()
    }

    fn write(&self, dir: &Path, content: &[u8], more: i64) {
        let file = File::create(self.file(dir)).unwrap();
        file.write_all_at(content, 0).unwrap();
        let len = self.bytes().unwrap_or(0).saturating_add_signed(more);
        let _ = file.set_len(len);
    }
}

/// The state of a thing whose fields are all 0.
fn zero<T: serde::de::DeserializeOwned>() -> T {
    let (value, _) = postcard::take_from_bytes(&[0; 256]).unwrap();
    value
}

impl Input {
    fn shape(&self) -> Shape {
        Shape {
            version: "1.0".into(),
            machine: Machine {
                name: None,
                cpus: self.cpus % 40,
                topology: Default::default(),
                memory_bytes: self.memo.bytes().unwrap_or(0),
                kernel: Kernel::Tiny,
                boot: Via::Auto,
                initrd: None,
                cmdline: String::new(),
                console: Console::default(),
                kernel_log: false,
                devices: Vec::new(),
                command: None,
                faults: Vec::new(),
                lockdown: Default::default(),
                jail: None,
                limits: Default::default(),
                stop: Default::default(),
            },
            late_devices: true,
            revealed: false,
            disks: Vec::new(),
            loaded: self.loaded.map(|places| {
                let [kernel, initrd] = places.map(|(start, len, down)| {
                    let (start, end) = (start.into(), u64::from(start) + u64::from(len));
                    if down { end..start } else { start..end }
                });
                Loaded {
                    entry: Entry {
                        mode: Mode::Linux64,
                        rip: 0,
                        params: 0,
                    },
                    format: Format::Vmlinux,
                    kernel,
                    linked_at: None,
                    unpacked: None,
                    initrd: Some(initrd),
                    cmdline: String::new(),
                }
            }),
            added_words: Vec::new(),
            processor: None,
        }
    }

    /// The sections, with so many states of vCPUs.
    fn sections(&self, memo: &Memo, vcpus: usize, content: &[u8]) -> Vec<Vec<u8>> {
        let devices = self.devices.iter().map(|(port, base, state)| SavedDevice {
            port: *port,
            base: *base,
            name: "device".into(),
            state: state.clone(),
        });
        let vcpus: Vec<SavedVcpu> = (0..vcpus).map(|_| zero()).collect();
        let link = self.pipe.map(|pipe| SavedLink {
            session: None,
            pipe: pipe.into(),
        });
        vec![
            memo.section(content),
            encode(&self.shape()).unwrap(),
            encode(&vcpus).unwrap(),
            encode(&zero::<SavedChips>()).unwrap(),
            encode(&devices.collect::<Vec<_>>()).unwrap(),
            encode(&link).unwrap(),
        ]
    }

    /// Whether the snapshot is one that can be restored without its wrongs, as far as that is told without
    /// KVM.
    fn is_right(&self) -> bool {
        let down = |(_, len, down): &(u32, u16, bool)| *down && *len > 0;
        self.memo.places().is_some()
            && (1..=32).contains(&(self.cpus % 40))
            && !self.loaded.iter().flatten().any(down)
    }
}

/// The folders of all inputs.
fn folders() -> &'static [PathBuf; 3] {
    static FOLDERS: OnceLock<[PathBuf; 3]> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        let around = crate::folder("snapshot");
        ["base", "diff", "out"].map(|name| around.join(name))
    })
}

/// What becomes of an input.
struct Case {
    memo: Memo,
    sections: Vec<Vec<u8>>,
    table: Table,
    vcpus: i8,
    memory: i64,
    /// Sections that may be right in another way.
    other: bool,
}

impl Case {
    fn new(input: &Input, content: &[u8]) -> Self {
        let mut memo = input.memo.clone();
        let (mut vcpus, mut memory) = (0, 0);
        for wrong in &input.wrongs {
            match wrong {
                Wrong::Vcpus(more) => vcpus = more / 32,
                Wrong::MemoryCrc => memo.wrong_crc = true,
                Wrong::Parent(parent) => memo.parent = Some(*parent),
                Wrong::Memory(more) => memory = (*more).into(),
                _ => {}
            }
        }
        let count = usize::from(input.cpus % 40).saturating_add_signed(vcpus.into());
        let mut case = Self {
            sections: input.sections(&memo, count, content),
            memo,
            table: Table::default(),
            vcpus,
            memory,
            other: false,
        };
        input.wrongs.iter().for_each(|wrong| case.spoil(wrong));
        case
    }

    fn spoil(&mut self, wrong: &Wrong) {
        let table = &mut self.table;
        match wrong {
            Wrong::Within(which, patches, cut) => {
                let section = &mut self.sections[usize::from(which % 6)];
                let before = section.clone();
                patches.apply(section);
                section.truncate(section.len().saturating_sub((cut / 16).into()));
                self.other |= *section != before;
            }
            Wrong::Behind(which, bytes) => {
                self.sections[usize::from(which % 6)].extend(bytes);
                self.other |= !bytes.is_empty();
            }
            Wrong::Version(version) => table.version = Some(*version),
            Wrong::Count(count) => table.count = Some(*count),
            Wrong::Tag(section, tag) => table.tag = Some((*section, *tag)),
            Wrong::Length(section, length) => table.length = Some((*section, *length)),
            Wrong::Crc(section, crc) => table.crc = Some((*section, *crc)),
            Wrong::LeftOut(section) => table.left_out = Some(*section),
            Wrong::TableCrc => table.wrong_crc = true,
            _ => {}
        }
    }
}

/// The file `state` with what is wrong with it as a whole.
fn spoiled(mut state: Vec<u8>, wrongs: &[Wrong]) -> Vec<u8> {
    for wrong in wrongs {
        match wrong {
            Wrong::Damage(patches) => patches.apply(&mut state),
            Wrong::Cut(len) => state.truncate((*len).into()),
            Wrong::Trailing(bytes) => state.extend(bytes),
            _ => {}
        }
    }
    state
}

/// Read the snapshot, and check that it is accepted if it is right, and only then.
pub fn check(input: &Input) {
    let [base, diff, out] = folders();
    for dir in [base, diff, out] {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir(dir).unwrap();
    }
    let content = input.memo.content(&input.content);
    let case = Case::new(input, &content);
    let whole = case.table.file(&case.sections);
    let state = spoiled(whole.clone(), &input.wrongs);
    // The table may be wrong in a way that makes no difference.
    let sound = whole == Table::default().file(&case.sections);
    fs::write(base.join("state"), &state).unwrap();
    case.memo.write(base, &content, case.memory);
    if let Some(ranges) = &input.written {
        let pages = |(first, count): &(u8, u8)| [u32::from(*first), u32::from(*count)];
        let words = ranges.iter().flat_map(pages).flat_map(u32::to_le_bytes);
        fs::write(base.join("written"), words.collect::<Vec<u8>>()).unwrap();
    }

    let layer = open_layer(base);
    if state != whole {
        // A CRC covers every byte.
        layer.expect_err("damage is not noticed");
        return;
    }
    let saved = Saved::open(base);
    let is_right = sound
        && input.is_right()
        && case.memo.parent.is_none()
        && (case.vcpus, case.memory) == (0, 0)
        && !case.other;
    if !case.other {
        assert_eq!(saved.is_ok(), is_right, "{saved:?}");
    }
    match saved {
        Ok(saved) => accepted(input, &case.memo, &saved, &content, is_right),
        Err(error) => {
            assert!(
                error.is_of_snapshot() && !error.to_string().is_empty(),
                "{error}"
            );
        }
    }
    if let (Ok(_), Some(other)) = (&layer, &input.diff) {
        let mut memo = other.memo.clone();
        memo.parent = other.parent.unwrap_or(Some(case.memo.id));
        if other.same_regions {
            memo.regions = case.memo.regions.clone();
        }
        let later = memo.content(&other.content);
        let mut sections = case.sections;
        sections[0] = memo.section(&later);
        fs::write(diff.join("state"), Table::default().file(&sections)).unwrap();
        memo.write(diff, &later, 0);
        merged([&case.memo, &memo], [&content, &later], is_right);
    }
}

fn accepted(input: &Input, memo: &Memo, saved: &Saved, content: &[u8], is_right: bool) {
    assert!((1..=32).contains(&saved.shape.machine.cpus));
    if !is_right {
        return;
    }
    assert_eq!(saved.is_template(), input.pipe.is_some());
    assert_eq!(saved.stranger(), None);
    if memo.bytes().is_some_and(|bytes| bytes <= MAX_MEMORY) {
        assert_eq!(saved.verify().is_ok(), !memo.wrong_crc);
        let mapped = match (saved.map_memory(), &memo.regions) {
            (Ok(mapped), _) => mapped,
            (Err(error), Regions::One(_)) => panic!("{error}"),
            // Guests have memory in other places.
            (Err(_), _) => return,
        };
        saved.copy_written(&mapped);
        for (start, _) in memo.places().unwrap_or_default() {
            let mut left = start;
            let region = memo
                .regions()
                .into_iter()
                .find_map(|(gpa, bytes)| match left {
                    at if at < bytes => Some(gpa + at),
                    _ => {
                        left -= bytes;
                        None
                    }
                });
            let at = vm_memory::GuestAddress(region.unwrap());
            let byte: u8 = vm_memory::Bytes::read_obj(&mapped, at).unwrap();
            assert_eq!(byte, content.get(start as usize).copied().unwrap_or(0));
        }
    }
}

/// Merge both, and compare what came out.
fn merged(memos: [&Memo; 2], contents: [&[u8]; 2], is_right: bool) {
    let [base, diff, out] = folders();
    let [first, memo] = memos;
    let small = |memo: &Memo| memo.bytes().is_some_and(|bytes| bytes <= MAX_MEMORY);
    // Others take long to copy.
    if !small(first) || !small(memo) {
        return;
    }
    let merged = merge(base, &[diff], out, &mut |done, total| {
        assert!(done <= total)
    });
    let follows = is_right
        && memo.places().is_some()
        && memo.parent == Some(first.id)
        && memo.regions() == first.regions()
        && !memo.wrong_crc
        && !first.wrong_crc;
    match merged {
        Err(SnapshotError::Io { reason, .. }) => panic!("{reason}"),
        Err(error) => assert!(!follows, "{error}"),
        Ok(_) if !follows => assert!(!is_right, "layers that do not belong together"),
        Ok(id) => {
            let path = out.join(format!("memory-{id}"));
            let mut expected = vec![0; memo.bytes().unwrap() as usize];
            for (memo, content) in memos.into_iter().zip(contents) {
                for (start, end) in memo.places().unwrap() {
                    let place = &mut expected[start as usize..end as usize];
                    match content.get(start as usize..end as usize) {
                        Some(bytes) => place.copy_from_slice(bytes),
                        None => place.fill(0),
                    }
                }
            }
            assert!(
                fs::read(path).unwrap() == expected,
                "memory is merged wrongly"
            );
            open_layer(out).unwrap().check_memory().unwrap();
        }
    }
}
