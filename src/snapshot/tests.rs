//! The format against whatever may happen to its files.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::strategy::{Strategy, ValueTree};
use vm_memory::{Bytes, GuestAddress};

use super::read::memory_name;
use super::write::STEPS;
use super::*;
use crate::memory::GuestMemory;
use crate::memory::layout::{MMIO_HOLE, MMIO_HOLE_END};
use crate::memory::pages::{PAGE, Pages};
use crate::memory::{backing, dirty};

/// A guest with a second region.
const HIGH: u64 = MMIO_HOLE + 0x40_0000;

fn touched(memory: &GuestMemory) -> Pages {
    Pages::touched(memory, File::open("/proc/self/pagemap").ok().as_ref())
}

fn write(dir: &Path, memory: &GuestMemory, pages: &Pages, base: Option<Id>, note: &[u8]) -> Id {
    let mut writer = Writer::create(dir, false).expect("created");
    writer.memory(memory, pages, base).expect("memory written");
    writer.section(*b"NOTE", note.to_vec());
    writer.commit().expect("committed")
}

fn write_whole(dir: &Path, memory: &GuestMemory, note: &[u8]) -> Id {
    write(dir, memory, &touched(memory), None, note)
}

fn page(memory: &GuestMemory, gpa: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    memory
        .read_slice(&mut page, GuestAddress(gpa))
        .expect("read");
    page
}

fn fill(memory: &GuestMemory, gpa: u64, byte: u8) {
    let bytes = [byte; PAGE as usize];
    memory
        .write_slice(&bytes, GuestAddress(gpa))
        .expect("written");
}

fn restore(dir: &Path) -> (Snapshot, GuestMemory) {
    let snapshot = open(dir).expect("opened");
    snapshot.check_memory().expect("the memory is right");
    let memory = backing::map_file(snapshot.memory()).expect("mapped");
    (snapshot, memory)
}

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry
            .expect("an entry")
            .file_name()
            .into_string()
            .expect("text")
    };
    let mut names: Vec<_> = fs::read_dir(dir).expect("a folder").map(name).collect();
    names.sort();
    names
}

/// A page of the low or of the high region, by number.
fn gpa_of(number: u64) -> u64 {
    match number % 2 {
        0 => number / 2 * 3 * PAGE,
        _ => MMIO_HOLE_END + number / 2 * PAGE,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn a_snapshot_reads_back_and_maps(
        first in prop::collection::vec((0u64..100, any::<u8>()), 0..40),
        second in prop::collection::vec((0u64..100, any::<u8>()), 0..40),
        note in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("snapshot");
        let memory = backing::allocate(HIGH).expect("memory");
        let mut model = vec![0; 100];
        for (number, byte) in first {
            fill(&memory, gpa_of(number), byte);
            model[number as usize] = byte;
        }
        let id = write_whole(&dir, &memory, &note);
        let (snapshot, memory) = restore(&dir);
        prop_assert_eq!(snapshot.id(), id);
        prop_assert_eq!(snapshot.section(*b"NOTE"), Some(&note[..]));
        prop_assert_eq!(snapshot.section(*b"NONE"), None);
        prop_assert_eq!(snapshot.sections().count(), 1);
        let filled = model.iter().filter(|byte| **byte != 0).count() as u64;
        let extents = &snapshot.memory().extents;
        let bytes: u64 = extents.iter().map(|extent| extent.end - extent.start).sum();
        prop_assert_eq!(bytes, filled * PAGE);
        // Of the restored machine the next one: pages of the file, changed and unchanged.
        for (number, byte) in second {
            fill(&memory, gpa_of(number), byte);
            model[number as usize] = byte;
        }
        write_whole(&dir, &memory, &note);
        let (_, memory) = restore(&dir);
        for (number, byte) in (0..).zip(model) {
            prop_assert_eq!(page(&memory, gpa_of(number)), vec![byte; PAGE as usize]);
        }
        prop_assert_eq!(names(&dir).len(), 2);
    }

    #[test]
    fn merging_a_chain_of_diffs_restores_the_memory(
        steps in prop::collection::vec(prop::collection::vec((0u64..100, 0u8..3), 0..30), 1..5),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = |n: usize| folder.path().join(n.to_string());
        let memory = backing::allocate(HIGH).expect("memory");
        dirty::start(&memory);
        let mut id = None;
        for (n, step) in steps.iter().enumerate() {
            for (number, byte) in step {
                fill(&memory, gpa_of(*number), *byte);
            }
            let changed = dirty::take(&memory);
            let pages = if n == 0 { touched(&memory) } else { changed };
            id = Some(write(&dir(n), &memory, &pages, id, &[n as u8]));
        }
        let diffs: Vec<PathBuf> = (1..steps.len()).map(dir).collect();
        let diffs: Vec<&Path> = diffs.iter().map(PathBuf::as_path).collect();
        if let Some(first) = diffs.first() {
            let alone = open(first);
            prop_assert!(matches!(alone, Err(SnapshotError::Diff { .. })), "{alone:?}");
        }
        if diffs.len() > 1 {
            let wrong = merge(&dir(0), &diffs[1..], &dir(9), &mut |_, _| ());
            prop_assert!(matches!(wrong, Err(SnapshotError::Order { .. })), "{wrong:?}");
            prop_assert!(!dir(9).exists());
        }
        // In the place of the first, too.
        for out in [dir(9), dir(0)] {
            let mut last = (0, 0);
            merge(&dir(0), &diffs, &out, &mut |done, of| last = (done, of)).expect("merged");
            prop_assert_eq!(last.0, last.1);
            let (snapshot, merged) = restore(&out);
            prop_assert_eq!(snapshot.section(*b"NOTE"), Some(&[steps.len() as u8 - 1][..]));
            prop_assert_eq!(snapshot.parent(), None);
            for gpa in (0..100).map(gpa_of) {
                prop_assert_eq!(page(&merged, gpa), page(&memory, gpa), "{:#x}", gpa);
            }
        }
    }

    #[test]
    fn a_malformed_memo_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = memo::Memo::decode(&bytes);
        let mut whole = vec![0; 16];
        whole.extend([0, 1]);
        whole.extend(bytes);
        let _ = memo::Memo::decode(&whole);
    }
}

/// A small snapshot: its folder, and `state`.
fn small() -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().expect("a folder");
    let memory = backing::allocate(0x10_0000).expect("memory");
    fill(&memory, 0x3000, 7);
    write_whole(folder.path(), &memory, &[9; 300]);
    let state = fs::read(folder.path().join("state")).expect("state");
    (folder, state)
}

#[test]
fn ten_thousand_flipped_bits_are_all_found() {
    let (folder, state) = small();
    let path = folder.path().join("state");
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = 0..state.len() * 8;
    for turn in 0..10_000 {
        // Each bit once, then any.
        let bit = match turn < state.len() * 8 {
            true => turn,
            false => strategy.new_tree(&mut runner).expect("a number").current(),
        };
        let mut flipped = state.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &flipped).expect("written");
        open(folder.path()).expect_err("one bit is wrong");
    }
    fs::write(&path, &state).expect("written");
    open(folder.path()).expect("whole again");
}

#[test]
fn a_truncated_state_is_refused() {
    let (folder, state) = small();
    let path = folder.path().join("state");
    for len in 0..state.len() {
        fs::write(&path, &state[..len]).expect("written");
        let error = open(folder.path()).expect_err("cut off");
        assert!(
            matches!(error, SnapshotError::Truncated { .. }),
            "{len}: {error}"
        );
    }
    fs::write(&path, [&state[..], &[0]].concat()).expect("written");
    let error = open(folder.path()).expect_err("too long").to_string();
    assert!(error.contains("data after its end"), "{error}");
}

#[test]
fn other_files_and_versions_are_refused_by_name() {
    let (folder, state) = small();
    let path = folder.path().join("state");
    let expect = |change: &dyn Fn(&mut Vec<u8>), words: &str| {
        let mut changed = state.clone();
        change(&mut changed);
        fs::write(&path, changed).expect("written");
        let error = open(folder.path()).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    expect(
        &|state| state[8] = VERSION as u8 + 1,
        "the snapshot format 5",
    );
    expect(
        &|state| state[8] = VERSION as u8 - 1,
        "the snapshot format 3",
    );
    expect(&|state| state[0] = b'h', "is not a snapshot of hull's");
    expect(
        &|state| *state.last_mut().expect("a byte") ^= 1,
        "section MEMO",
    );
    fs::remove_file(&path).expect("removed");
    let error = open(folder.path()).expect_err("nothing there");
    assert!(matches!(error, SnapshotError::Missing { .. }), "{error}");
    fs::create_dir(&path).expect("a folder in its place");
    let error = open(folder.path()).expect_err("a folder");
    assert!(matches!(error, SnapshotError::Foreign { .. }), "{error}");
}

#[test]
fn memory_of_another_snapshot_is_refused() {
    let (folder, _) = small();
    let path = folder
        .path()
        .join(memory_name(open(folder.path()).expect("whole").id()));
    let file = File::options().write(true).open(&path).expect("opened");
    file.write_all_at(b"x", 0x3000).expect("written");
    let error = open(folder.path()).expect("not read yet").check_memory();
    assert!(
        error
            .expect_err("changed")
            .to_string()
            .contains("guest memory")
    );
    for len in [0, 0xf_f000, 0x10_0001] {
        file.set_len(len).expect("resized");
        let error = open(folder.path()).expect_err("another size");
        assert!(matches!(error, SnapshotError::MemorySize { .. }), "{error}");
    }
    fs::remove_file(&path).expect("removed");
    let error = open(folder.path()).expect_err("missing");
    assert!(
        matches!(error, SnapshotError::MemoryMissing { .. }),
        "{error}"
    );
}

#[test]
fn a_writer_killed_at_any_step_leaves_one_complete_snapshot() {
    for sync in [false, true] {
        for done in 0..=STEPS.len() {
            let folder = tempfile::tempdir().expect("a folder");
            let memory = backing::allocate(0x10_0000).expect("memory");
            fill(&memory, 0x3000, 1);
            let old = write_whole(folder.path(), &memory, b"old");
            fill(&memory, 0x3000, 2);
            let mut writer = Writer::create(folder.path(), sync).expect("created");
            let pages = touched(&memory);
            writer.memory(&memory, &pages, None).expect("written");
            writer.section(*b"NOTE", b"new".to_vec());
            let new = writer.id();
            for step in &STEPS[..done] {
                step(&mut writer).expect("done");
            }
            writer.killed();
            // The third step is the rename.
            let (id, byte) = if done < 3 { (old, 1) } else { (new, 2) };
            let (snapshot, memory) = restore(folder.path());
            assert_eq!(snapshot.id(), id, "{done}");
            assert_eq!(page(&memory, 0x3000), [byte; PAGE as usize]);
            // The next writer puts it in order, even if it comes to nothing.
            drop(Writer::create(folder.path(), sync).expect("created"));
            assert_eq!(
                names(folder.path()),
                [memory_name(id), "state".into()],
                "{done}"
            );
            open(folder.path()).expect("still whole");
        }
    }
}

#[test]
fn writers_do_not_disturb_each_other_or_other_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("a/b");
    let writer = Writer::create(&dir, false).expect("created");
    let error = Writer::create(&dir, false).expect_err("locked");
    assert!(matches!(error, SnapshotError::Busy { .. }), "{error}");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join(memory_name(writer.id()))), 0o600);
    drop(writer);
    assert!(!dir.exists());
    fs::create_dir_all(&dir).expect("made");
    fs::write(dir.join("state"), "of something else").expect("written");
    let error = Writer::create(&dir, false).expect_err("not ours");
    assert!(matches!(error, SnapshotError::Foreign { .. }), "{error}");
    assert_eq!(names(&dir), ["state"]);
}

#[test]
fn bytes_on_disk_follow_what_was_touched() {
    let folder = tempfile::tempdir().expect("a folder");
    let memory = backing::allocate(512 << 20).expect("memory");
    for n in 0..40 {
        let bytes = vec![n as u8 + 1; 1 << 20];
        let gpa = GuestAddress((n * 11) << 20);
        memory.write_slice(&bytes, gpa).expect("written");
    }
    write_whole(folder.path(), &memory, b"");
    let snapshot = open(folder.path()).expect("whole");
    let data = snapshot.memory().file.metadata().expect("a file");
    assert_eq!(data.len(), 512 << 20);
    let on_disk = data.blocks() * 512;
    assert!((40 << 20..42 << 20).contains(&on_disk), "{on_disk}");
}

#[test]
fn released_pages_of_a_restored_guest_stay_zero() {
    let folder = tempfile::tempdir().expect("a folder");
    let memory = backing::allocate(HIGH).expect("memory");
    for n in 0..64 {
        fill(&memory, n * PAGE, 5);
        fill(&memory, MMIO_HOLE_END + n * PAGE, 6);
    }
    write_whole(folder.path(), &memory, b"");
    let (_, memory) = restore(folder.path());
    fill(&memory, 2 * PAGE, 9);
    for gpa in [PAGE, MMIO_HOLE_END + PAGE] {
        backing::release(&memory, GuestAddress(gpa), 8 * PAGE as usize).expect("released");
    }
    let is = |memory: &GuestMemory, gpa: u64, byte: u8| {
        assert_eq!(page(memory, gpa), [byte; PAGE as usize], "{gpa:#x}");
    };
    let as_left = |memory: &GuestMemory| {
        for n in 0..64 {
            let gone = (1..9).contains(&n);
            is(memory, n * PAGE, if gone { 0 } else { 5 });
            is(memory, MMIO_HOLE_END + n * PAGE, if gone { 0 } else { 6 });
        }
    };
    as_left(&memory);
    let next = folder.path().join("next");
    write_whole(&next, &memory, b"");
    as_left(&restore(&next).1);
    // The file itself is as it was.
    is(&restore(folder.path()).1, PAGE, 5);
}

#[test]
fn a_restored_guest_with_too_many_holes_keeps_what_it_had() {
    let folder = tempfile::tempdir().expect("a folder");
    let memory = backing::allocate(160 << 20).expect("memory");
    let pages = (160 << 20) / PAGE;
    for n in 0..pages {
        memory
            .write_obj(3u64, GuestAddress(n * PAGE))
            .expect("written");
    }
    write_whole(folder.path(), &memory, b"");
    let (_, memory) = restore(folder.path());
    for n in (0..pages).step_by(2) {
        backing::release(&memory, GuestAddress(n * PAGE), PAGE as usize).expect("released");
    }
    for n in 0..pages {
        let word: u64 = memory.read_obj(GuestAddress(n * PAGE)).expect("read");
        // The host takes so many mappings.
        let released = n % 2 == 0 && n / 2 < 16384;
        assert_eq!(word, if released { 0 } else { 3 }, "{n}");
    }
}

#[test]
fn a_file_of_other_regions_is_not_mapped() {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(0x20_0000).expect("sized");
    let file = std::sync::Arc::new(file);
    for regions in [
        vec![],
        vec![(0x1000, 0x10_0000)],
        vec![(0, 0x10_0800)],
        vec![(0, 0x30_0000)],
        vec![(0, 0x10_0000), (MMIO_HOLE_END, 0x10_0000)],
        vec![(0, u64::MAX), (0, u64::MAX)],
    ] {
        let file = MemoryFile {
            file: file.clone(),
            regions,
            extents: Vec::new(),
        };
        backing::map_file(&file).expect_err("not a guest's");
    }
}

/// There is a golden of each version: a later hull opens it or refuses it by name.
#[test]
fn golden_snapshots_open_or_are_refused_by_version() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let error = open(&golden.join("snapshot-v1")).expect_err("an older format");
    assert!(
        matches!(error, SnapshotError::Older { version: 1, .. }),
        "{error}"
    );
    let golden = golden.join("snapshot-v4");
    let (snapshot, memory) = restore(&golden);
    assert_eq!(
        snapshot.id().to_string(),
        "00112233445566778899aabbccddeeff"
    );
    assert_eq!(snapshot.section(*b"NOTE"), Some(&b"golden"[..]));
    let extent = 0x1000..0x2000;
    assert_eq!(snapshot.memory().extents, std::slice::from_ref(&extent));
    assert_eq!(page(&memory, 0), [0; PAGE as usize]);
    assert_eq!(page(&memory, 0x1000), [b'h'; PAGE as usize]);
    // And this one is written as it was.
    let memo = snapshot.memo().encode().expect("encoded");
    let sections = [(*b"NOTE", b"golden".to_vec()), (memo::TAG, memo)];
    let state = fs::read(golden.join("state")).expect("there");
    assert_eq!(header::encode(&sections), state);
}

#[test]
fn pages_that_were_written_later_are_named_and_copied_in_advance() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("snapshot");
    let memory = backing::allocate(HIGH).expect("memory");
    (0..8).for_each(|number| fill(&memory, gpa_of(number), 7));
    write_whole(&dir, &memory, b"");
    assert!(open(&dir).expect("opened").written().is_empty());

    fill(&memory, gpa_of(2), 7); // as before
    fill(&memory, gpa_of(4), 8);
    fill(&memory, gpa_of(5), 0);
    fill(&memory, gpa_of(90), 9);
    add_written(&dir, &memory, &touched(&memory)).expect("added");
    assert!(add_written(&dir, &memory, &touched(&memory)).is_err());
    let (snapshot, memory) = restore(&dir);
    let offset = |gpa: u64| {
        gpa - if gpa < MMIO_HOLE {
            0
        } else {
            MMIO_HOLE_END - MMIO_HOLE
        }
    };
    let of = |number: u64| offset(gpa_of(number))..offset(gpa_of(number)) + PAGE;
    let written = Pages::from_ranges([4, 5, 90].map(of));
    assert_eq!(*snapshot.written(), written);

    let before = touched(&memory);
    assert!(before.minus(&Pages::from_ranges((0..8).map(of))).is_empty());
    backing::copy(&memory, snapshot.written());
    assert_eq!(page(&memory, gpa_of(4)), [7; PAGE as usize]);
    assert!(written.minus(&touched(&memory)).is_empty());
    assert!(touched(&memory).minus(&before.union(&written)).is_empty());

    // What it names is a hint, whatever it says.
    let long = vec![0; 1 << 20];
    for (damage, named) in [(&[0xff; 800][..], 0), (&[1, 0, 0], 0), (&long, 0)] {
        fs::write(dir.join("written"), damage).expect("written");
        let (snapshot, memory) = restore(&dir);
        assert_eq!(snapshot.written().bytes(), named);
        backing::copy(&memory, snapshot.written());
    }
    let outside = [&0xff_ffffu32.to_le_bytes()[..], &9u32.to_le_bytes()].concat();
    fs::write(dir.join("written"), outside).expect("written");
    let (snapshot, memory) = restore(&dir);
    assert_eq!(snapshot.written().bytes(), 9 * PAGE);
    backing::copy(&memory, snapshot.written());
}
