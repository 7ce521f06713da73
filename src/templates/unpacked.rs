//! The guest inside the program, unpacked beside the templates: a boot maps the kernel's code and copies
//! the rest instead of unpacking it, and all machines share the pages that they do not write.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, Result};

use super::folder::{BOOT_ID, Cache, FILE, bytes_of, changed, names, open_lock, read, write};
use super::key::Identity;
use crate::memory::image::Image;
use crate::memory::layout::PAGE_SIZE;
use crate::memory::packed::Packed;

const PREFIX: &str = "guest-";
/// Of the file in which the identity of the one beside it is kept.
const IDENTITY: &str = ".is";
const FRESH: &str = ".tmp";
/// Files of other programs that are kept: two builds of hull used by turns do not displace each other.
const MAX_OTHERS: usize = 3;
/// Bytes that are unpacked at once: those of one block, so that each is unpacked once.
const STEP: usize = 256 << 10;
const READ_ONLY: Mode = Mode::RUSR;

impl Cache {
    /// `parts` of the program `id`, unpacked. Their file is used if it was written since the host
    /// started (an older one may never have reached the disk) and not changed since; otherwise it is
    /// written now. `None` if it cannot be kept, or another hull writes one. `tell` is called with a
    /// message about a file that was changed.
    pub fn unpacked<const N: usize>(
        &self,
        id: &str,
        parts: [Packed; N],
        tell: &dyn Fn(&str),
    ) -> Option<[Image; N]> {
        let name = format!("{PREFIX}{id}");
        let bytes = parts.iter().map(|part| pages(part.len())).sum::<u64>();
        let file = match self.kept(&name, bytes) {
            Ok(file) => file,
            Err(reason) => {
                if let Some(reason) = reason {
                    let path = self.path.join(&name).display().to_string();
                    tell(&format!("{path} {reason}: the guest is unpacked again"));
                }
                let made = self.keep(&name, &parts, bytes);
                made.inspect_err(|error| log::info!("the guest is not kept unpacked: {error}"))
                    .ok()?
            }
        };
        let file = Arc::new(file);
        let mut start = 0;
        Some(parts.map(|part| {
            let at = start;
            start += pages(part.len());
            Image::Kept {
                file: file.clone(),
                start: at,
                len: part.len() as u64,
            }
        }))
    }

    /// The file `name`, or what is wrong with it, if that should be told.
    fn kept(&self, name: &str, bytes: u64) -> std::result::Result<File, Option<&'static str>> {
        let opened = fs::openat(&*self.root, name, FILE | OFlags::RDONLY, Mode::empty());
        let file = match opened {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Err(None),
            Err(_) => return Err(Some("cannot be read")),
        };
        let written = read(&self.root, &format!("{name}{IDENTITY}")).ok_or(None)?;
        let boot = std::fs::read(BOOT_ID).unwrap_or_default();
        // Of an earlier boot of the host, or half written.
        let identity = written.strip_prefix(&*boot).ok_or(None)?;
        match Identity::of(&file) {
            Some(now) if now.to_bytes() == identity => Ok(file),
            Some(now) if now.bytes != bytes => Err(Some("was cut short")),
            _ => Err(Some("was changed")),
        }
    }

    /// Write the file `name`, unless another hull writes one.
    fn keep(&self, name: &str, parts: &[Packed], bytes: u64) -> Result<File> {
        if bytes > self.limit {
            return Err(Errno::FBIG);
        }
        let turn = open_lock(&self.root)?;
        fs::flock(&turn, FlockOperation::NonBlockingLockExclusive)?;
        self.remove_others(name);
        let fresh = format!("{name}{FRESH}");
        let kept = self.write_parts(name, &fresh, parts);
        if kept.is_err() {
            let _ = fs::unlinkat(&*self.root, &*fresh, AtFlags::empty());
        }
        kept
    }

    fn write_parts(&self, name: &str, fresh: &str, parts: &[Packed]) -> Result<File> {
        let identity = format!("{name}{IDENTITY}");
        for stale in [fresh, &identity] {
            match fs::unlinkat(&*self.root, stale, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        let flags = FILE | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let mut file = File::from(fs::openat(&*self.root, fresh, flags, READ_ONLY)?);
        for part in parts {
            let part = Image::Packed(*part);
            for at in (0..part.len()).step_by(STEP) {
                let bytes = part.read(at, STEP);
                let mut bytes = bytes.map_err(|_| Errno::IO)?.into_owned();
                bytes.resize(bytes.len().next_multiple_of(PAGE_SIZE as usize), 0);
                let written = file.write_all(&bytes);
                written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            }
        }
        fs::renameat(&*self.root, fresh, &*self.root, name)?;
        let mut is = std::fs::read(BOOT_ID).unwrap_or_default();
        is.extend(Identity::of(&file).ok_or(Errno::IO)?.to_bytes());
        write(&self.root, &identity, &is)?;
        Ok(file)
    }

    /// Make room: of the files of other programs the newest [`MAX_OTHERS`] stay.
    fn remove_others(&self, own: &str) {
        let all = names(&self.root);
        let mut others: Vec<_> = all
            .iter()
            .filter(|name| name.starts_with(PREFIX) && !name.starts_with(own))
            .filter_map(|name| {
                let stat = fs::statat(&*self.root, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
                let whole = !name.ends_with(IDENTITY) && !name.ends_with(FRESH);
                whole.then(|| (std::cmp::Reverse(changed(&stat)), name))
            })
            .collect();
        others.sort();
        for (_, name) in others.into_iter().skip(MAX_OTHERS) {
            self.remove_unpacked(name);
        }
    }

    /// Bytes on the disk of all unpacked guests.
    pub(super) fn unpacked_bytes(&self) -> u64 {
        let mut names = names(&self.root);
        names.retain(|name| name.starts_with(PREFIX));
        bytes_of(&self.root, names)
    }

    /// Remove all files of unpacked guests. The caller holds the outer lock.
    pub(super) fn remove_all_unpacked(&self) {
        for name in names(&self.root) {
            if name.starts_with(PREFIX) {
                self.remove_unpacked(&name);
            }
        }
    }

    fn remove_unpacked(&self, name: &str) {
        for end in ["", IDENTITY, FRESH] {
            let _ = fs::unlinkat(&*self.root, format!("{name}{end}"), AtFlags::empty());
        }
    }
}

fn pages(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(PAGE_SIZE)
}
