//! The store: layers, indexes and configurations by digest, and the names of images.
//!
//! ```text
//!  ${XDG_CACHE_HOME:-$HOME/.cache}/hull/images/    0700; or $HULL_CACHE/images
//!    lock             locked (flock): shared while an image is added, alone while something is removed
//!    configs/DIGITS   a configuration, by its digest: the image's ID
//!    layers/DIGITS    a layer as a plain tar archive, by its digest
//!    roots/DIGITS     the index of a list of layers, by the digest of the list
//!    names/DIGITS     a name and its image, by the digest of the name; last used at the file's time
//!    partial/         what is being written, under names of its own until it is whole
//! ```
//! Whole files get their names by rename(2) and do not change afterwards, so that two processes that add the
//! same content do no harm. A running machine has its files open: to remove them takes nothing from it.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::digest::Digest;
use super::document::{Configuration, MAX_DOCUMENT, document, parse};
use super::error::ImageError;
use super::{erofs, tar, tree};
use crate::leftover;
use crate::templates::CacheError;
use crate::templates::place::Place;

const FOLDERS: [&str; 5] = ["configs", "layers", "roots", "names", PARTIAL];
const PARTIAL: &str = "partial";
/// The beginning of the names of what is being written and can only be begun anew.
const FRESH: &str = "new-";
/// The version of the index: another one has other names.
const INDEX_VERSION: &str = "erofs 1";
/// How often, and how long after each try, hull waits for another one.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// The images of this user.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// Most bytes of the disk.
    pub(super) limit: u64,
    /// Whether a layer was added, for which there may have to be room.
    grown: AtomicBool,
}

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name in full: `docker.io/library/alpine:latest`, or a path.
    pub name: String,
    /// Its ID: the digest of its configuration.
    pub id: Digest,
    /// The digest of its manifest, if it has one.
    pub manifest: Option<Digest>,
    /// The digests of its layers, the lowest first.
    pub layers: Vec<Digest>,
    /// When it was made, as the configuration says it.
    pub created: Option<String>,
    /// What runs in it.
    pub execution: super::document::Execution,
    /// Bytes of its layers.
    pub bytes: u64,
    /// When it was added or last used.
    pub last_used: SystemTime,
}

/// A name, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Name {
    pub name: String,
    pub image: Digest,
    pub manifest: Option<Digest>,
    /// What the file was from which it came, to recognize the same again.
    #[serde(default)]
    pub origin: Option<String>,
}

impl Store {
    /// Open it, and make it if need be.
    ///
    /// # Errors
    /// There is no place for it.
    pub fn open() -> Result<Self, ImageError> {
        let place = Place::of_images()?;
        place.make().map_err(|error| CacheError::Folder {
            path: place.path.clone(),
            error,
        })?;
        Self::at(place.path, place.limit)
    }

    /// In a folder that is there and belongs to this user alone.
    ///
    /// # Errors
    /// It is not, or cannot be looked at.
    pub fn at(path: PathBuf, limit: u64) -> Result<Self, ImageError> {
        let refused = |error| CacheError::Folder {
            path: path.clone(),
            error,
        };
        let about = fs::metadata(&path).map_err(refused)?;
        if about.uid() != geteuid().as_raw() || about.mode() & 0o022 != 0 {
            return Err(refused(io::ErrorKind::PermissionDenied.into()).into());
        }
        let mut folders = DirBuilder::new();
        folders.recursive(true).mode(0o700);
        for folder in FOLDERS {
            folders.create(path.join(folder)).map_err(refused)?;
        }
        Ok(Self {
            path,
            limit,
            grown: AtomicBool::new(false),
        })
    }

    fn lock(&self, how: FlockOperation) -> Result<File, ImageError> {
        let path = self.path.join("lock");
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(&path).map_err(ImageError::file(&path))?;
        for _ in 0..TRIES {
            if flock(&lock, how).is_ok() {
                return Ok(lock);
            }
            thread::sleep(PAUSE);
        }
        Err(ImageError::Busy {
            path: self.path.clone(),
        })
    }

    /// Keep others from removing something while the result lives.
    ///
    /// # Errors
    /// [`ImageError::Busy`].
    pub(super) fn adding(&self) -> Result<File, ImageError> {
        self.lock(FlockOperation::NonBlockingLockShared)
    }

    /// The error of a write into the store.
    pub(super) fn full(&self, error: io::Error) -> ImageError {
        ImageError::file(&self.path)(error)
    }

    fn file(&self, folder: &str, digest: &Digest) -> PathBuf {
        self.path.join(folder).join(digest.hex())
    }

    /// The file of the store in which the content `digest` of an image is collected.
    pub(super) fn partial(&self, digest: &Digest) -> PathBuf {
        self.file(PARTIAL, digest)
    }

    /// A new file, which is gone unless it is kept.
    pub(super) fn fresh(&self) -> Result<NamedTempFile, ImageError> {
        let folder = self.path.join(PARTIAL);
        let mut made = tempfile::Builder::new();
        let file = made.prefix(FRESH).tempfile_in(&folder);
        let file = file.map_err(ImageError::file(&folder))?;
        // By which others see that it is being written.
        let _ = flock(file.as_file(), FlockOperation::NonBlockingLockExclusive);
        Ok(file)
    }

    fn keep(&self, file: NamedTempFile, folder: &str, digest: &Digest) -> Result<(), ImageError> {
        let path = self.file(folder, digest);
        // On the disk before it has its name: what has one is whole.
        file.as_file()
            .sync_data()
            .map_err(ImageError::file(&path))?;
        let kept = file.persist(&path);
        kept.map(drop)
            .map_err(|error| ImageError::file(&path)(error.error))
    }

    /// Whether the layer is there.
    pub(super) fn has_layer(&self, layer: &Digest) -> bool {
        self.file("layers", layer).exists()
    }

    /// Add the layer that is written in `file`.
    pub(super) fn add_layer(&self, file: NamedTempFile, layer: &Digest) -> Result<(), ImageError> {
        self.grown.store(true, Ordering::Relaxed);
        self.keep(file, "layers", layer)
    }

    /// Add a configuration, and make the index of its layers unless it is there.
    pub(super) fn add_config(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let id = Digest::of(bytes);
        let config: Configuration = parse("the image's configuration", bytes)?;
        self.make_root(&config.rootfs.diff_ids)?;
        if !self.file("configs", &id).exists() {
            let mut file = self.fresh()?;
            file.write_all(bytes)
                .map_err(ImageError::file(&self.path))?;
            self.keep(file, "configs", &id)?;
        }
        Ok(id)
    }

    fn make_root(&self, layers: &[Digest]) -> Result<(), ImageError> {
        let root = root_of(layers);
        if self.file("roots", &root).exists() {
            return Ok(());
        }
        let mut tree = tree::Tree::default();
        let mut files = Vec::with_capacity(layers.len());
        for (index, layer) in layers.iter().enumerate() {
            let path = self.file("layers", layer);
            let file = File::open(&path).map_err(ImageError::file(&path))?;
            let mut entries = tree.layer();
            let walked = tar::walk(&file, |entry| entries.add(entry));
            let merged = walked.and_then(|()| entries.finish());
            merged.map_err(|reason| ImageError::Layer {
                layer: index + 1,
                reason,
            })?;
            files.push(file);
        }
        let out = self.fresh()?;
        erofs::write(&tree, &files, out.as_file()).map_err(ImageError::file(&self.path))?;
        self.keep(out, "roots", &root)
    }

    /// Give the image `name.image` a name.
    pub(super) fn add_name(&self, name: &Name) -> Result<(), ImageError> {
        if self.name(&name.name).as_ref() == Some(name) {
            return Ok(());
        }
        let bytes = serde_json::to_vec(name).map_err(|error| document("a name", error))?;
        let mut file = self.fresh()?;
        file.write_all(&bytes)
            .map_err(ImageError::file(&self.path))?;
        self.keep(file, "names", &Digest::of(name.name.as_bytes()))
    }

    /// The stored name, if there is one.
    pub(super) fn name(&self, name: &str) -> Option<Name> {
        let path = self.file("names", &Digest::of(name.as_bytes()));
        let name: Name = serde_json::from_slice(&read(&path).ok()?).ok()?;
        // It counts as used now; what cannot be marked goes the earlier.
        let now = SystemTime::now();
        let _ = File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(now));
        Some(name)
    }

    /// The image `name`, if all of it is there.
    pub fn image(&self, name: &str) -> Option<Image> {
        let path = self.file("names", &Digest::of(name.as_bytes()));
        self.of_name(self.name(name)?, &path)
    }

    fn of_name(&self, name: Name, path: &Path) -> Option<Image> {
        let config = read(&self.file("configs", &name.image)).ok()?;
        let config: Configuration = serde_json::from_slice(&config).ok()?;
        let layers = config.rootfs.diff_ids;
        let of = |layer: &Digest| Some(fs::metadata(self.file("layers", layer)).ok()?.len());
        let sizes: Option<Vec<u64>> = layers.iter().map(of).collect();
        let bytes = sizes?.iter().sum();
        fs::metadata(self.file("roots", &root_of(&layers))).ok()?;
        Some(Image {
            name: name.name,
            id: name.image,
            manifest: name.manifest,
            layers,
            created: config.created,
            execution: config.config.unwrap_or_default(),
            bytes,
            last_used: fs::metadata(path).ok()?.modified().unwrap_or(UNIX_EPOCH),
        })
    }

    /// The configuration of an image, as it came.
    ///
    /// # Errors
    /// It is gone.
    pub fn configuration(&self, image: &Image) -> Result<Vec<u8>, ImageError> {
        read(&self.file("configs", &image.id))
    }

    /// The files whose bytes, one after the other, are the image's disk.
    pub fn files(&self, image: &Image) -> Vec<PathBuf> {
        let layers = image.layers.iter().map(|layer| self.file("layers", layer));
        std::iter::once(self.file("roots", &root_of(&image.layers)))
            .chain(layers)
            .collect()
    }

    /// All images, the last used first.
    pub fn images(&self) -> Vec<Image> {
        let of = |path: PathBuf| {
            let name: Name = serde_json::from_slice(&read(&path).ok()?).ok()?;
            self.of_name(name, &path)
        };
        let mut all: Vec<_> = self.paths("names").into_iter().filter_map(of).collect();
        all.sort_by(|a, b| (b.last_used, &a.name).cmp(&(a.last_used, &b.name)));
        all
    }

    fn paths(&self, folder: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path.join(folder));
        entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|it| it.path())
            .collect()
    }

    /// The images that `text` means: one by its name, or all names of the one whose ID begins so.
    ///
    /// # Errors
    /// [`ImageError::Unknown`] or [`ImageError::Ambiguous`].
    pub fn find(&self, text: &str, full: &str) -> Result<Vec<Image>, ImageError> {
        let images = self.images();
        if let Some(named) = images.iter().find(|it| it.name == full || it.name == text) {
            return Ok(vec![named.clone()]);
        }
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let mut found = images;
        found.retain(|image| !digits.is_empty() && image.id.hex().starts_with(digits));
        let ids: BTreeSet<_> = found.iter().map(|image| &image.id).collect();
        match ids.len() {
            0 => Err(ImageError::Unknown { name: text.into() }),
            1 => Ok(found),
            count => Err(ImageError::Ambiguous {
                name: text.into(),
                count,
            }),
        }
    }

    /// Remove these names, and what no image has any more.
    ///
    /// # Errors
    /// [`ImageError::Busy`], or a file cannot be removed.
    pub fn remove(&self, images: &[Image]) -> Result<(), ImageError> {
        let _alone = self.lock(FlockOperation::NonBlockingLockExclusive)?;
        for image in images {
            self.remove_name(image)?;
        }
        self.sweep();
        Ok(())
    }

    fn remove_name(&self, image: &Image) -> Result<(), ImageError> {
        let path = self.file("names", &Digest::of(image.name.as_bytes()));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ImageError::file(path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Remove images that were not used for longest until all are within the limit; `own` stays. While
    /// another hull adds one, the next that is added makes room.
    pub(super) fn evict(&self, own: &str) {
        if !self.grown.load(Ordering::Relaxed) {
            return;
        }
        let Ok(_alone) = self.lock(FlockOperation::NonBlockingLockExclusive) else {
            return;
        };
        self.sweep();
        for image in self.images().iter().rev().filter(|it| it.name != own) {
            if self.bytes() <= self.limit {
                return;
            }
            log::info!("image {} removed: HULL_IMAGES_SIZE", image.name);
            if self.remove_name(image).is_ok() {
                self.sweep();
            }
        }
    }

    /// Bytes of the disk that all takes.
    fn bytes(&self) -> u64 {
        let files = FOLDERS.iter().flat_map(|folder| self.paths(folder));
        let sizes = files.filter_map(|path| Some(fs::symlink_metadata(path).ok()?.blocks() * 512));
        sizes.sum()
    }

    /// Remove what no image has. The caller holds the lock alone.
    fn sweep(&self) {
        let (mut configs, mut layers, mut roots) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for image in self.images() {
            roots.insert(root_of(&image.layers).hex().to_string());
            configs.insert(image.id.hex().to_string());
            layers.extend(image.layers.iter().map(|layer| layer.hex().to_string()));
        }
        for (folder, used) in [("configs", configs), ("layers", layers), ("roots", roots)] {
            for path in self.paths(folder) {
                let name = path.file_name().and_then(|name| name.to_str());
                if name.is_some_and(|name| !used.contains(name) && is_digits(name)) {
                    let _ = fs::remove_file(&path);
                }
            }
        }
        leftover::remove(&self.path.join(PARTIAL), FRESH);
        // Of a download that went on in no other one.
        for path in self.paths(PARTIAL) {
            let age = fs::metadata(&path).and_then(|about| about.modified());
            let age = age.ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age > Duration::from_secs(7 * 24 * 3600)) {
                let _ = fs::remove_file(&path);
            }
        }
    }
}

fn is_digits(name: &str) -> bool {
    format!("sha256:{name}").parse::<Digest>().is_ok()
}

/// The name of the index of these layers.
fn root_of(layers: &[Digest]) -> Digest {
    let lines: String = layers.iter().map(|layer| format!("{layer}\n")).collect();
    Digest::of(format!("{INDEX_VERSION}\n{lines}").as_bytes())
}

/// A document of the store.
fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(ImageError::file(path))?;
    let read = file.take(MAX_DOCUMENT).read_to_end(&mut bytes);
    read.map_err(ImageError::file(path))?;
    Ok(bytes)
}
