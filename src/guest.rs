//! The guest inside the program: the kernel `tiny` and the initramfs that `make build` has built.
//!
//! [`embedded`] returns the three parts, packed; an [`Image`](crate::memory::image::Image) copies one
//! into guest memory, [`export`] writes them to files. [`full`] finds the other kernel, which lies beside the program.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

mod full;
mod symtab;

#[cfg(fuzzing)]
pub use symtab::add as add_symbols;

use crate::memory::packed::EMBEDDED;
pub use crate::memory::packed::{Packed, PackedError};

/// A kernel, its initramfs and its symbols.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// The kernel, an ELF file without symbols.
    pub vmlinux: Packed,
    /// An uncompressed newc archive with /init and busybox.
    pub initramfs: Packed,
    /// System.map of the kernel, with functions only (nm(1) types t, T, w, W).
    pub system_map: Packed,
}

/// The release of the kernel inside this program, as `uname -r` prints it in a guest.
pub const RELEASE: Option<&str> = option_env!("HULL_GUEST_RELEASE");

/// The first process of the machines whose devices `hull bench` measures (guest/bench): a static program.
pub const BENCH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bench"));

/// Why there is no guest, or why it cannot be written.
#[derive(Debug, Error)]
pub enum GuestError {
    /// hull was built without a guest.
    #[error("this hull has no guest inside; run `make build`, or name a kernel")]
    None,
    /// The kernel `full` is not beside the program.
    #[error(
        "there is no kernel full: not {}; `make kernel-full` builds it, and `make install` then installs it with \
             hull",
        show(places)
    )]
    NoFull {
        /// Where it may be.
        places: Vec<PathBuf>,
    },
    /// The program's file is damaged.
    #[error(transparent)]
    Packed(#[from] PackedError),
    /// A file or folder could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
}

/// The file of the kernel `full`.
///
/// # Errors
/// [`GuestError::NoFull`].
pub fn full() -> Result<PathBuf, GuestError> {
    full::find().map_err(|places| GuestError::NoFull { places })
}

fn show(places: &[PathBuf]) -> String {
    let places = places.iter().map(|place| place.display().to_string());
    places.collect::<Vec<_>>().join(", not ")
}

/// The guest inside this program, if hull was built with one.
pub fn embedded() -> Option<Guest> {
    EMBEDDED.map(|[vmlinux, initramfs, system_map]| Guest {
        vmlinux,
        initramfs,
        system_map,
    })
}

/// As [`embedded`], with an error that says how to get a guest.
pub fn required() -> Result<Guest, GuestError> {
    embedded().ok_or(GuestError::None)
}

/// Write vmlinux, with the names of System.map, initramfs.cpio and System.map to `folder`, which is made if it is missing.
/// A file of such a name is replaced whole or not at all. Gives the paths and their sizes.
pub fn export(guest: &Guest, folder: &Path) -> Result<Vec<(PathBuf, usize)>, GuestError> {
    fs::create_dir_all(folder).map_err(|source| GuestError::Write {
        path: folder.to_path_buf(),
        source,
    })?;
    let system_map = guest.system_map.unpack()?;
    // With symbols, for gdb.
    let vmlinux = symtab::add(guest.vmlinux.unpack()?, &system_map);
    let parts = [
        ("vmlinux", vmlinux),
        ("initramfs.cpio", guest.initramfs.unpack()?),
        ("System.map", system_map),
    ];
    let mut written = Vec::new();
    for (name, part) in parts {
        let path = folder.join(name);
        replace(&path, &part).map_err(|source| GuestError::Write {
            path: path.clone(),
            source,
        })?;
        written.push((path, part.len()));
    }
    Ok(written)
}

/// Write a new file beside `path` and rename it to `path`.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(name);
    let done = fs::OpenOptions::new()
        .write(true)
        .create_new(true) // does not follow an existing link
        .open(&fresh)
        .and_then(|mut file| io::Write::write_all(&mut file, bytes))
        .and_then(|()| fs::rename(&fresh, path));
    if done.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("vmlinux");
        fs::write(&file, "old and longer").expect("written");
        replace(&file, b"new").expect("replaced");
        assert_eq!(fs::read(&file).expect("read"), b"new");
        fs::remove_file(&file).expect("removed");
        fs::create_dir(&file).expect("a folder in the way");
        assert!(replace(&file, b"new").is_err());
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 1);
    }

    #[test]
    fn the_embedded_guest_is_whole() {
        let Some(guest) = embedded() else {
            println!("skipped: the_embedded_guest_is_whole: built without a guest");
            return;
        };
        assert!(
            guest
                .vmlinux
                .unpack()
                .expect("unpacks")
                .starts_with(b"\x7fELF")
        );
        assert!(
            guest
                .initramfs
                .unpack()
                .expect("unpacks")
                .starts_with(b"070701")
        );
        let map = guest.system_map.unpack().expect("unpacks");
        let map = String::from_utf8(map).expect("text");
        assert!(map.lines().all(|line| line.split(' ').count() == 3));
        assert!(map.lines().any(|line| line.ends_with(" T start_kernel")));
    }
}
