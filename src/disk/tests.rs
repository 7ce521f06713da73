//! How a restore recognizes a disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use vm_memory::GuestAddress;

use std::path::Path;

use super::*;
use crate::devices::virtio::block::Request;
use crate::memory::GuestMemory;
use crate::memory::transfer::Segment;

const SIZE: u64 = 1 << 20;

struct Images {
    folder: TempDir,
    memory: GuestMemory,
}

impl Images {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            memory: GuestMemory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A raw image that was last written an hour ago.
    fn raw(&self, name: &str) -> Config {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(SIZE).unwrap();
        self.age(&path, 3600);
        config(path)
    }

    /// A qcow2 image over the raw one `base`, an hour old.
    fn qcow2(&self, name: &str, base: &Config) -> Config {
        let (path, base) = (self.path(name), image(base));
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
        assert!(create.arg(&base).arg(&path).status().unwrap().success());
        self.age(&path, 3600);
        let backing = vec![base];
        Config {
            backing,
            ..config(path)
        }
    }

    fn age(&self, path: &Path, seconds: u64) {
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 - seconds);
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(then).unwrap();
    }

    fn write(&self, disk: &Disk) {
        let from = vec![Segment {
            addr: GuestAddress(0),
            len: 512,
        }];
        let write = Request::Write {
            at: 4096,
            from,
            stable: false,
        };
        for served in disk.serve(&self.memory, &[write]) {
            served.unwrap();
        }
    }
}

fn config(path: PathBuf) -> Config {
    Config {
        root: false,
        source: Source::Image(path),
        read_only: false,
        name: None,
        cache: Cache::Writeback,
        format: None,
        backing: Vec::new(),
        overlay: false,
        limits: Limits::default(),
    }
}

fn image(config: &Config) -> PathBuf {
    match &config.source {
        Source::Image(path) => path.clone(),
        Source::Scratch(_) => panic!("no image"),
    }
}

fn identity(config: &Config) -> Identity {
    let disk = Disk::open(config).unwrap();
    disk.origin().identity().unwrap()
}

#[test]
fn an_untouched_disk_is_the_same_and_so_is_a_copy() {
    let images = Images::new();
    let raw = images.raw("raw");
    let then = identity(&raw);
    assert_eq!(then.check(&identity(&raw)), Ok(()));
    let bytes = postcard::to_allocvec(&then).unwrap();
    assert_eq!(postcard::from_bytes::<Identity>(&bytes).unwrap(), then);

    let copy = images.raw("copy");
    let now = identity(&copy);
    assert_ne!(now.files[0].inode, then.files[0].inode);
    assert_eq!(then.check(&now), Ok(()));
}

#[test]
fn writes_before_the_save_are_part_of_the_disk() {
    let images = Images::new();
    let base = images.raw("base");
    for config in [images.raw("raw"), images.qcow2("qcow2", &base)] {
        let before = identity(&config);
        let disk = Disk::open(&config).unwrap();
        images.write(&disk);
        let then = disk.origin().identity().unwrap();
        // Nothing was left to be written when hull ends.
        drop(disk);
        let path = image(&config);
        assert_eq!(then.check(&identity(&config)), Ok(()));
        let written = Err(Changed::Written { path: path.clone() });
        if before.files[0].len == then.files[0].len {
            assert_eq!(before.check(&then), written);
        } else {
            assert!(
                matches!(before.check(&then), Err(Changed::Size { path: of, .. }) if of == path)
            );
        }
        assert!(fs::metadata(&path).unwrap().len() > 0);
    }
}

#[test]
fn a_changed_image_is_refused_by_name_and_so_is_a_changed_base() {
    let images = Images::new();
    let base = images.raw("base");
    let based = images.qcow2("based", &base);
    let overlay = Config {
        overlay: true,
        ..base.clone()
    };
    let then = [&based, &overlay].map(identity);
    assert_eq!(then[0].files.len(), 2);
    images.age(&image(&base), 5);
    for (then, config) in then.iter().zip([&based, &overlay]) {
        let changed = then.check(&identity(config)).unwrap_err();
        let path = image(&base);
        assert_eq!(changed, Changed::Written { path: path.clone() });
        assert!(changed.to_string().starts_with(path.to_str().unwrap()));
    }

    let raw = images.raw("raw");
    let then = identity(&raw);
    let file = File::options().write(true).open(image(&raw)).unwrap();
    file.write_at(&[0; 512], SIZE).unwrap();
    let changed = then.check(&identity(&raw)).unwrap_err();
    assert_eq!(
        changed,
        Changed::Size {
            path: image(&raw),
            then: SIZE,
            now: SIZE + 512
        }
    );
}

#[test]
fn a_disk_that_is_opened_in_another_way_is_refused() {
    let images = Images::new();
    let raw = images.raw("raw");
    let then = identity(&raw);
    let scratch = Source::Scratch(SIZE);
    let read_only = Config {
        read_only: true,
        ..raw.clone()
    };
    let overlay = Config {
        overlay: true,
        ..raw.clone()
    };
    let scratch = Config {
        source: scratch,
        ..raw.clone()
    };
    let based = images.qcow2("based", &raw);
    for other in [read_only, overlay, scratch, based] {
        let now = identity(&other);
        for (then, now) in [(&then, &now), (&now, &then)] {
            let changed = then.check(now).unwrap_err();
            assert!(matches!(changed, Changed::Kind { .. }), "{changed}");
        }
    }
}

#[test]
fn temporary_files_are_not_part_of_a_snapshot() {
    let images = Images::new();
    let raw = images.raw("raw");
    let overlay = Config {
        overlay: true,
        ..raw.clone()
    };
    let scratch = Config {
        source: Source::Scratch(SIZE),
        ..raw.clone()
    };
    for config in [overlay, scratch] {
        let disk = Disk::open(&config).unwrap();
        let then = disk.origin().identity().unwrap();
        disk.serve(&images.memory, &[Request::Flush]);
        assert_eq!(disk.origin().identity().unwrap(), then);
        assert_eq!(then.check(&identity(&config)), Ok(()));
        images.write(&disk);
        let refused = disk.origin().identity().unwrap_err().to_string();
        assert!(refused.contains("a snapshot cannot keep it"), "{refused}");
    }
}
