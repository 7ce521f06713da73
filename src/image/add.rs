//! Adds an image to the store: documents and layers, each checked against the digest that names it.

use std::io::{self, BufRead, BufReader, Read, Write};

use flate2::bufread::MultiGzDecoder;

use super::digest::{Digest, Hashing};
use super::document::{Configuration, Descriptor, Either, MAX_DOCUMENT, choose, document, parse};
use super::error::ImageError;
use super::store::{Image, Name, Store};

/// Most indexes one inside another.
const MAX_DEPTH: usize = 4;
/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// How far the work is.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// What is done.
    pub what: &'static str,
    /// The layer, from 1, and how many there are.
    pub layer: (usize, usize),
    /// Its digest.
    pub digest: &'a Digest,
    /// Bytes so far, and in all.
    pub bytes: (u64, u64),
}

/// Called as the work goes on.
pub type Progress<'a> = dyn FnMut(Step) + 'a;

/// Where the content of an image comes from.
pub trait Contents {
    /// A document by its descriptor. The caller checks its digest.
    ///
    /// # Errors
    /// It cannot be had.
    fn document(&mut self, wanted: &Descriptor) -> Result<Vec<u8>, ImageError>;

    /// The bytes of a layer, packed or not. The caller checks them.
    ///
    /// # Errors
    /// It cannot be had.
    fn layer(
        &mut self,
        wanted: &Descriptor,
        told: &mut dyn FnMut(u64),
    ) -> Result<Box<dyn Read + '_>, ImageError>;
}

/// The name under which an image is added, and what the source is now.
pub struct Wanted {
    /// The name in full.
    pub name: String,
    /// As [`Name::origin`].
    pub origin: Option<String>,
}

/// Add the image of `top`, an index or a manifest, from `contents`.
///
/// # Errors
/// It is not for this computer, or damaged, or cannot be had or kept.
pub fn add(
    store: &Store,
    wanted: Wanted,
    top: Vec<u8>,
    contents: &mut dyn Contents,
    progress: &mut Progress,
) -> Result<Image, ImageError> {
    let _adding = store.adding()?;
    let (bytes, manifest) = manifest(top, contents)?;
    let told = manifest.config.as_ref();
    let told = told.ok_or_else(|| document("the manifest", "it names no configuration"))?;
    let config = checked(contents, told, "the image's configuration")?;
    let parsed: Configuration = parse("the image's configuration", &config)?;
    parsed.check(manifest.layers.len())?;
    let count = manifest.layers.len();
    for (index, (layer, id)) in manifest
        .layers
        .iter()
        .zip(&parsed.rootfs.diff_ids)
        .enumerate()
    {
        if store.has_layer(id) {
            continue;
        }
        let mut told = |what, done| {
            progress(Step {
                what,
                layer: (index + 1, count),
                digest: id,
                bytes: (done, layer.size),
            });
        };
        let mut from = contents.layer(layer, &mut |done| told("pull", done))?;
        let what = format!("layer {}", index + 1);
        add_layer(
            store,
            &what,
            Some(layer),
            Some(id),
            &mut from,
            &mut |done| {
                told("unpack", done);
            },
        )?;
    }
    finish(store, wanted, &config, Some(Digest::of(&bytes)))
}

/// Add the configuration and the name, the layers of which are there.
///
/// # Errors
/// The layers make no file system, or it cannot be kept.
pub fn finish(
    store: &Store,
    wanted: Wanted,
    config: &[u8],
    manifest: Option<Digest>,
) -> Result<Image, ImageError> {
    let id = store.add_config(config)?;
    store.add_name(&Name {
        name: wanted.name.clone(),
        image: id,
        manifest,
        origin: wanted.origin,
    })?;
    let image = store.image(&wanted.name);
    image.ok_or(ImageError::Unknown { name: wanted.name })
}

/// The manifest for this computer in `top`, its bytes and what they say.
fn manifest(
    mut bytes: Vec<u8>,
    contents: &mut dyn Contents,
) -> Result<(Vec<u8>, Either), ImageError> {
    for _ in 0..MAX_DEPTH {
        let either: Either = parse("the image's manifest", &bytes)?;
        if either.config.is_some() || !either.layers.is_empty() {
            return Ok((bytes, either));
        }
        let chosen = choose(&either.manifests)?;
        bytes = checked(contents, chosen, "the image's manifest")?;
    }
    Err(document("the image's manifest", "its indexes are too deep"))
}

fn checked(
    contents: &mut dyn Contents,
    wanted: &Descriptor,
    what: &str,
) -> Result<Vec<u8>, ImageError> {
    if wanted.size > MAX_DOCUMENT {
        let reason = format!("it has {} bytes; hull reads 8 MiB", wanted.size);
        return Err(document(what, reason));
    }
    let bytes = contents.document(wanted)?;
    ImageError::unless_same(what, &wanted.digest, &Digest::of(&bytes))?;
    Ok(bytes)
}

/// Unpack a layer into the store, and check both digests; returns the one of the plain archive.
///
/// # Errors
/// It is not what the digests say, is larger than the limit, or cannot be kept.
pub fn add_layer(
    store: &Store,
    what: &str,
    packed: Option<&Descriptor>,
    plain: Option<&Digest>,
    from: &mut dyn Read,
    progress: &mut dyn FnMut(u64),
) -> Result<Digest, ImageError> {
    let mut file = store.fresh()?;
    let place = file.path().to_path_buf();
    // One byte more than it should have, to notice.
    let most = packed.map_or(u64::MAX, |packed| packed.size.saturating_add(1));
    let mut outer = Hashing::new(from.take(most));
    let inner = unpack(store, what, &mut outer, &mut file, progress)?;
    // What follows the packed data, so that the digest is that of all.
    let rest = io::copy(&mut outer, &mut io::sink());
    rest.map_err(|error| document(what, error))?;
    if let Some(packed) = packed {
        if outer.bytes != packed.size {
            let more = if outer.bytes > packed.size {
                "more than "
            } else {
                ""
            };
            let (have, want) = (outer.bytes.min(packed.size), packed.size);
            return Err(document(
                what,
                format!("it has {more}{have} bytes and not {want}"),
            ));
        }
        ImageError::unless_same(what, &packed.digest, &outer.digest())?;
    }
    if let Some(plain) = plain {
        ImageError::unless_same(what, plain, &inner)?;
    }
    file.flush().map_err(ImageError::file(place))?;
    store.add_layer(file, &inner)?;
    Ok(inner)
}

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Packing {
    /// By the first six bytes or more.
    pub fn of(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [b'B', b'Z', b'h', ..] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            _ => None,
        }
    }
}

/// Unpack `from`, in whichever format it is, to `file`; the digest of what was written.
pub(super) fn unpack(
    store: &Store,
    what: &str,
    from: &mut Hashing<impl Read>,
    file: &mut dyn Write,
    progress: &mut dyn FnMut(u64),
) -> Result<Digest, ImageError> {
    let wrong = |error: io::Error| document(what, error);
    let mut from = Counted {
        from: BufReader::with_capacity(CHUNK, from),
        progress,
        bytes: 0,
    };
    let head = from.from.fill_buf().map_err(wrong)?;
    let unpacked: Box<dyn Read + '_> = match Packing::of(head) {
        Some(Packing::Gzip) => Box::new(MultiGzDecoder::new(from)),
        Some(Packing::Zstd) => {
            Box::new(zstd::stream::read::Decoder::with_buffer(from).map_err(wrong)?)
        }
        Some(Packing::Bzip2) => Box::new(bzip2::bufread::MultiBzDecoder::new(from)),
        Some(Packing::Xz) => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(from)),
        None => Box::new(from),
    };
    let mut plain = Hashing::new(unpacked);
    let mut buffer = vec![0; CHUNK];
    loop {
        let len = match plain.read(&mut buffer) {
            Ok(0) => return Ok(plain.digest()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(wrong(error)),
        };
        if plain.bytes > store.limit {
            return Err(ImageError::TooLarge {
                what: what.into(),
                limit: store.limit,
            });
        }
        let written = file.write_all(&buffer[..len]);
        written.map_err(|error| store.full(error))?;
    }
}

/// Tells how many bytes were read.
struct Counted<'a, R> {
    from: BufReader<R>,
    progress: &'a mut dyn FnMut(u64),
    bytes: u64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.from.read(into)?;
        self.bytes += len as u64;
        (self.progress)(self.bytes);
        Ok(len)
    }
}

impl<R: Read> BufRead for Counted<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.from.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.from.consume(bytes);
        self.bytes += bytes as u64;
        (self.progress)(self.bytes);
    }
}
