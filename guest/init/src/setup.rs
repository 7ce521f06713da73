//! Sets up what programs expect of a running system, with few system calls.
//!
//! Errors are ignored: a kernel without cgroups still runs a command.

use core::arch::asm;
use core::ffi::CStr;
use core::sync::atomic::{AtomicBool, Ordering};

use hull_agent::{MAX_PATH, Mount, MountKind};

use crate::disks;
use crate::sys;
use crate::text::{each_line, join};

/// Whether the root file system is on a disk.
static ON_DISK: AtomicBool = AtomicBool::new(false);

pub const MS_RDONLY: usize = 1;
pub const MS_REMOUNT: usize = 32;
pub const MS_BIND: usize = 4096;
pub const MS_MOVE: usize = 8192;
pub const MS_NOSUID: usize = 2;
pub const MS_NODEV: usize = 4;
pub const MS_NOEXEC: usize = 8;

/// The debug port: hull records the time when init writes [`INIT_RUNS`] to it.
const DEBUG_PORT: u16 = 0x80;
const INIT_RUNS: u8 = 0x60;

/// File system, mount point, flags, options.
type Fixed = (&'static CStr, &'static CStr, usize, &'static CStr);

/// Needed to find the agent's channel.
const FIRST: [Fixed; 3] = [
    (c"devtmpfs", c"/dev", MS_NOSUID, c"mode=0755"),
    (c"proc", c"/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, c""),
    (c"sysfs", c"/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, c""),
];

/// Needed by the command.
const SECOND: [Fixed; 2] = [
    (
        c"devpts",
        c"/dev/pts",
        MS_NOSUID | MS_NOEXEC,
        c"mode=620,ptmxmode=666,gid=5",
    ),
    (
        c"cgroup2",
        c"/sys/fs/cgroup",
        MS_NOSUID | MS_NODEV | MS_NOEXEC,
        c"",
    ),
];

/// Directories for temporary files, with their modes. In an initramfs and in devtmpfs a plain
/// directory is in memory already, and costs a third of a mount.
const SCRATCH: [(&CStr, usize, &CStr); 3] = [
    (c"/dev/shm", 0o1777, c"mode=1777"),
    (c"/tmp", 0o1777, c"mode=1777"),
    (c"/run", 0o755, c"mode=0755"),
];

const LINKS: [(&CStr, &CStr); 4] = [
    (c"/proc/self/fd", c"/dev/fd"),
    (c"/proc/self/fd/0", c"/dev/stdin"),
    (c"/proc/self/fd/1", c"/dev/stdout"),
    (c"/proc/self/fd/2", c"/dev/stderr"),
];

/// Report to hull that init runs.
pub fn mark() {
    // Cheaper than ioperm(2), which allocates a bitmap of all ports.
    if sys::io_privilege(3).is_ok() {
        // SAFETY: the kernel has just allowed all ports; a write to this one does nothing else.
        unsafe { asm!("out dx, al", in("dx") DEBUG_PORT, in("al") INIT_RUNS) };
        // Otherwise commands would inherit it.
        let _ = sys::io_privilege(0);
    }
}

/// Mount /dev, /proc and /sys.
pub fn first() {
    FIRST.iter().for_each(mount);
}

/// Mount the rest, set links, host name and the loopback interface.
pub fn second() {
    SECOND.iter().for_each(mount);
    for (path, mode, options) in SCRATCH {
        if !in_memory(path, mode) {
            mount(&(c"tmpfs", path, MS_NOSUID | MS_NODEV, options));
        }
    }
    for (target, path) in LINKS {
        let _ = sys::symlink(target, path);
    }
    sys::set_hostname(b"hull");
    loopback();
}

fn mount(&(kind, path, flags, options): &Fixed) {
    if sys::mount(kind, path, flags, options) == Err(sys::ENOENT) {
        let _ = sys::mkdir(path);
        let _ = sys::mount(kind, path, flags, options);
    }
}

/// Mount a folder, and create missing parts of its path (Documentation/filesystems/virtiofs.rst, tmpfs.rst).
pub fn share(mount: &Mount<'_>) -> sys::Result<()> {
    let read_only = if mount.read_only { MS_RDONLY } else { 0 };
    if mount.is_root() {
        return go_over(mount.tag, read_only);
    }
    make_folders(mount.path);
    let flags = read_only | MS_NOSUID | MS_NODEV;
    match mount.kind {
        MountKind::Share => sys::mount_from(mount.tag, c"virtiofs", mount.path, flags, c""),
        MountKind::Memory => sys::mount(c"tmpfs", mount.path, flags, mount.tag),
        MountKind::Disk => disks::mount(mount.tag, mount.path, read_only | MS_NODEV),
    }
    .map(drop)
}

/// Make the file system on the block device /dev/`name` the root, and take along what was mounted. What
/// kind it is, is tried out as the kernel does (init/do_mounts.c).
fn go_over(name: &CStr, flags: usize) -> sys::Result<()> {
    const NEW: &CStr = c"/newroot";
    const MOUNTED: [(&CStr, &CStr); 3] = [
        (c"/dev", c"/newroot/dev"),
        (c"/proc", c"/newroot/proc"),
        (c"/sys", c"/newroot/sys"),
    ];
    let mut buffer = [0; 64];
    let device = join(&mut buffer, &[b"/dev/", name.to_bytes()]).ok_or(sys::ENAMETOOLONG)?;
    let _ = sys::mkdir(NEW);
    let mut mounted = Err(sys::ENODEV);
    each_line(c"/proc/filesystems", |line| {
        let mut buffer = [0; 64];
        // The others need no device.
        let kind = line
            .strip_prefix(b"\t")
            .and_then(|kind| join(&mut buffer, &[kind]));
        if let Some(kind) = kind {
            mounted = sys::mount_from(device, kind, NEW, flags, c"");
        }
        mounted.is_ok()
    });
    mounted?;
    for (from, to) in MOUNTED {
        let _ = sys::mkdir(to);
        sys::mount_from(from, c"", to, MS_MOVE, c"")?;
    }
    // If the host has set a name server.
    let _ = sys::mount_from(
        c"/etc/resolv.conf",
        c"",
        c"/newroot/etc/resolv.conf",
        MS_BIND,
        c"",
    );
    sys::chdir(NEW)?;
    sys::mount_from(c".", c"", c"/", MS_MOVE, c"")?;
    sys::chroot(c".")?;
    sys::chdir(c"/")?;
    mount(&(c"tmpfs", c"/run", MS_NOSUID | MS_NODEV, c"mode=0755"));
    ON_DISK.store(true, Ordering::Relaxed);
    Ok(())
}

/// If there are file systems on disks, leave them as a system that shuts down does.
pub fn leave_disks() {
    let root = ON_DISK.load(Ordering::Relaxed);
    if root || disks::is_any() {
        sys::kill_all();
        disks::leave();
    }
    if root {
        let _ = sys::mount_from(c"", c"", c"/", MS_REMOUNT | MS_RDONLY, c"");
    }
}

/// mkdir -p. If a folder cannot be made, the mount fails.
pub fn make_folders(path: &CStr) {
    let mut part = [0; MAX_PATH];
    let bytes = path.to_bytes();
    for (index, &byte) in bytes.iter().enumerate() {
        if byte == b'/'
            && index > 0
            && let Ok(part) = CStr::from_bytes_until_nul(&part)
        {
            let _ = sys::mkdir(part);
        }
        if let Some(place) = part.get_mut(index) {
            *place = byte;
        }
    }
    let _ = sys::mkdir(path);
}

/// Whether `path` could be made to lie in memory as a directory of this mode.
fn in_memory(path: &CStr, mode: usize) -> bool {
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let _ = sys::mkdir(path);
    matches!(sys::file_system(path), Ok(RAMFS_MAGIC | TMPFS_MAGIC))
        && sys::chmod(path, mode).is_ok()
}

/// Bring `lo` up: netdevice(7), SIOCSIFFLAGS with IFF_UP.
fn loopback() {
    const AF_INET: usize = 2;
    const SOCK_DGRAM: usize = 2;
    const SIOCSIFFLAGS: u32 = 0x8914;
    let mut request = [0u8; 40];
    request[..2].copy_from_slice(b"lo");
    request[16] = 1;
    if let Ok(fd) = sys::socket(AF_INET, SOCK_DGRAM) {
        let _ = sys::ioctl_with(fd, SIOCSIFFLAGS, &request);
        sys::close(fd);
    }
}

/// Load the modules that an initramfs for a foreign kernel lists in /lib/modules-hull/order, one
/// path a line, dependencies first.
pub fn modules() {
    let Ok(fd) = sys::open(c"/lib/modules-hull/order", sys::O_RDONLY) else {
        return;
    };
    let mut list = [0; 8192];
    let len = sys::read(fd, &mut list).unwrap_or(0);
    sys::close(fd);
    // Every newline becomes the NUL that ends a path.
    let Some(list) = list.get_mut(..len) else {
        return;
    };
    for line in list.split_inclusive_mut(|&byte| byte == b'\n') {
        if let Some(end) = line.last_mut().filter(|end| **end == b'\n') {
            *end = 0;
        }
        let Ok(path) = CStr::from_bytes_with_nul(line) else {
            continue;
        };
        if let Ok(fd) = sys::open(path, sys::O_RDONLY) {
            let _ = sys::load_module(fd);
            sys::close(fd);
        }
    }
}
