//! Layers of many kinds, merged and read back from the disk that is made of them.

mod disk;
mod hostile;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;

use ::tar::{Builder, EntryType, Header};
use proptest::prelude::*;

use super::{erofs, tar, tree};
use disk::{Found, read};

/// An archive that is being written.
pub(super) struct Archive(Builder<Vec<u8>>);

impl Archive {
    pub(super) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Add an entry of this kind; `link` is the text of a link.
    pub(super) fn add(mut self, kind: EntryType, path: &str, link: &str, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_000);
        header.set_size(data.len() as u64);
        // Names that the builder would refuse, as an attacker writes them.
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        let text = &mut header.as_old_mut().linkname;
        text[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, data).expect("in memory");
        self
    }

    pub(super) fn file(self, path: &str, data: &[u8]) -> Self {
        self.add(EntryType::Regular, path, "", data)
    }

    pub(super) fn pax(mut self, pairs: &[(&str, &[u8])]) -> Self {
        let pairs = pairs.iter().copied();
        self.0.append_pax_extensions(pairs).expect("in memory");
        self
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().expect("in memory")
    }
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file
}

/// The disk of these layers.
pub(super) fn image(layers: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    let mut merged = tree::Tree::default();
    let mut files = Vec::new();
    for layer in layers {
        let file = file_of(layer);
        let mut entries = merged.layer();
        tar::walk(&file, |entry| entries.add(entry))?;
        entries.finish()?;
        files.push(file);
    }
    let index = tempfile::NamedTempFile::new().expect("a file");
    erofs::write(&merged, &files, index.as_file()).map_err(|error| error.to_string())?;
    let mut disk = std::fs::read(index.path()).expect("the index");
    for layer in layers {
        disk.extend(layer);
        disk.resize(disk.len().next_multiple_of(512), 0);
    }
    Ok(disk)
}

pub(super) fn files(layers: &[Vec<u8>]) -> BTreeMap<String, Found> {
    read(&image(layers).expect("an image"))
}

#[derive(Clone, Debug)]
enum Op {
    Folder(String),
    File(String, u8),
    Symlink(String),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
}

/// Folders are called a, b and c, all else f, g and h: so no path leads through a file.
fn ops() -> impl Strategy<Value = Op> {
    let folder = "[abc](/[abc]){0,2}";
    let leaf = "([abc]/){0,3}[fgh]";
    prop_oneof![
        folder.prop_map(Op::Folder),
        (leaf, any::<u8>()).prop_map(|(path, byte)| Op::File(path, byte)),
        leaf.prop_map(Op::Symlink),
        (leaf, leaf).prop_map(|(path, target)| Op::Link(path, target)),
        leaf.prop_map(Op::Whiteout),
        folder.prop_map(Op::Whiteout),
        folder.prop_map(Op::Opaque),
    ]
}

/// What the layers mean, in the simplest way: a map from paths to the number and content of a file.
#[derive(Default)]
struct Model(BTreeMap<String, (usize, String)>, usize);

impl Model {
    fn remove_below(&mut self, path: &str) {
        self.0
            .retain(|other, _| !other.starts_with(&format!("{path}/")));
    }

    fn put(&mut self, path: &str, content: Option<String>) {
        let parents = path
            .match_indices('/')
            .map(|(at, _)| path[..at].to_string());
        let folder = content.is_none().then(|| path.to_string());
        for path in parents.chain(folder) {
            self.1 += 1;
            self.0.entry(path).or_insert((self.1, "folder".into()));
        }
        if let Some(content) = content {
            self.1 += 1;
            self.0.insert(path.into(), (self.1, content));
        }
    }

    /// The archive of a layer, the links of which all have a target.
    fn layer(&mut self, ops: &[Op]) -> Vec<u8> {
        for op in ops {
            match op {
                Op::Whiteout(path) => {
                    self.0.remove(path);
                    self.remove_below(path);
                }
                Op::Opaque(path) => self.remove_below(path),
                _ => {}
            }
        }
        let mut archive = Archive::new();
        for op in ops {
            let split = |path: &String| match path.rsplit_once('/') {
                Some((folder, name)) => (format!("{folder}/"), name.to_string()),
                None => (String::new(), path.clone()),
            };
            archive = match op {
                Op::Folder(path) => {
                    self.put(path, None);
                    archive.add(EntryType::Directory, path, "", b"")
                }
                Op::File(path, byte) => {
                    self.put(path, Some(format!("file {byte}")));
                    archive.file(path, &[*byte; 700])
                }
                Op::Symlink(path) => {
                    self.put(path, Some("link ../x".into()));
                    archive.add(EntryType::Symlink, path, "../x", b"")
                }
                Op::Link(path, target) => match self.0.get(target).cloned() {
                    None => archive,
                    Some(there) => {
                        self.put(path, Some(String::new()));
                        self.0.insert(path.clone(), there);
                        archive.add(EntryType::Link, path, target, b"")
                    }
                },
                Op::Whiteout(path) => {
                    let (folder, name) = split(path);
                    archive.file(&format!("{folder}.wh.{name}"), b"")
                }
                Op::Opaque(path) => archive.file(&format!("{path}/.wh..wh..opq"), b""),
            };
        }
        archive.bytes()
    }
}

proptest! {
    #[test]
    fn layers_mean_what_the_model_says(
        layers in proptest::collection::vec(proptest::collection::vec(ops(), 0..12), 1..5),
    ) {
        let mut model = Model::default();
        let archives: Vec<_> = layers.iter().map(|ops| model.layer(ops)).collect();
        let found = files(&archives);
        let seen: BTreeMap<_, _> = found.iter().map(|(path, it)| (path.clone(), it.what())).collect();
        let meant: BTreeMap<_, _> = model.0.iter().map(|(path, it)| (path.clone(), it.1.clone())).collect();
        prop_assert_eq!(seen, meant);
        for (path, (number, _)) in &model.0 {
            let same = model.0.iter().filter(|(_, it)| it.0 == *number);
            for (other, _) in same.clone() {
                prop_assert_eq!(found[path].inode, found[other].inode);
            }
            if found[path].mode & 0o170_000 != 0o040_000 {
                prop_assert_eq!(found[path].links as usize, same.count());
            }
        }
    }
}

#[test]
fn all_that_a_file_has_is_kept() {
    let long_value = vec![b'v'; 3000];
    let long_text = "t/".repeat(40);
    let very_long = "n".repeat(255);
    let layer = Archive::new()
        .add(EntryType::Directory, "./", "", b"")
        .pax(&[
            ("mtime", b"1700000000.123456789"),
            ("SCHILY.xattr.user.long", &long_value),
            (
                "SCHILY.xattr.security.capability",
                b"\x01\0\0\x02\0\x04\0\0",
            ),
            ("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0"),
            ("SCHILY.xattr.other.not", b"x"),
            ("uid", b"4000000000"),
            ("path", very_long.as_bytes()),
        ])
        .file("short", b"content")
        .add(EntryType::Char, "null", "", b"")
        .add(EntryType::Fifo, "pipe", "", b"")
        .add(EntryType::Symlink, "link", &long_text, b"")
        .pax(&[("linkpath", "w".repeat(600).as_bytes())])
        .add(EntryType::Symlink, "longer", "", b"")
        .file("empty", b"")
        .bytes();
    let found = files(&[layer]);
    let file = &found[&very_long];
    assert_eq!(file.content, b"content");
    assert_eq!(
        (file.uid, file.gid, file.mode),
        (4_000_000_000, 8, 0o100_644)
    );
    assert_eq!(file.mtime, (1_700_000_000, 123_456_789));
    let xattrs: Vec<_> = file
        .xattrs
        .iter()
        .map(|(name, value)| (name.as_str(), value.len()))
        .collect();
    assert_eq!(
        xattrs,
        [("1:long", 3000), ("6:capability", 8), ("2:", 4)],
        "by prefix, the unknown one left out"
    );
    assert_eq!(found["link"].what(), format!("link {long_text}"));
    assert_eq!(found["longer"].what(), format!("link {}", "w".repeat(600)));
    assert_eq!(found["empty"].content, b"");
    assert_eq!(found["pipe"].mode, 0o010_644);
    assert_eq!(found["null"].mode, 0o020_644);
}

#[test]
fn a_folder_may_have_many_names() {
    let names: Vec<String> = (0..3000)
        .map(|n| format!("d/{n}-{}", "x".repeat(n % 90)))
        .collect();
    let archive = names
        .iter()
        .fold(Archive::new(), |archive, name| archive.file(name, b""));
    let found = files(&[archive.bytes()]);
    assert_eq!(found.len(), 3001);
    assert!(names.iter().all(|name| found.contains_key(name)));
}

#[test]
fn links_in_paths_are_followed_in_the_image_alone() {
    let below = Archive::new()
        .add(EntryType::Directory, "usr/lib", "", b"")
        .add(EntryType::Symlink, "lib", "usr/lib", b"")
        .add(EntryType::Symlink, "up", "../../../../usr", b"")
        .add(EntryType::Symlink, "etc", "/usr/etc", b"")
        .bytes();
    let above = Archive::new()
        .file("lib/a", b"")
        .file("up/lib/b", b"")
        .file("etc/passwd", b"")
        .add(EntryType::Link, "lib/c", "up/lib/b", b"")
        .file("up/lib/.wh.none", b"")
        .bytes();
    let found = files(&[below, above]);
    for path in ["usr/lib/a", "usr/lib/b", "usr/etc/passwd", "usr/lib/c"] {
        assert!(found.contains_key(path), "{path}: {:?}", found.keys());
    }
    assert_eq!(found["usr/lib/b"].inode, found["usr/lib/c"].inode);
    assert!(found["lib"].what().starts_with("link"), "the link stays");
}

#[test]
fn sparse_files_of_all_formats_have_their_holes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("sparse");
    let mut content = vec![0; 3 << 20];
    let file = File::create(&path).expect("made");
    file.set_len(content.len() as u64).expect("long");
    // More parts than the first header has places for.
    for part in 0..40u8 {
        let at = usize::from(part) * 64 * 1024;
        content[at..at + 5000].fill(part + 1);
        std::os::unix::fs::FileExt::write_all_at(&file, &content[at..at + 5000], at as u64)
            .expect("written");
    }
    drop(file);
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let made = std::process::Command::new("tar")
            .args(format)
            .args(["-S", "-cf", "-", "-C"])
            .arg(folder.path())
            .args(["sparse", "sparse"])
            .output()
            .expect("tar runs");
        assert!(made.status.success());
        assert!(made.stdout.len() < 1 << 20, "{format:?} has holes");
        let found = files(&[made.stdout]);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["sparse"], "{format:?}");
        assert!(found["sparse"].content == content, "{format:?}");
    }
}
