//! How a restore recognizes a disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use smallvec::smallvec;
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
        let from = smallvec![Segment {
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
        Source::Scratch(_) | Source::Joined(_) | Source::Ext4(_) => panic!("no image"),
    }
}

/// Open a disk. Until its exec, a child that another test starts holds the locks of this whole process.
fn open(config: &Config) -> Disk {
    loop {
        match Disk::open(config) {
            Err(DiskError::InUse { .. }) => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

fn identity(config: &Config) -> Identity {
    let disk = open(config);
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
        let disk = open(&config);
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
        let disk = open(&config);
        let then = disk.origin().identity().unwrap();
        disk.serve(&images.memory, &[Request::Flush]);
        assert_eq!(disk.origin().identity().unwrap(), then);
        assert_eq!(then.check(&identity(&config)), Ok(()));
        images.write(&disk);
        let refused = disk.origin().identity().unwrap_err().to_string();
        assert!(refused.contains("a snapshot cannot keep it"), "{refused}");
    }
}

/// What `qemu-img` says; it must succeed.
fn qemu_img(arguments: &[&str]) -> String {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

/// Each format does for a guest what a raw image does, as `qemu-img` sees it: all options by which it
/// makes qcow2 images, with content, a base, and a snapshot inside.
#[test]
fn every_format_does_what_a_raw_image_does() {
    use crate::devices::virtio::block::Range;
    const BYTES: u64 = 4 << 20;
    let images = Images::new();
    let text = |path: &Path| path.to_str().unwrap().to_string();
    let content: Vec<u8> = (0..BYTES).map(|at| (at >> 9) as u8 | 1).collect();
    let (base, raw) = (images.path("base"), images.path("raw"));
    fs::write(&base, &content).unwrap();
    fs::write(&raw, &content).unwrap();
    let range = |at, len, unmap| Range { at, len, unmap };
    let zeroes = |range| Request::WriteZeroes {
        ranges: vec![range],
        stable: false,
    };
    let work = [
        Request::Discard(vec![range(1 << 20, 1 << 20, false), range(0, 512, false)]),
        zeroes(range(65536, 65536, false)),
        zeroes(range((2 << 20) + 512, 1024, false)),
        zeroes(range(3 << 20, 256 << 10, true)),
        zeroes(range((3 << 20) + 300_032, 8192, true)),
        Request::Flush,
    ];
    // What was discarded is undefined: it is written afterwards.
    let blank = [
        zeroes(range(1 << 20, 1 << 20, false)),
        zeroes(range(0, 512, false)),
        Request::Flush,
    ];
    let blocks = |path: &Path| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap());
    let serve = |config: &Config, path: &Path| {
        let disk = open(config);
        let before = blocks(path);
        for served in disk.serve(&images.memory, &work) {
            served.unwrap();
        }
        disk.write_back().unwrap();
        let freed = before.saturating_sub(blocks(path)) * 512;
        for served in disk.serve(&images.memory, &blank) {
            served.unwrap();
        }
        images.write(&disk);
        disk.write_back().unwrap();
        freed
    };
    let raw_freed = serve(&config(raw.clone()), &raw);
    assert!(raw_freed >= 1 << 20, "{raw_freed}");
    for (options, gives_back) in [
        ("compat=0.10", false),
        ("compat=1.1", true),
        ("cluster_size=512", true),
        ("cluster_size=4k", true),
        ("cluster_size=2M", true),
        ("lazy_refcounts=on", true),
        ("refcount_bits=1", true),
        ("refcount_bits=64", true),
        ("preallocation=metadata", true),
        ("preallocation=falloc", true),
        ("preallocation=full", true),
        ("compat=0.10 base", false),
        ("compat=1.1 base", false),
        ("compat=1.1 compressed", false),
        ("compat=1.1 snapshot", false),
        ("compat=1.1 bitmap", true),
    ] {
        let path = images.path("image");
        let _ = fs::remove_file(&path);
        let (option, with) = options.split_once(' ').unwrap_or((options, ""));
        let mut config = config(path.clone());
        let (image, from) = (text(&path), text(&base));
        if with == "base" {
            let create = [
                "create", "-q", "-f", "qcow2", "-o", option, "-F", "raw", "-b",
            ];
            qemu_img(&[&create[..], &[&from, &image]].concat());
            config.backing = vec![base.clone()];
        } else {
            let mut convert = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", option];
            convert.extend((with == "compressed").then_some("-c"));
            convert.extend([from.as_str(), image.as_str()]);
            qemu_img(&convert);
        }
        match with {
            "snapshot" => drop(qemu_img(&["snapshot", "-c", "one", &image])),
            "bitmap" => drop(qemu_img(&["bitmap", "--add", &image, "bits"])),
            _ => {}
        }
        let freed = serve(&config, &path);
        assert_eq!(freed >= 1 << 20, gives_back, "{options}: {freed} bytes");
        let compared = qemu_img(&["compare", "-f", "raw", "-F", "qcow2", &text(&raw), &image]);
        assert!(
            compared.contains("Images are identical"),
            "{options}: {compared}"
        );
        let check = Command::new("qemu-img")
            .args(["check", "-q", &image])
            .status();
        // 3: clusters without a use, such as those of bitmaps.
        let sound = if with == "bitmap" { [0, 3] } else { [0, 0] };
        let status = check.unwrap().code().unwrap();
        assert!(sound.contains(&status), "{options}: {status}");
        if with == "snapshot" {
            qemu_img(&["snapshot", "-a", "one", &image]);
            let compared = qemu_img(&["compare", "-f", "raw", "-F", "qcow2", &from, &image]);
            assert!(compared.contains("Images are identical"), "{compared}");
        }
    }
    for (option, expected) in [
        ("extended_l2=on", "-o extended_l2=off"),
        ("compression_type=zstd", "-o compression_type=zlib"),
    ] {
        let path = images.path("image");
        let _ = fs::remove_file(&path);
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            option,
            &text(&path),
            "1M",
        ]);
        let refused = Disk::open(&config(path)).err().unwrap().to_string();
        assert!(
            refused.contains(option) && refused.contains(expected),
            "{refused}"
        );
    }
}
