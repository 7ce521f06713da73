//! Archives of images: layers of all kinds, packed or not, under the documents of OCI and docker, from the stream
//! that `hull run --image -` reads to the disk that a guest gets.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use hull::image::{Digest, Image, ImageError, Store, from_stream};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::packed::{Compression, stream};
use crate::patch::Patches;

/// The reader that hull's own tests have.
#[path = "../../src/image/tests/disk.rs"]
pub mod disk;

/// Most bytes that the store takes.
const LIMIT: u64 = 4 << 20;
/// Most bytes of a disk that is read: of a damaged layer, a file may be a hole of any size.
const MAX_DISK: u64 = 16 << 20;
const MAX_LAYERS: usize = 4;
const MAX_STEPS: usize = 24;

/// An archive.
#[derive(Arbitrary, Debug)]
pub struct Input {
    layers: Vec<Layer>,
    form: Form,
    mistake: Option<Mistake>,
    /// Damage to all of it.
    patches: Patches,
}

#[derive(Arbitrary, Debug)]
struct Layer {
    steps: Vec<Step>,
    packing: Option<Compression>,
    /// Damage to the plain archive, before its digest is taken; with right sums of its headers.
    patches: Patches,
}

/// What an archive is.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Form {
    /// An OCI archive, with so many indexes one inside another.
    Oci(u8),
    Docker,
    /// A root file system: the first layer.
    Plain,
}

/// What is wrong with an OCI archive.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Mistake {
    Size,
    LayerDigest,
    PlainDigest,
    OtherPlatform,
    OneLayerLess,
    NoBlob,
    NoConfiguration,
}

/// An entry of a layer. Folders are called a to c and all else f to h, so that no path leads through a file.
#[derive(Arbitrary, Debug)]
enum Step {
    Folder(Way),
    File(Way, u8, u16),
    Symlink(Way),
    Link(Way, Way),
    Fifo(Way),
    Whiteout(Way),
    NoFolder(Way),
    Opaque(Way),
    /// Before another: attributes, times and numbers of PAX, which change nothing of the rest.
    Pax(u8),
}

/// A path.
#[derive(Arbitrary, Debug)]
struct Way {
    depth: u8,
    names: [u8; 4],
}

impl Way {
    fn folder(&self) -> String {
        let depth = usize::from(self.depth % 3) + 1;
        let names = self.names.iter().take(depth);
        let names = names.map(|name| char::from(b'a' + name % 3).to_string());
        names.collect::<Vec<_>>().join("/")
    }

    fn leaf(&self) -> String {
        let name = char::from(b'f' + self.names[3] % 3);
        match self.depth / 3 % 2 {
            0 => name.to_string(),
            _ => format!("{}/{name}", self.folder()),
        }
    }
}

/// What the layers mean, in the simplest way: the number of the file, and its kind and content, by the path.
#[derive(Default)]
struct Model {
    files: BTreeMap<String, (usize, String)>,
    last: usize,
}

impl Model {
    fn remove_below(&mut self, path: &str) {
        let below = format!("{path}/");
        self.files.retain(|other, _| !other.starts_with(&below));
    }

    fn put(&mut self, path: &str, content: String) {
        for (at, _) in path.match_indices('/') {
            self.last += 1;
            let folder = (self.last, "folder".to_string());
            self.files.entry(path[..at].into()).or_insert(folder);
        }
        if content == "folder" && self.files.contains_key(path) {
            return;
        }
        self.last += 1;
        self.files.insert(path.into(), (self.last, content));
    }

    /// What a layer takes away, which is done before it adds anything.
    fn take_away(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Whiteout(way) => _ = self.files.remove(&way.leaf()),
                Step::NoFolder(way) => {
                    self.files.remove(&way.folder());
                    self.remove_below(&way.folder());
                }
                Step::Opaque(way) => self.remove_below(&way.folder()),
                _ => {}
            }
        }
    }
}

/// An archive that is being written.
struct Archive(Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn add(&mut self, kind: EntryType, path: &str, link: &str, data: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_size(data.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_path(path).unwrap();
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        header.set_cksum();
        self.0.append(&header, data).unwrap();
    }

    fn file(&mut self, path: &str, data: &[u8]) {
        self.add(EntryType::Regular, path, "", data);
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// The archive of a layer, and what it means over those below.
fn layer(steps: &[Step], model: &mut Model) -> Vec<u8> {
    model.take_away(steps);
    let mut archive = Archive::new();
    for step in steps {
        match step {
            Step::Folder(way) => {
                model.put(&way.folder(), "folder".into());
                archive.add(EntryType::Directory, &way.folder(), "", b"");
            }
            Step::File(way, byte, len) => {
                let content = vec![*byte; usize::from(len % 1500)];
                let first = content.first().unwrap_or(&0);
                model.put(&way.leaf(), format!("file {first} {}", content.len()));
                archive.file(&way.leaf(), &content);
            }
            Step::Symlink(way) => {
                model.put(&way.leaf(), "link ../x 4".into());
                archive.add(EntryType::Symlink, &way.leaf(), "../x", b"");
            }
            Step::Fifo(way) => {
                model.put(&way.leaf(), "file 0 0".into());
                archive.add(EntryType::Fifo, &way.leaf(), "", b"");
            }
            Step::Link(way, target) => {
                // One without a target is refused.
                if let Some(there) = model.files.get(&target.leaf()).cloned() {
                    model.put(&way.leaf(), String::new());
                    model.files.insert(way.leaf(), there);
                    archive.add(EntryType::Link, &way.leaf(), &target.leaf(), b"");
                }
            }
            Step::Whiteout(way) => {
                let leaf = way.leaf();
                archive.file(&hidden(&leaf), b"");
            }
            Step::NoFolder(way) => archive.file(&hidden(&way.folder()), b""),
            Step::Opaque(way) => archive.file(&format!("{}/.wh..wh..opq", way.folder()), b""),
            Step::Pax(which) => {
                let pairs: &[(&str, &[u8])] = match which % 4 {
                    0 => &[("mtime", b"1700000000.123456789")],
                    1 => &[("SCHILY.xattr.user.name", b"value")],
                    2 => &[("uid", b"4000000000"), ("gid", b"7")],
                    _ => &[("comment", b"nothing")],
                };
                archive
                    .0
                    .append_pax_extensions(pairs.iter().copied())
                    .unwrap();
            }
        }
    }
    // What stands before nothing.
    archive.add(EntryType::Directory, "a", "", b"");
    model.put("a", "folder".into());
    archive.bytes()
}

fn hidden(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((folder, name)) => format!("{folder}/.wh.{name}"),
        None => format!(".wh.{path}"),
    }
}

/// Make the sums of what looks like headers right again.
fn mend(archive: &mut [u8]) {
    for header in archive.chunks_exact_mut(512) {
        if header[257..262] == *b"ustar" {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
}

/// A layer: the plain archive, and as it is packed.
struct Made {
    plain: Vec<u8>,
    packed: Vec<u8>,
}

fn pack(plain: &[u8], packing: Option<Compression>) -> Vec<u8> {
    match packing {
        // These are not of images.
        None | Some(Compression::Lzma | Compression::Lz4) => plain.to_vec(),
        Some(packing) => stream(packing, plain),
    }
}

fn configuration(layers: &[Made], mistake: Option<Mistake>) -> Vec<u8> {
    let mut ids: Vec<String> = layers.iter().map(|it| digest(&it.plain)).collect();
    let mut architecture = "amd64";
    match mistake {
        Some(Mistake::PlainDigest) => ids[0] = digest(b"another"),
        Some(Mistake::OneLayerLess) => _ = ids.pop(),
        Some(Mistake::OtherPlatform) => architecture = "arm64",
        _ => {}
    }
    let config = json!({
        "architecture": architecture, "os": "linux", "config": { "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": ids },
    });
    config.to_string().into_bytes()
}

fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// A file of an OCI archive, and what describes it.
fn blob(archive: &mut Archive, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    archive.file(&format!("blobs/sha256/{}", digest.hex()), bytes);
    json!({ "mediaType": "x", "digest": digest.to_string(), "size": bytes.len() })
}

fn oci(layers: &[Made], depth: u8, mistake: Option<Mistake>) -> Vec<u8> {
    let mut archive = Archive::new();
    archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    let described = layers.iter().enumerate().map(|(index, layer)| {
        let mut elsewhere = Archive::new();
        let first = mistake.filter(|_| index == 0);
        let to = match first {
            Some(Mistake::NoBlob) => &mut elsewhere,
            _ => &mut archive,
        };
        let mut it = blob(to, &layer.packed);
        match first {
            Some(Mistake::Size) => it["size"] = (layer.packed.len() + 1).into(),
            Some(Mistake::LayerDigest) => {
                let other = digest(b"another");
                archive.file(&format!("blobs/sha256/{}", &other[7..]), &layer.packed);
                it["digest"] = other.into();
            }
            _ => {}
        }
        it
    });
    let described: Vec<Value> = described.collect();
    let config = blob(&mut archive, &configuration(layers, mistake));
    let mut manifest = json!({ "schemaVersion": 2, "config": config, "layers": described });
    if let Some(Mistake::NoConfiguration) = mistake {
        manifest["config"] = Value::Null;
    }
    let mut top = blob(&mut archive, manifest.to_string().as_bytes());
    for _ in 0..depth % 3 {
        top["platform"] = json!({ "architecture": "amd64", "os": "linux" });
        let other = json!({
            "digest": digest(b"other"), "size": 5, "platform": { "architecture": "arm64", "os": "linux" },
        });
        let index = json!({ "schemaVersion": 2, "manifests": [other, top] });
        top = blob(&mut archive, index.to_string().as_bytes());
    }
    let index = json!({ "schemaVersion": 2, "manifests": [top] });
    archive.file("index.json", index.to_string().as_bytes());
    archive.bytes()
}

fn docker(layers: &[Made]) -> Vec<u8> {
    let (mut archive, mut names) = (Archive::new(), Vec::<String>::new());
    for (index, layer) in layers.iter().enumerate() {
        let same = layers[..index]
            .iter()
            .position(|it| it.plain == layer.plain);
        names.push(format!("{index}/layer.tar"));
        match same {
            // As docker's old archives have it.
            Some(same) => {
                let link = format!("../{}", names[same]);
                archive.add(EntryType::Symlink, &names[index], &link, b"");
            }
            None => archive.file(&names[index], &layer.packed),
        }
    }
    archive.file("c.json", &configuration(layers, None));
    let manifest = json!([{ "Config": "c.json", "RepoTags": ["app:1"], "Layers": names }]);
    archive.file("manifest.json", manifest.to_string().as_bytes());
    archive.bytes()
}

/// A store, which is empty.
fn store() -> (PathBuf, Store) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| crate::folder("images"));
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    for inner in fs::read_dir(folder).unwrap().flatten() {
        for file in fs::read_dir(inner.path()).into_iter().flatten().flatten() {
            fs::remove_file(file.path()).unwrap();
        }
    }
    (folder.clone(), Store::at(folder.clone(), LIMIT).unwrap())
}

/// The bytes of the image's disk, unless they are too many to be read.
fn disk_of(store: &Store, image: &Image) -> Option<Vec<u8>> {
    let mut disk = Vec::new();
    for path in store.files(image) {
        if fs::metadata(&path).unwrap().len() + disk.len() as u64 > MAX_DISK {
            return None;
        }
        disk.extend(fs::read(&path).unwrap());
        disk.resize(disk.len().next_multiple_of(512), 0);
    }
    Some(disk)
}

/// Kind, content and its length in words, as the model has them.
fn what(found: &disk::Found) -> String {
    match found.mode & 0o170_000 {
        0o040_000 => found.what(),
        _ => format!("{} {}", found.what(), found.content.len()),
    }
}

fn compare(disk: &[u8], model: &Model) {
    let found = disk::read(disk);
    let seen: BTreeMap<&String, String> = found.iter().map(|(path, it)| (path, what(it))).collect();
    let files = model.files.iter();
    let meant: BTreeMap<&String, String> = files.map(|(path, it)| (path, it.1.clone())).collect();
    assert_eq!(seen, meant);
    for (path, (number, content)) in &model.files {
        let names = model.files.iter().filter(|(_, it)| it.0 == *number);
        for (other, _) in names.clone() {
            assert_eq!(found[path].inode, found[other].inode, "{path} and {other}");
        }
        if content != "folder" {
            assert_eq!(found[path].links as usize, names.count(), "{path}");
        }
    }
}

/// Add the image, and read its disk.
pub fn check(input: &Input) {
    let mut model = Model::default();
    let mut whole = input.patches.is_empty();
    let form = input.form;
    let most = if form == Form::Plain { 1 } else { MAX_LAYERS };
    let mut layers = Vec::new();
    for it in input.layers.iter().take(most) {
        let steps = &it.steps[..it.steps.len().min(MAX_STEPS)];
        let mut plain = layer(steps, &mut model);
        if !it.patches.is_empty() {
            it.patches.apply(&mut plain);
            mend(&mut plain);
            whole = false;
        }
        let packed = pack(&plain, it.packing);
        layers.push(Made { plain, packed });
    }
    if layers.is_empty() {
        return;
    }
    let mistake = input.mistake.filter(|mistake| {
        let (first, others) = (&layers[0].packed, &layers[1..]);
        // The same blob may be there for another layer.
        let no_blob = matches!(mistake, Mistake::NoBlob);
        let there = no_blob && others.iter().any(|it| it.packed == *first);
        matches!(form, Form::Oci(_)) && !there
    });
    let mut archive = match form {
        Form::Oci(depth) => oci(&layers, depth, mistake),
        Form::Docker => docker(&layers),
        Form::Plain => layers.swap_remove(0).packed,
    };
    input.patches.apply(&mut archive);
    let (folder, store) = store();
    let added: Result<Image, ImageError> = from_stream(&store, &mut &archive[..], "-", &mut |_| {});
    let left = fs::read_dir(folder.join("partial")).unwrap().count();
    assert_eq!(left, 0, "something half is left");
    match added {
        Ok(image) => {
            assert!(mistake.is_none() || !whole, "{mistake:?} was not noticed");
            if let Some(disk) = disk_of(&store, &image) {
                match whole {
                    true => compare(&disk, &model),
                    false => _ = disk::read(&disk),
                }
            }
        }
        Err(error) => {
            assert!(!whole || mistake.is_some(), "{error}");
            assert!(!error.to_string().is_empty());
            assert!(store.images().is_empty(), "it has a name: {error}");
        }
    }
}
