//! Disks with an ext4: mounted, filled from the image as engines do it, and left whole at the end.

use core::ffi::CStr;
use core::sync::atomic::{AtomicI32, Ordering};

use hull_agent::MAX_PATH;

use crate::setup::{MS_NOSUID, MS_RDONLY, MS_REMOUNT};
use crate::sys::{self, Errno, Fd, Stat};
use crate::text::{decimal, each_entry, join};

/// What the guest frees, the host gets back. The bitmaps of all groups are not read ahead: of a large file system
/// that is no small work, and a machine may need few of them.
pub const OPTIONS: &CStr = c"discard,no_prefetch_block_bitmaps";

/// Disks are /dev/vda to /dev/vdz.
const MAX_DISKS: usize = 26;
/// Deepest folder that is copied.
const MAX_DEPTH: usize = 200;
/// On a volume's root while it is filled, so that a half one is not taken for the user's.
const FILLING: &CStr = c"trusted.hull.filling";
const CAPABILITY: &CStr = c"security.capability";
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const KIND: u32 = 0o170_000;
/// For how long init tries to leave a disk: what was killed may not have closed its files yet.
const TRIES: u32 = 20;
const PAUSE_MS: i64 = 10;

/// The roots of the file systems that are mounted, and 0.
static MOUNTED: [AtomicI32; MAX_DISKS] = [const { AtomicI32::new(0) }; MAX_DISKS];

/// Whether there is such a disk.
pub fn is_any() -> bool {
    MOUNTED.iter().any(|fd| fd.load(Ordering::Relaxed) > 0)
}

/// Remember the file system at `path` for [`leave`].
pub fn keep(path: &CStr) {
    let free = MOUNTED.iter().find(|fd| fd.load(Ordering::Relaxed) == 0);
    if let Some(free) = free
        && let Ok(root) = sys::open(path, sys::O_DIRECTORY)
    {
        free.store(root, Ordering::Relaxed);
    }
}

/// Have all of them on the disk, whole.
pub fn leave() {
    for fd in &MOUNTED {
        let root = fd.swap(0, Ordering::Relaxed);
        if root <= 0 || sys::chdir_to(root).is_err() {
            continue;
        }
        for _ in 0..TRIES {
            match sys::mount_from(c"", c"", c".", MS_REMOUNT | MS_RDONLY, c"") {
                Err(sys::EBUSY) => sys::sleep_ms(PAUSE_MS),
                _ => break,
            }
        }
        let _ = sys::chdir(c"/");
        sys::close(root);
    }
}

/// Mount the ext4 on the disk `name` at `path`. An empty one gets what the image has there.
///
/// The image has no node for the disk: the kernel's own /dev, which has, is mounted at `path` for a look.
pub fn mount(name: &CStr, path: &CStr, flags: usize) -> sys::Result<usize> {
    let mut buffer = [0; MAX_PATH];
    let image = sys::open(path, sys::O_DIRECTORY)?;
    sys::mount(c"devtmpfs", path, MS_NOSUID, c"")?;
    let node = join(&mut buffer, &[path.to_bytes(), b"/", name.to_bytes()]);
    let about = node.ok_or(sys::ENAMETOOLONG).and_then(|node| sys::stat(node, true));
    sys::unmount(path)?;
    let about = about?;
    let node = join(&mut buffer, &[b"/dev/", name.to_bytes()]).ok_or(sys::ENAMETOOLONG)?;
    sys::node(node, about.mode, about.device)?;
    let mounted = sys::mount_from(node, c"ext4", path, flags, OPTIONS);
    let _ = sys::unlink(node);
    mounted?;
    keep(path);
    if flags & MS_RDONLY == 0 {
        fill(image, path)?;
    }
    sys::close(image);
    Ok(0)
}

/// The path of an open file.
fn by_fd(buffer: &mut [u8], fd: Fd) -> sys::Result<&CStr> {
    let (digits, zeros) = decimal(fd as u8);
    let digits = digits.get(zeros..).unwrap_or_default();
    join(buffer, &[b"/proc/self/fd/", digits]).ok_or(sys::ENAMETOOLONG)
}

/// Copy the folder `image` to the file system at `path`, unless that has files.
fn fill(image: Fd, path: &CStr) -> sys::Result<()> {
    let half = sys::attribute(path, FILLING, &mut [0]).is_ok();
    let (mut has_any, mut volume_has_any) = (false, false);
    each_entry(image, |_| {
        has_any = true;
        Ok(())
    })?;
    sys::rewind(image)?;
    let root = sys::open(path, sys::O_DIRECTORY)?;
    let looked = each_entry(root, |name| {
        volume_has_any |= name != b"lost+found";
        Ok(())
    });
    sys::close(root);
    looked?;
    if volume_has_any && !half {
        return Ok(());
    }
    let mut copy = Copy {
        from: Path::new(),
        to: Path::new(),
    };
    by_fd(&mut copy.from.bytes, image)?;
    copy.from.len = copy.from.text().count_bytes();
    copy.to.push(path.to_bytes())?;
    // The folder itself, not the link to it.
    let about = sys::stat(copy.from.text(), true)?;
    if has_any {
        sys::set_attribute(path, FILLING, b"1")?;
        copy.entries(image, MAX_DEPTH)?;
        sys::sync();
        sys::remove_attribute(path, FILLING)?;
    }
    copy.finish(&about)
}

/// A path that grows and shrinks, ended by a NUL.
struct Path {
    bytes: [u8; MAX_PATH],
    len: usize,
}

impl Path {
    const fn new() -> Self {
        Self {
            bytes: [0; MAX_PATH],
            len: 0,
        }
    }

    fn text(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }

    fn push(&mut self, name: &[u8]) -> sys::Result<()> {
        let space = self.bytes.get_mut(self.len..).unwrap_or_default();
        let joined = join(space, &[name]).ok_or(sys::ENAMETOOLONG)?;
        self.len += joined.count_bytes();
        Ok(())
    }

    fn cut(&mut self, len: usize) {
        self.len = len;
        if let Some(end) = self.bytes.get_mut(len) {
            *end = 0;
        }
    }
}

/// The same place in the image and in the volume.
struct Copy {
    from: Path,
    to: Path,
}

impl Copy {
    /// Copy what is in an open folder, at most `depth` folders deep.
    fn entries(&mut self, folder: Fd, depth: usize) -> sys::Result<()> {
        let depth = depth.checked_sub(1).ok_or(sys::ENAMETOOLONG)?;
        let lens = (self.from.len, self.to.len);
        each_entry(folder, |name| {
            for path in [&mut self.from, &mut self.to] {
                path.push(b"/")?;
                path.push(name)?;
            }
            let about = sys::stat(self.from.text(), false)?;
            self.make(&about, depth)?;
            self.finish(&about)?;
            self.from.cut(lens.0);
            self.to.cut(lens.1);
            Ok(())
        })
    }

    fn make(&mut self, about: &Stat, depth: usize) -> sys::Result<()> {
        let (from, to) = (self.from.text(), self.to.text());
        match about.mode & KIND {
            FOLDER => {
                match sys::mkdir(to) {
                    Err(sys::EEXIST) => {}
                    made => drop(made?),
                }
                let folder = sys::open(from, sys::O_DIRECTORY | sys::O_NOFOLLOW)?;
                let copied = self.entries(folder, depth);
                sys::close(folder);
                copied
            }
            kind => {
                // Of a copy that was not finished.
                let _ = sys::unlink(to);
                match kind {
                    LINK => {
                        let mut target = [0; MAX_PATH];
                        let len = sys::read_link(from, &mut target)?;
                        *target.get_mut(len).ok_or(sys::ENAMETOOLONG)? = 0;
                        let target = CStr::from_bytes_until_nul(&target).unwrap_or_default();
                        sys::symlink(target, to).map(drop)
                    }
                    FILE => self.content(),
                    _ => sys::node(to, about.mode, about.device).map(drop),
                }
            }
        }
    }

    fn content(&self) -> sys::Result<()> {
        let from = sys::open(self.from.text(), sys::O_RDONLY | sys::O_NOFOLLOW)?;
        let to = sys::create(self.to.text(), 0o600);
        let copied = to.and_then(|to| {
            let copied = pour(from, to);
            sys::close(to);
            copied
        });
        sys::close(from);
        copied
    }

    /// Owner, mode, capabilities and time, in this order: a new owner takes set-user-ID and capabilities away.
    fn finish(&self, about: &Stat) -> sys::Result<()> {
        let to = self.to.text();
        sys::give_link(to, about.uid, about.gid)?;
        if about.mode & KIND != LINK {
            sys::chmod(to, about.mode as usize & 0o7777)?;
        }
        let mut value = [0; 64];
        if about.mode & KIND == FILE
            && let Ok(len) = sys::attribute(self.from.text(), CAPABILITY, &mut value)
        {
            sys::set_attribute(to, CAPABILITY, value.get(..len).unwrap_or_default())?;
        }
        sys::set_times(to, about.mtime)
    }
}

/// Copy all of an open file to another (sendfile(2)).
fn pour(from: Fd, to: Fd) -> Result<(), Errno> {
    while sys::send_file(to, from, 1 << 20)? > 0 {}
    Ok(())
}
