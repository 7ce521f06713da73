use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use super::place::Place;
use super::*;
use crate::memory::image::Image;
use crate::memory::packed::tests::packed;

const MEMORY: &str = "memory-00112233445566778899aabbccddeeff";
const KIB: u64 = 1 << 10;

fn key(name: &str) -> Key {
    Key::new().add("name", name.as_bytes()).finish().unwrap()
}

fn about() -> About {
    About {
        kernel: "inside".into(),
        cpus: 1,
        memory_bytes: 128 << 20,
        version: "1".into(),
        created: 7,
    }
}

/// A folder for a cache, closed to others whatever umask another test has set.
fn home() -> tempfile::TempDir {
    let closed = std::fs::Permissions::from_mode(0o700);
    let folder = tempfile::Builder::new().permissions(closed).tempdir();
    folder.expect("a folder")
}

/// The cache in `home`, opened anew as another process would.
fn cache_of(home: &Path, limit: u64) -> Cache {
    Cache::at(home.into(), limit).expect("a cache")
}

/// As a snapshot's writer does it, with so much memory.
fn write(dir: &Path, memory: u64) {
    fs::write(dir.join(MEMORY), vec![1; memory as usize]).unwrap();
    fs::write(dir.join("state"), b"state").unwrap();
}

/// Take the folder to build a template in. A child that another test has just forked holds every
/// lock until it has executed its program.
fn begin(cache: &Cache, name: &str) -> Building {
    let begun = || cache.build(&key(name), &about()).expect("a folder");
    patiently(begun).expect("no other build")
}

fn patiently<T>(take: impl Fn() -> Option<T>) -> Option<T> {
    (0..50).find_map(|_| {
        take().or_else(|| {
            thread::sleep(Duration::from_millis(20));
            None
        })
    })
}

/// Build the template of this name, last used at this second.
fn make(cache: &Cache, name: &str, memory: u64, used: u64) -> bool {
    let building = begin(cache, name);
    write(building.dir(), memory);
    let state = fs::File::open(building.dir().join("state")).unwrap();
    state
        .set_modified(UNIX_EPOCH + Duration::from_secs(used))
        .unwrap();
    building.finish()
}

fn inside(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let names = entries.map(|entry| name(entry).into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_template_is_found_once_it_is_built() {
    let home = home();
    let cache = cache_of(home.path(), 1 << 30);
    assert_eq!(cache.find(&key("a")), None);
    let building = begin(&cache, "a");
    assert_eq!(cache.find(&key("a")), None, "there is no state yet");
    write(building.dir(), 64 * KIB);
    let dir = building.dir().to_path_buf();
    assert!(building.finish());
    assert_eq!(cache.find(&key("a")), Some(dir.clone()));
    assert_eq!(cache.find(&key("b")), None);
    assert!(
        cache
            .build(&key("a"), &about())
            .expect("a folder")
            .is_none(),
        "there is one already"
    );
    let [listed] = &cache.list()[..] else {
        panic!("one template");
    };
    assert_eq!((listed.key, &listed.about), (key("a"), &Some(about())));
    assert!(
        (64 * KIB..256 * KIB).contains(&listed.bytes),
        "{}",
        listed.bytes
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&dir.join("about"))), (0o700, 0o600));
}

#[test]
fn finding_counts_as_use() {
    let home = home();
    let cache = cache_of(home.path(), 1 << 30);
    make(&cache, "a", KIB, 1_000);
    make(&cache, "b", KIB, 2_000);
    let order = |cache: &Cache| -> Vec<Key> { cache.list().iter().map(|it| it.key).collect() };
    assert_eq!(order(&cache), [key("b"), key("a")]);
    cache.find(&key("a")).expect("there");
    assert_eq!(order(&cache), [key("a"), key("b")]);
}

#[test]
fn of_many_builders_one_builds() {
    let home = home();
    let (start, end) = (Barrier::new(16), Barrier::new(16));
    let build = || {
        let cache = cache_of(home.path(), 1 << 30);
        start.wait();
        let building = cache.build(&key("a"), &about()).expect("a folder");
        end.wait(); // all have tried while it is held
        building.map(|building| {
            write(building.dir(), KIB);
            building.finish()
        })
    };
    let built: Vec<bool> = thread::scope(|scope| {
        let all: Vec<_> = (0..16).map(|_| scope.spawn(build)).collect();
        let results = all.into_iter().map(|one| one.join().expect("no panic"));
        results.flatten().collect()
    });
    assert_eq!(built, [true]);
    assert!(cache_of(home.path(), 1).find(&key("a")).is_some());
}

#[test]
fn builders_removers_and_finders_do_not_disturb_each_other() {
    let home = home();
    let work = |number: usize| {
        let cache = cache_of(home.path(), 100 * KIB);
        for round in 0..60 {
            let key = key(["a", "b", "c"][(number + round) % 3]);
            match (number + round) % 4 {
                0 => drop(cache.remove(&key)),
                1 => drop(cache.list()),
                _ if cache.find(&key).is_some() => {}
                _ => {
                    let Ok(Some(building)) = cache.build(&key, &about()) else {
                        continue;
                    };
                    // It is locked by this thread: no other thread removes it meanwhile.
                    write(building.dir(), 40 * KIB);
                    assert!(building.dir().join("about").exists());
                    building.finish();
                }
            }
        }
    };
    thread::scope(|scope| {
        for number in 0..6 {
            scope.spawn(move || work(number));
        }
    });
    // A builder that waited in vain for its turn leaves the eviction to the next one.
    let cache = cache_of(home.path(), 100 * KIB);
    let within = || {
        let building = cache.build(&key("d"), &about()).expect("a folder")?;
        write(building.dir(), 40 * KIB);
        building.finish();
        let _ = cache.remove(&key("d"));
        let total: u64 = cache.list().iter().map(|it| it.bytes).sum();
        (total <= 60 * KIB).then_some(())
    };
    patiently(within).expect("room");
    let empty = || {
        cache.remove_all().unwrap();
        (inside(home.path()) == ["lock"]).then_some(())
    };
    patiently(empty).expect("nothing is left");
}

#[test]
fn those_not_used_for_longest_make_room() {
    let home = home();
    // The block size of a file system tells how many fit.
    let cache = cache_of(home.path(), 370 * KIB);
    for (name, used) in [("a", 3_000), ("b", 1_000), ("c", 2_000)] {
        assert!(make(&cache, name, 100 * KIB, used));
    }
    assert!(make(&cache, "d", 100 * KIB, 500), "the own one stays");
    let there = |name| cache.find(&key(name)).is_some();
    assert_eq!(
        ["a", "b", "c", "d"].map(there),
        [true, false, true, true],
        "b was used first"
    );
    // The limit may have been lowered.
    let cache = cache_of(home.path(), 150 * KIB);
    assert!(make(&cache, "e", 100 * KIB, 9_000));
    assert_eq!(cache.list().len(), 1);
    // A template above the whole limit evicts nothing.
    assert!(!make(&cache, "f", 200 * KIB, 9_001));
    let keys: Vec<Key> = cache.list().iter().map(|it| it.key).collect();
    assert_eq!(keys, [key("e")]);
    assert_eq!(inside(home.path()).len(), 2, "and the lock");
}

#[test]
fn one_that_is_being_built_is_not_taken_away() {
    let home = home();
    let cache = cache_of(home.path(), 150 * KIB);
    let building = begin(&cache, "a");
    write(building.dir(), 100 * KIB);
    make(&cache, "b", 100 * KIB, 1);
    cache.remove_all().unwrap();
    assert!(cache.list().iter().any(|it| it.key == key("a")));
    let busy = cache.remove(&key("a"));
    assert!(matches!(busy, Err(CacheError::Busy { .. })), "{busy:?}");
    assert!(building.finish());
    cache.remove(&key("a")).unwrap();
    cache.remove(&key("a")).expect("gone is gone");
    assert_eq!(inside(home.path()), ["lock"]);
}

#[test]
fn a_builder_that_gives_up_leaves_nothing() {
    let home = home();
    let cache = cache_of(home.path(), 1 << 30);
    let building = begin(&cache, "a");
    fs::write(building.dir().join(MEMORY), "half").unwrap();
    fs::write(building.dir().join("state.tmp"), "half").unwrap();
    drop(building);
    assert_eq!(inside(home.path()), ["lock"]);
    // Finished without a snapshot is given up, too.
    let building = begin(&cache, "a");
    assert!(!building.finish());
    assert_eq!(inside(home.path()), ["lock"]);
}

/// What a builder leaves that is killed with its half written snapshot.
fn killed(home: &Path, name: &str) -> PathBuf {
    let cache = cache_of(home, 1 << 30);
    let building = begin(&cache, name);
    let dir = building.dir().to_path_buf();
    fs::write(dir.join(MEMORY), "half").unwrap();
    fs::write(dir.join("state.tmp"), "half").unwrap();
    // Put everything back after it has cleared up.
    let files: Vec<(PathBuf, Vec<u8>)> = inside(&dir)
        .iter()
        .map(|name| (dir.join(name), fs::read(dir.join(name)).unwrap()))
        .collect();
    drop(building);
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    for (path, bytes) in files {
        fs::write(path, bytes).unwrap();
    }
    dir
}

#[test]
fn what_a_killed_builder_left_is_built_again_or_cleared_away() {
    let home = home();
    let cache = cache_of(home.path(), 1 << 30);
    let dir = killed(home.path(), "a");
    assert_eq!(cache.find(&key("a")), None);
    let building = begin(&cache, "a");
    assert_eq!(inside(&dir), ["about", "lock", "unsynced"]);
    drop(building);

    let dir = killed(home.path(), "a");
    assert!(make(&cache, "b", KIB, 1));
    assert!(!dir.exists(), "the next builder sweeps");

    let dir = killed(home.path(), "a");
    assert_eq!(cache.list().len(), 1);
    assert!(!dir.exists(), "so does who looks");

    // Killed between making the folder and its lock.
    let dir = home.path().join(key("a").to_string());
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    cache.list();
    assert!(!dir.exists());
}

#[test]
fn what_is_in_the_way_is_replaced_and_not_followed() {
    let home = home();
    let cache = cache_of(home.path(), 1 << 30);
    let elsewhere = tempfile::tempdir().unwrap();
    write(elsewhere.path(), KIB);
    let place = home.path().join(key("a").to_string());
    for hinder in [
        &(|| symlink(elsewhere.path(), &place).unwrap()) as &dyn Fn(),
        &|| symlink("/no/such", &place).unwrap(),
        &|| fs::write(&place, "a file").unwrap(),
    ] {
        hinder();
        assert_eq!(cache.find(&key("a")), None);
        assert!(cache.list().is_empty());
        let _ = cache.remove(&key("a"));
        assert!(make(&cache, "a", KIB, 1));
        cache.remove(&key("a")).unwrap();
    }
    assert_eq!(inside(elsewhere.path()), [MEMORY, "state"]);
}

#[test]
fn hostile_contents_are_no_template_and_stop_nobody() {
    let home = home();
    let cache = cache_of(home.path(), 1 << 30);
    let folder = |name: &str| {
        let dir = home.path().join(key(name).to_string());
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        dir
    };
    // A state that is no file.
    fs::create_dir_all(folder("a").join("state")).unwrap();
    symlink("/etc/passwd", folder("b").join("state")).unwrap();
    // Others may write to it.
    let open = folder("c");
    write(&open, KIB);
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    for name in ["a", "b", "c"] {
        assert_eq!(cache.find(&key(name)), None, "{name}");
    }
    assert!(cache.list().is_empty());
    // Other people's files stay, in a folder that is called as ours are.
    let others = folder("d");
    fs::write(others.join("thesis"), "text").unwrap();
    fs::write(others.join("about"), "text").unwrap();
    fs::write(home.path().join("letter"), "text").unwrap();
    cache.remove_all().unwrap_err();
    assert_eq!(inside(&others), ["about", "thesis"]);
    assert!(home.path().join("letter").exists());
    assert!(fs::read("/etc/passwd").is_ok());
}

#[test]
fn garbage_about_a_template_does_not_hide_it() {
    let home = home();
    let cache = cache_of(home.path(), 1 << 30);
    make(&cache, "a", KIB, 1);
    let dir = cache.find(&key("a")).expect("there");
    let about = dir.join("about");
    let fifo = || {
        let made = std::process::Command::new("mkfifo").arg(&about).status();
        assert!(made.expect("mkfifo starts").success());
    };
    for garbage in [
        &(|| fs::write(&about, b"\xff\0{").unwrap()) as &dyn Fn(),
        &|| fs::write(&about, vec![b'['; 1 << 20]).unwrap(),
        &|| fs::write(&about, "{\"kernel\": 1}").unwrap(),
        &|| symlink("/dev/zero", &about).unwrap(),
        &fifo,
        &|| {}, // nothing at all
    ] {
        let _ = fs::remove_file(&about);
        garbage();
        let listed = cache.list();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].about, None);
    }
    fs::write(dir.join("thesis"), "text").unwrap();
    cache.remove(&key("a")).unwrap_err(); // not all in it is ours
    assert_eq!(cache.find(&key("a")), None, "but it is a template no more");
}

#[test]
fn a_cache_that_cannot_be_is_none() {
    let home = home();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [
        &file,
        &file.join("below"),
        Path::new("/proc/self"),
        Path::new("/tmp"),
    ] {
        let opened = Cache::at(path.into(), 1);
        let error = opened.expect_err("no cache").to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        assert!(error.contains("HULL_CACHE"), "{error}");
    }
}

/// The place by these variables.
fn place(variables: &[(&str, &str)]) -> Result<Place, CacheError> {
    Place::by(|name| {
        let found = variables.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| value.into())
    })
}

#[test]
fn the_environment_says_where_and_how_much() {
    let here = std::env::current_dir().unwrap();
    let here = here.join("x").display().to_string();
    let home = ("HOME", "/home/a");
    for (variables, path, limit) in [
        (&[home][..], "/home/a/.cache/hull/templates", 4 << 30),
        (
            &[home, ("XDG_CACHE_HOME", "/c")],
            "/c/hull/templates",
            4 << 30,
        ),
        (
            &[home, ("XDG_CACHE_HOME", "c")],
            "/home/a/.cache/hull/templates",
            4 << 30,
        ),
        (&[home, ("HULL_CACHE", "/t")], "/t", 4 << 30),
        (&[("HULL_CACHE", "x")], &here, 4 << 30),
        (
            &[("HULL_CACHE", "/t"), ("HULL_CACHE_SIZE", "2G")],
            "/t",
            2 << 30,
        ),
        (
            &[("HULL_CACHE", "/t"), ("HULL_CACHE_SIZE", "70k")],
            "/t",
            70 << 10,
        ),
        (&[("HULL_CACHE", "/t"), ("HULL_CACHE_SIZE", "5")], "/t", 5),
        (
            &[("HULL_CACHE", "/t"), ("HULL_CACHE_SIZE", "9999999999999T")],
            "/t",
            u64::MAX,
        ),
    ] {
        let found = place(variables).expect("a place");
        assert_eq!(
            (found.path.to_str().unwrap(), found.limit),
            (path, limit),
            "{variables:?}"
        );
    }
    for (variables, why) in [
        (&[][..], "none of HULL_CACHE"),
        (&[("HOME", "")], "none of HULL_CACHE"),
        (&[home, ("HULL_CACHE", "off")], "HULL_CACHE=off"),
        (&[home, ("HULL_CACHE", "")], "HULL_CACHE= turns"),
        (&[home, ("HULL_CACHE_SIZE", "0")], "HULL_CACHE_SIZE=0"),
        (&[home, ("HULL_CACHE_SIZE", "")], "HULL_CACHE_SIZE=: not a"),
        (&[home, ("HULL_CACHE_SIZE", "G")], "HULL_CACHE_SIZE=G"),
        (&[home, ("HULL_CACHE_SIZE", "-1")], "HULL_CACHE_SIZE=-1"),
        (&[home, ("HULL_CACHE_SIZE", "1é")], "HULL_CACHE_SIZE=1é"),
    ] {
        let error = place(variables).expect_err("none").to_string();
        assert!(error.contains(why), "{variables:?}: {error}");
    }
}

#[test]
fn the_folder_is_made_for_us_alone() {
    let home = home();
    let path = home.path().display().to_string();
    let place = place(&[("HOME", &path)]).unwrap();
    place.make().unwrap();
    place.make().expect("there it is");
    for folder in [".cache", ".cache/hull", ".cache/hull/templates"] {
        let about = fs::metadata(home.path().join(folder)).unwrap();
        assert_eq!(about.permissions().mode() & 0o777, 0o700, "{folder}");
    }
    cache_of(&place.path, 1);
    // Below a folder of another user nothing is made: /proc is root's, and root cannot either.
    let proc = super::tests::place(&[("HOME", "/proc")]).unwrap();
    proc.make().unwrap_err();
}

/// What `cache` gives of an unpacked guest, and what it tells.
fn unpacked(cache: &Cache, id: &str, parts: &[&[u8]; 2]) -> (Option<Vec<Vec<u8>>>, Vec<String>) {
    let told = std::cell::RefCell::new(Vec::new());
    let tell = |line: &str| told.borrow_mut().push(line.to_string());
    let images = patiently(|| {
        told.borrow_mut().clear();
        cache.unpacked(id, parts.map(packed), &tell)
    });
    let read = |image: Image| image.read(0, usize::MAX).unwrap().into_owned();
    (images.map(|all| all.map(read).into()), told.into_inner())
}

#[test]
fn an_unpacked_guest_is_kept_until_it_is_changed() {
    let home = home();
    let cache = cache_of(home.path(), 1 << 30);
    let kernel: Vec<u8> = (0..200_000u32).flat_map(|at| at.to_le_bytes()).collect();
    let parts: [&[u8]; 2] = [&kernel, b"archive"];
    let right = Some(vec![parts[0].to_vec(), parts[1].to_vec()]);
    let file = home.path().join("guest-a");
    let inode = || fs::metadata(&file).unwrap().ino();
    assert_eq!(unpacked(&cache, "a", &parts), (right.clone(), vec![]));
    let first = inode();
    assert_eq!(unpacked(&cache, "a", &parts), (right.clone(), vec![]));
    assert_eq!(inode(), first, "it is not written again");
    let writable = || {
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&file, mode).unwrap();
        fs::OpenOptions::new().write(true).open(&file).unwrap()
    };
    let spoil: [(&dyn Fn(), &str); 4] = [
        (
            &|| writable().write_all_at(b"x", 5).unwrap(),
            " was changed",
        ),
        (&|| writable().set_len(5000).unwrap(), " was cut short"),
        (
            &|| {
                fs::remove_file(&file).unwrap();
                symlink("/etc/passwd", &file).unwrap();
            },
            " cannot be read",
        ),
        // A power cut in between, and another boot of the host, are told to none.
        (
            &|| fs::write(home.path().join("guest-a.is"), "other").unwrap(),
            "",
        ),
    ];
    for (spoil, told) in spoil {
        spoil();
        let (content, lines) = unpacked(&cache, "a", &parts);
        assert_eq!(content, right, "{told}");
        assert_eq!(lines.len(), usize::from(!told.is_empty()), "{told}");
        assert!(lines.iter().all(|line| line.contains(told)), "{lines:?}");
        assert_eq!(unpacked(&cache, "a", &parts), (right.clone(), vec![]));
    }
    // The files of a few other programs stay.
    for id in ["b", "c", "d", "e", "f"] {
        assert_eq!(unpacked(&cache, id, &parts), (right.clone(), vec![]));
    }
    let kept = |name: &String| name.starts_with("guest-") && !name.ends_with(".is");
    assert_eq!(inside(home.path()).iter().filter(|it| kept(it)).count(), 4);
    cache.remove_all().unwrap();
    assert_eq!(inside(home.path()), ["lock"]);
}

#[test]
fn a_guest_that_cannot_be_kept_unpacked_is_not() {
    let home = home();
    let parts: [&[u8]; 2] = [&[1; 5000], b"archive"];
    let small = cache_of(home.path(), 9000);
    assert_eq!(unpacked(&small, "a", &parts), (None, vec![]));
    let cache = cache_of(home.path(), 1 << 20);
    let lock = fs::File::open(home.path().join("lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(
        unpacked(&cache, "a", &parts),
        (None, vec![]),
        "another hull writes"
    );
    assert_eq!(inside(home.path()), ["lock"]);
    lock.unlock().unwrap();
    assert!(unpacked(&cache, "a", &parts).0.is_some());
}
