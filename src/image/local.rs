//! Images on this host: OCI layouts and archives, what `docker save` writes, and root file systems.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tempfile::NamedTempFile;

use super::add::{Contents, Packing, Progress, Step, Wanted, add, add_layer, finish, unpack};
use super::digest::{Digest, Hashing};
use super::document::{
    Configuration, Descriptor, Either, Execution, MAX_DOCUMENT, RootFs, document, parse,
};
use super::error::ImageError;
use super::members::Members;
use super::store::{Image, Store};
use crate::config::file::open;

/// What shows that members are an OCI layout, or of `docker save`.
const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";
const SAVED: &str = "manifest.json";
/// Annotations by which an index names its images.
const NAMES: [&str; 2] = [
    "org.opencontainers.image.ref.name",
    "io.containerd.image.name",
];
/// Deepest folder of a root file system.
const MAX_DEPTH: usize = 500;

/// An image of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Adds the image in the file or folder `text`, behind whose path `:NAME` may stand.
///
/// # Errors
/// There is none, or it cannot be added.
pub fn from_path(store: &Store, text: &str, progress: &mut Progress) -> Result<Image, ImageError> {
    let (path, wanted) = split(text);
    let about = fs::metadata(&path).map_err(ImageError::file(&path))?;
    let absolute = fs::canonicalize(&path).map_err(ImageError::file(&path))?;
    let suffix = wanted.as_ref().map(|name| format!(":{name}"));
    let name = format!("{}{}", absolute.display(), suffix.unwrap_or_default());
    if about.is_dir() {
        let (origin, wanted_name) = (None, wanted.as_deref());
        let wanted = Wanted { name, origin };
        return match path.join(LAYOUT).is_file() {
            true => layout(
                store,
                &path,
                Members::Folder(path.clone()),
                wanted,
                wanted_name,
                progress,
            ),
            false => folder(store, &path, wanted),
        };
    }
    let file = open(&path, u64::MAX).map_err(|reason| source(&path, reason))?;
    let origin = Some(identity(&about));
    // The same file as before needs no look.
    if let Some(known) = store.name(&name)
        && known.origin == origin
        && let Some(image) = store.image(&name)
    {
        return Ok(image);
    }
    archive(
        store,
        &path,
        file,
        Wanted { name, origin },
        wanted.as_deref(),
        progress,
    )
}

/// Adds the image in an archive that comes as a stream.
///
/// # Errors
/// As [`from_path`].
pub fn from_stream(
    store: &Store,
    stream: &mut dyn Read,
    name: &str,
    progress: &mut Progress,
) -> Result<Image, ImageError> {
    Stream::collect(store, stream)?.add(store, name, progress)
}

/// An archive that came as a stream.
pub struct Stream(NamedTempFile, Digest);

impl Stream {
    /// Write all of it to a file of the store.
    ///
    /// # Errors
    /// It cannot be read, is larger than the limit, or cannot be kept.
    pub fn collect(store: &Store, stream: &mut dyn Read) -> Result<Self, ImageError> {
        let mut file = store.fresh()?;
        let mut from = Hashing::new(stream);
        let digest = unpack(store, "the archive", &mut from, &mut file, &mut |_| {})?;
        Ok(Self(file, digest))
    }

    /// Add the image in it.
    ///
    /// # Errors
    /// As [`from_path`].
    pub fn add(
        self,
        store: &Store,
        name: &str,
        progress: &mut Progress,
    ) -> Result<Image, ImageError> {
        let name = match name {
            "-" => self.1.to_string(),
            name => name.into(),
        };
        let file = self.0.reopen().map_err(|error| store.full(error))?;
        let wanted = Wanted { name, origin: None };
        archive(store, Path::new("-"), file, wanted, None, progress)
    }
}

fn source(path: &Path, reason: impl ToString) -> ImageError {
    ImageError::Source {
        path: path.into(),
        reason: reason.to_string(),
    }
}

/// The path, and the name behind its last colon unless there is a file with a colon.
fn split(text: &str) -> (PathBuf, Option<String>) {
    let whole = PathBuf::from(text);
    match text.rsplit_once(':') {
        Some((path, name)) if !whole.exists() && !name.contains('/') => {
            (path.into(), Some(name.into()))
        }
        _ => (whole, None),
    }
}

fn identity(about: &Metadata) -> String {
    let (device, inode, bytes) = (about.dev(), about.ino(), about.len());
    let written = (about.mtime(), about.mtime_nsec());
    let changed = (about.ctime(), about.ctime_nsec());
    format!("{device}.{inode}.{bytes}.{written:?}.{changed:?}")
}

/// The image in an archive: what it has inside says what it is.
fn archive(
    store: &Store,
    path: &Path,
    mut file: File,
    wanted: Wanted,
    name: Option<&str>,
    progress: &mut Progress,
) -> Result<Image, ImageError> {
    let mut head = [0; 6];
    if file.read(&mut head).map_err(ImageError::file(path))? == 0 {
        return Err(source(path, "it is empty"));
    }
    file.rewind().map_err(ImageError::file(path))?;
    if Packing::of(&head).is_some() {
        let mut plain = store.fresh()?;
        unpack(
            store,
            "the archive",
            &mut Hashing::new(file),
            &mut plain,
            &mut |_| {},
        )?;
        file = plain.reopen().map_err(|error| store.full(error))?;
    }
    let again = file.try_clone().map_err(ImageError::file(path))?;
    let members = Members::of_archive(again).map_err(|reason| {
        let what = "it is no OCI archive, docker archive or root file system as tar";
        source(path, format!("{what}: {reason}"))
    })?;
    if members.has(SAVED) {
        return saved(store, path, &members, wanted, name, progress);
    }
    if members.has(LAYOUT) && members.has(INDEX) {
        return layout(store, path, members, wanted, name, progress);
    }
    file.seek(SeekFrom::Start(0))
        .map_err(ImageError::file(path))?;
    let _adding = store.adding()?;
    let layer = add_layer(store, "the archive", None, None, &mut file, &mut |_| {})?;
    file_system(store, layer, wanted)
}

/// An image of one layer, of which nothing is known but its files.
fn file_system(store: &Store, layer: Digest, wanted: Wanted) -> Result<Image, ImageError> {
    let config = Configuration {
        architecture: "amd64".into(),
        os: "linux".into(),
        created: None,
        config: Some(Execution {
            cmd: Some(vec!["/bin/sh".into()]),
            ..Execution::default()
        }),
        rootfs: RootFs {
            kind: "layers".into(),
            diff_ids: vec![layer],
        },
    };
    let config = serde_json::to_vec(&config).map_err(|error| document("a configuration", error))?;
    finish(store, wanted, &config, None)
}

/// The image of an OCI layout.
fn layout(
    store: &Store,
    path: &Path,
    members: Members,
    wanted: Wanted,
    name: Option<&str>,
    progress: &mut Progress,
) -> Result<Image, ImageError> {
    let refused = |reason: String| source(path, reason);
    let top = members.document(INDEX, MAX_DOCUMENT).map_err(refused)?;
    let index: Either = parse(INDEX, &top)?;
    let named = |it: &&Descriptor| {
        let names = NAMES.iter().filter_map(|key| it.annotations.get(*key));
        let mut names = names.map(String::as_str);
        name.is_none_or(|name| {
            names.any(|it| it == name || it.rsplit_once(':').is_some_and(|(_, tag)| tag == name))
        })
    };
    let found: Vec<&Descriptor> = index.manifests.iter().filter(named).collect();
    let is_many = found.len() > 1 && found.iter().any(|it| it.platform.is_none());
    if is_many || found.is_empty() {
        let names = index
            .manifests
            .iter()
            .flat_map(|it| it.annotations.get(NAMES[0]));
        let names: Vec<_> = names.map(String::as_str).take(20).collect();
        let names = names.join(", ");
        return Err(refused(match name {
            Some(name) => format!("it has no image {name}; it has: {names}"),
            None => {
                format!("it has several images; write one behind the path, as PATH:NAME: {names}")
            }
        }));
    }
    let mut top = top.clone();
    let mut contents = Blobs { path, members };
    if let [single] = &found[..] {
        top = contents.document(single)?;
        ImageError::unless_same("the image's manifest", &single.digest, &Digest::of(&top))?;
    }
    add(store, wanted, top, &mut contents, progress)
}

/// The blobs of an OCI layout.
struct Blobs<'a> {
    path: &'a Path,
    members: Members,
}

impl Contents for Blobs<'_> {
    fn document(&mut self, wanted: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let name = format!("blobs/sha256/{}", wanted.digest.hex());
        let read = self.members.document(&name, MAX_DOCUMENT);
        read.map_err(|reason| source(self.path, reason))
    }

    fn layer(
        &mut self,
        wanted: &Descriptor,
        _: &mut dyn FnMut(u64),
    ) -> Result<Box<dyn Read + '_>, ImageError> {
        let name = format!("blobs/sha256/{}", wanted.digest.hex());
        let read = self.members.read(&name);
        read.map_err(|reason| source(self.path, reason))
    }
}

/// The image of `docker save`.
fn saved(
    store: &Store,
    path: &Path,
    members: &Members,
    mut wanted: Wanted,
    name: Option<&str>,
    progress: &mut Progress,
) -> Result<Image, ImageError> {
    let refused = |reason: String| source(path, reason);
    let list = members.document(SAVED, MAX_DOCUMENT).map_err(refused)?;
    let all: Vec<Saved> = parse(SAVED, &list)?;
    let tags = |it: &Saved| it.repo_tags.clone().unwrap_or_default();
    let fits = |it: &&Saved| {
        let is = |tag: &String| {
            name.is_none_or(|name| tag == name || tag.ends_with(&format!(":{name}")))
        };
        name.is_none() || tags(it).iter().any(is)
    };
    let found: Vec<&Saved> = all.iter().filter(fits).collect();
    let [image] = &found[..] else {
        let names: Vec<String> = all.iter().flat_map(tags).take(20).collect();
        let (have, names) = (found.len(), names.join(", "));
        let reason =
            format!("it has {have} such images; write one behind the path, as PATH:NAME: {names}");
        return Err(refused(reason));
    };
    // What comes by standard input is called as in there.
    if path == Path::new("-")
        && wanted.name.starts_with("sha256:")
        && let Some(tag) = tags(image).first()
        && let Ok(reference) = tag.parse::<super::reference::Reference>()
    {
        wanted.name = reference.to_string();
    }
    let _adding = store.adding()?;
    let config = members
        .document(&image.config, MAX_DOCUMENT)
        .map_err(refused)?;
    let parsed: Configuration = parse("the image's configuration", &config)?;
    parsed.check(image.layers.len())?;
    let count = image.layers.len();
    for (index, (layer, id)) in image.layers.iter().zip(&parsed.rootfs.diff_ids).enumerate() {
        if store.has_layer(id) {
            continue;
        }
        let mut told = |done| {
            progress(Step {
                what: "unpack",
                layer: (index + 1, count),
                digest: id,
                bytes: (done, 0),
            });
        };
        let mut from = members.read(layer).map_err(refused)?;
        let what = format!("layer {}", index + 1);
        add_layer(store, &what, None, Some(id), &mut from, &mut told)?;
    }
    finish(store, wanted, &config, None)
}

/// A folder as a root file system: its files become the one layer.
fn folder(store: &Store, path: &Path, wanted: Wanted) -> Result<Image, ImageError> {
    let _adding = store.adding()?;
    let mut file = store.fresh()?;
    let mut builder = ::tar::Builder::new(io::BufWriter::new(&mut file));
    builder.sparse(false);
    let mut seen = HashMap::new();
    pack(&mut builder, path, Path::new("."), &mut seen, 0)?;
    let written = builder
        .into_inner()
        .and_then(|mut out| io::Write::flush(&mut out));
    written.map_err(|error| store.full(error))?;
    let mut plain = file.reopen().map_err(|error| store.full(error))?;
    let layer = add_layer(store, "the folder", None, None, &mut plain, &mut |_| {})?;
    file_system(store, layer, wanted)
}

/// Add a file of the host, and what is in it, to an archive under `name`.
fn pack<W: io::Write>(
    builder: &mut ::tar::Builder<W>,
    path: &Path,
    name: &Path,
    seen: &mut HashMap<(u64, u64), PathBuf>,
    depth: usize,
) -> Result<(), ImageError> {
    let refused = |error| ImageError::file(path)(error);
    if depth > MAX_DEPTH {
        return Err(source(path, "folders are deeper than 500"));
    }
    let about = fs::symlink_metadata(path).map_err(refused)?;
    let kind = about.file_type();
    if kind.is_socket() {
        return Ok(());
    }
    let mut header = ::tar::Header::new_gnu();
    header.set_metadata(&about);
    let xattrs = xattrs(path).map_err(refused)?;
    let pairs = xattrs
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_slice()));
    builder.append_pax_extensions(pairs).map_err(refused)?;
    let identity = (about.dev(), about.ino());
    let done = if kind.is_symlink() {
        let text = fs::read_link(path).map_err(refused)?;
        header.set_size(0);
        builder.append_link(&mut header, name, text)
    } else if let Some(first) = seen.get(&identity).filter(|_| kind.is_file()) {
        header.set_entry_type(::tar::EntryType::Link);
        header.set_size(0);
        builder.append_link(&mut header, name, first)
    } else if kind.is_file() {
        if about.nlink() > 1 {
            seen.insert(identity, name.into());
        }
        let file = open(path, u64::MAX).map_err(|reason| source(path, reason))?;
        // Exactly what the header says, if the file grows meanwhile.
        let len = about.len();
        let from = file.take(len).chain(io::repeat(0)).take(len);
        builder.append_data(&mut header, name, from)
    } else {
        header.set_size(0);
        builder.append_data(&mut header, name, io::empty())
    };
    done.map_err(refused)?;
    if !kind.is_dir() {
        return Ok(());
    }
    for inner in sorted_names(path).map_err(refused)? {
        let (path, name) = (path.join(&inner), name.join(&inner));
        pack(builder, &path, &name, seen, depth + 1)?;
    }
    Ok(())
}

fn sorted_names(folder: &Path) -> io::Result<Vec<OsString>> {
    let entries = fs::read_dir(folder)?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// The extended attributes of a file that can be read, as PAX keys.
fn xattrs(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0; 64 << 10];
    let len = match rustix::fs::llistxattr(path, &mut names) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in names[..len]
        .split(|byte| *byte == 0)
        .filter(|it| !it.is_empty())
    {
        let mut value = vec![0; 64 << 10];
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        if let Ok(len) =
            rustix::fs::lgetxattr(path, OsStr::from_bytes(name.as_bytes()), &mut value[..])
        {
            value.truncate(len);
            found.push((format!("SCHILY.xattr.{name}"), value));
        }
    }
    Ok(found)
}
