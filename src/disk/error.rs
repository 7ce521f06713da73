//! Why a disk cannot be opened, or not be part of a snapshot.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A disk cannot be used. The text continues after the disk's name or flag.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The file does not exist, or may not be opened.
    #[error("{path}: {reason}{hint}")]
    Open {
        /// Path of the image.
        path: PathBuf,
        /// The error of the host.
        reason: io::Error,
        /// A remedy, or nothing; continues the sentence.
        hint: &'static str,
    },
    /// A directory or a terminal, for example.
    #[error(
        "{path}: neither a file nor a block device; name an image, such as `truncate -s 1G FILE` \
         makes"
    )]
    NotADisk {
        /// The path that was given.
        path: PathBuf,
    },
    /// A temporary file cannot be made.
    #[error("needs a file in {folder}: {reason}; set TMPDIR to another folder")]
    Temporary {
        /// The folder for temporary files.
        folder: PathBuf,
        /// The error of the host.
        reason: io::Error,
    },
    /// Another machine, or another disk, has locked it.
    #[error(
        "{path}: another machine, or another disk of this one, uses it{how}; give each an image of \
         its own, or each of them this one with ,ro"
    )]
    InUse {
        /// Path of the image.
        path: PathBuf,
        /// What the other one does with it; continues the sentence.
        how: &'static str,
    },
    /// Its size is not a multiple of 512 bytes.
    #[error(
        "{path}: {bytes} bytes, which is not a whole number of 512-byte sectors; \
         `truncate -s %512 {path}` adds what is missing"
    )]
    Size {
        /// Path of the image.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
    },
    /// The file has no bytes.
    #[error("{path}: the file is empty; `truncate -s 1G {path}` makes a disk of it")]
    Empty {
        /// Path of the image.
        path: PathBuf,
    },
    /// An image in a format that hull does not read.
    #[error(
        "{path}: a {format} image, which hull does not read; if you made it, `qemu-img convert -O \
         raw {path} {path}.raw` makes a raw one, but do not do so with a disk that a guest wrote: \
         it may have put the header there to have a file of the host copied. format=raw uses it \
         as it is"
    )]
    Foreign {
        /// Path of the image.
        path: PathBuf,
        /// Name of the format.
        format: &'static str,
    },
    /// A qcow2 image that cannot be used.
    #[error("{path}: not a usable qcow2 image ({reason}); `qemu-img check {path}` shows more")]
    Qcow2 {
        /// Path of the image.
        path: PathBuf,
        /// What imago found.
        reason: io::Error,
    },
    /// A qcow2 image with an option of `qemu-img` that hull does not read.
    #[error(
        "{path}: a qcow2 image with {feature}, which hull does not read; `qemu-img convert -O qcow2 \
         -o {convert} {path} {path}.qcow2` makes one that it reads"
    )]
    Feature {
        /// Path of the image.
        path: PathBuf,
        /// The option by which it was made.
        feature: &'static str,
        /// The option by which one is made without it.
        convert: &'static str,
    },
    /// A qcow2 image that is based on another.
    #[error(
        "{path}: the image is based on {backing:?}; hull opens no file that only an \
         image names: add backing=FILE if you want it"
    )]
    BackingUnnamed {
        /// Path of the image.
        path: PathBuf,
        /// The base that its header names.
        backing: String,
    },
    /// A base was given for an image without one.
    #[error("{path}: it is not based on another image; leave out backing={backing}")]
    NoBacking {
        /// Path of the image.
        path: PathBuf,
        /// The base that was given.
        backing: PathBuf,
    },
    /// A qcow2 image with its bytes in another file.
    #[error(
        "{path}: its data is in another file, which hull does not open; if you made it, `qemu-img \
         convert -O qcow2 {path} {path}.qcow2` puts all in one, but do not do so with a disk that a \
         guest wrote: it may have put the header there to have a file of the host copied"
    )]
    DataFile {
        /// Path of the image.
        path: PathBuf,
    },
    /// A qcow2 image whose bytes need a key.
    #[error(
        "{path}: an encrypted image, which hull does not read; `qemu-img convert` with its key \
         makes a plain one"
    )]
    Encrypted {
        /// Path of the image.
        path: PathBuf,
    },
    /// The base of an image cannot be used.
    #[error("{path},backing={base}")]
    Backing {
        /// Path of the image.
        path: PathBuf,
        /// The error of the base.
        base: Box<DiskError>,
    },
    /// A snapshot of an overlay that the guest has written to.
    #[error(
        "{path}: the guest has written to this disk, and its overlay ends with this machine: a \
         snapshot cannot keep it; use a qcow2 image of your own (`qemu-img create -f qcow2 -b \
         {path} -F {format} FILE`, then the disk FILE,backing={path})"
    )]
    OverlayKept {
        /// The format of the image, as qemu-img has it.
        format: &'static str,
        /// The image under the overlay.
        path: PathBuf,
    },
    /// A snapshot of a scratch disk that the guest has written to.
    #[error(
        "scratch: the guest has written to this disk, which ends with this machine: a snapshot \
         cannot keep it; use an image (`truncate -s 1G FILE`, then the disk FILE)"
    )]
    ScratchKept,
}
