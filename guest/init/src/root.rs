//! An image as the root file system, set up as a container engine does it.

use core::ffi::CStr;
use core::sync::atomic::{AtomicBool, Ordering};

use hull_agent::{MAX_PATH, Root};

use crate::disks::{self, OPTIONS};
use crate::setup::{
    MS_BIND, MS_MOVE, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT, make_folders,
};
use crate::sys::{self, Errno};
use crate::text::join;

/// Whether the root is an image.
static IS_IMAGE: AtomicBool = AtomicBool::new(false);
/// Whether the command is to find it read-only.
static READ_ONLY: AtomicBool = AtomicBool::new(false);

/// The read-only file system, what is written over it, and both together.
const LOWER: &CStr = c"/image";
const UPPER: &CStr = c"/upper";
const NEW: &CStr = c"/newroot";
const OVERLAY: &CStr = c"lowerdir=/image,upperdir=/upper/data,workdir=/upper/work";

/// The devices of every container (OCI runtime specification, Linux, Default Devices).
const DEVICES: [(&CStr, usize, usize); 6] = [
    (c"/newroot/dev/null", 1, 3),
    (c"/newroot/dev/zero", 1, 5),
    (c"/newroot/dev/full", 1, 7),
    (c"/newroot/dev/random", 1, 8),
    (c"/newroot/dev/urandom", 1, 9),
    (c"/newroot/dev/tty", 5, 0),
];

const LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"/newroot/dev/fd"),
    (c"/proc/self/fd/0", c"/newroot/dev/stdin"),
    (c"/proc/self/fd/1", c"/newroot/dev/stdout"),
    (c"/proc/self/fd/2", c"/newroot/dev/stderr"),
    (c"pts/ptmx", c"/newroot/dev/ptmx"),
];

/// What was mounted for the initial RAM disk, and where the image has it.
const MOVED: [(&CStr, &CStr); 3] = [
    (c"/dev/pts", c"/newroot/dev/pts"),
    (c"/proc", c"/newroot/proc"),
    (c"/sys", c"/newroot/sys"),
];

/// What failed, for the user, and why.
type Failed = (&'static [u8], Errno);

/// For `map_err`: `what` failed.
fn at(what: &'static [u8]) -> impl Fn(Errno) -> Failed {
    move |errno| (what, errno)
}

/// Whether the root is an image.
pub fn is_image() -> bool {
    IS_IMAGE.load(Ordering::Relaxed)
}

/// Make the image the root.
pub fn enter(root: &Root<'_>) -> Result<(), Failed> {
    // Everything gets the modes that are written here.
    sys::set_umask(0);
    let entered = overlay(root).and_then(|()| go_over(root));
    sys::set_umask(0o022);
    entered
}

/// Before the command, and after all mounts, which may need folders: make the root read-only, if it is to be.
pub fn seal() -> sys::Result<()> {
    if !READ_ONLY.load(Ordering::Relaxed) {
        return Ok(());
    }
    sys::mount_from(c"", c"", c"/", MS_REMOUNT | MS_BIND | MS_RDONLY, c"").map(drop)
}

fn overlay(root: &Root<'_>) -> Result<(), Failed> {
    for folder in [LOWER, UPPER, NEW] {
        let _ = sys::mkdir(folder);
    }
    let (mut lower, mut upper) = ([0; 32], [0; 32]);
    let lower = join(&mut lower, &[b"/dev/", root.disk.to_bytes()]).unwrap_or_default();
    sys::mount_from(lower, c"erofs", LOWER, MS_RDONLY, c"")
        .map_err(at(b"its disk cannot be mounted"))?;
    if root.upper.is_empty() {
        sys::mount(c"tmpfs", UPPER, 0, c"mode=0755")
    } else {
        let upper = join(&mut upper, &[b"/dev/", root.upper.to_bytes()]).unwrap_or_default();
        let mounted = sys::mount_from(upper, c"ext4", UPPER, 0, OPTIONS);
        disks::keep(UPPER);
        mounted
    }
    .map_err(at(b"the file system for what is written cannot be mounted"))?;
    // A disk may have been written before.
    if sys::mkdir(c"/upper/data").is_ok() {
        let _ = sys::copy_attributes(LOWER, c"/upper/data");
    }
    let _ = sys::mkdir(c"/upper/work");
    sys::mount_from(c"overlay", c"overlay", NEW, 0, OVERLAY)
        .map(drop)
        .map_err(at(b"the overlay cannot be mounted"))
}

fn go_over(root: &Root<'_>) -> Result<(), Failed> {
    for folder in [c"/newroot/dev", c"/newroot/proc", c"/newroot/sys", c"/newroot/etc"] {
        let _ = sys::mkdir(folder);
    }
    devices();
    for (from, to) in MOVED {
        sys::mount_from(from, c"", to, MS_MOVE, c"").map_err(at(b"/dev, /proc and /sys"))?;
    }
    let name_servers = sys::open(c"/etc/resolv.conf", sys::O_RDONLY);
    let into = || {
        sys::chdir(NEW)?;
        sys::mount_from(c".", c"", c"/", MS_MOVE, c"")?;
        sys::chroot(c".")?;
        sys::chdir(c"/")
    };
    into().map_err(at(b"it cannot be entered"))?;
    files(root, name_servers);
    if !root.workdir.is_empty() {
        make_folders(root.workdir);
    }
    READ_ONLY.store(root.read_only, Ordering::Relaxed);
    IS_IMAGE.store(true, Ordering::Relaxed);
    Ok(())
}

/// Fill /dev. What fails is missing there.
fn devices() {
    let _ = sys::mount(c"tmpfs", c"/newroot/dev", MS_NOSUID | MS_NOEXEC, c"mode=0755");
    for (path, major, minor) in DEVICES {
        let _ = sys::character_device(path, major, minor);
    }
    for (target, path) in LINKS {
        let _ = sys::symlink(target, path);
    }
    for folder in [c"/newroot/dev/pts", c"/newroot/dev/shm", c"/newroot/dev/mqueue"] {
        let _ = sys::mkdir(folder);
    }
    let _ = sys::chmod(c"/newroot/dev/shm", 0o1777);
    let flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    let _ = sys::mount(c"mqueue", c"/newroot/dev/mqueue", flags, c"");
}

/// Name the machine, and write the files that an engine provides.
fn files(root: &Root<'_>, name_servers: sys::Result<sys::Fd>) {
    let hostname = root.hostname.to_bytes();
    sys::set_hostname(hostname);
    let mut line = [0; 80];
    let line = join(&mut line, &[hostname, b"\n"]).unwrap_or_default();
    write(c"/etc/hostname", line.to_bytes(), b"");
    write(c"/etc/hosts", root.hosts.to_bytes(), b"");
    let (mut text, mut len) = ([0; MAX_PATH], 0);
    let resolver = root.resolver.to_bytes();
    if let Ok(from) = name_servers {
        if !resolver.starts_with(b"nameserver") {
            len = sys::read(from, &mut text).unwrap_or(0);
        }
        sys::close(from);
    } else if resolver.is_empty() {
        return;
    }
    // In two parts: together they may be longer than what there is on the stack.
    write(c"/etc/resolv.conf", text.get(..len).unwrap_or_default(), resolver);
}

/// Write a file anew: what was there may be a link.
fn write(path: &CStr, text: &[u8], more: &[u8]) {
    let _ = sys::unlink(path);
    if let Ok(file) = sys::create(path, 0o644) {
        let _ = sys::write(file, text);
        let _ = sys::write(file, more);
        sys::close(file);
    }
}
