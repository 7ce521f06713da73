//! The few system calls that init needs, by number (Linux, arch/x86/entry/syscalls).
//!
//! A wrapper is safe if the kernel only touches what the arguments borrow. An [`Errno`] is positive.

use core::arch::asm;
use core::ffi::CStr;

/// A file descriptor.
pub type Fd = i32;

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// The result of a call.
pub type Result<T> = core::result::Result<T, Errno>;

pub const ENOENT: Errno = Errno(2);
pub const EBADF: Errno = Errno(9);
pub const EAGAIN: Errno = Errno(11);
pub const EACCES: Errno = Errno(13);
pub const EBUSY: Errno = Errno(16);
pub const EEXIST: Errno = Errno(17);
pub const ENODEV: Errno = Errno(19);
pub const ENOTDIR: Errno = Errno(20);
pub const EINVAL: Errno = Errno(22);
pub const EINTR: Errno = Errno(4);
pub const ENAMETOOLONG: Errno = Errno(36);

pub const O_RDONLY: i32 = 0;
pub const O_WRONLY: i32 = 1;
pub const O_RDWR: i32 = 2;
pub const O_NOCTTY: i32 = 0o400;
pub const O_NONBLOCK: i32 = 0o4000;
pub const O_NOFOLLOW: i32 = 0o400_000;
pub const O_DIRECTORY: i32 = 0o200_000;
pub const O_CLOEXEC: i32 = 0o2_000_000;

pub const POLLIN: i16 = 1;
pub const POLLOUT: i16 = 4;
pub const POLLERR: i16 = 8;
pub const POLLHUP: i16 = 16;

/// SIGHUP, SIGINT, SIGQUIT, SIGTERM: what users end programs with.
pub const ENDING_SIGNALS: [u32; 4] = [1, 2, 3, SIGTERM];
pub const SIGUSR1: u32 = 10;
pub const SIGUSR2: u32 = 12;
pub const SIGPIPE: u32 = 13;
pub const SIGTERM: u32 = 15;
pub const SIGCHLD: u32 = 17;

pub const TCGETS: u32 = 0x5401;
pub const TCSETS: u32 = 0x5402;
pub const TIOCSCTTY: u32 = 0x540e;
pub const TIOCGPGRP: u32 = 0x540f;
pub const TIOCSWINSZ: u32 = 0x5414;
pub const TIOCSPTLCK: u32 = 0x4004_5431;
pub const TIOCGPTPEER: u32 = 0x5441;

/// What reboot(2) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Reboot {
    /// RB_AUTOBOOT.
    Restart = 0x0123_4567,
    /// RB_POWER_OFF.
    PowerOff = 0x4321_fedc,
}

/// struct pollfd.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PollFd {
    pub fd: Fd,
    pub events: i16,
    pub revents: i16,
}

/// struct timespec; ppoll writes back the remaining time.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

impl Timespec {
    pub const fn from_ms(ms: i64) -> Self {
        Self {
            seconds: ms / 1000,
            nanoseconds: ms % 1000 * 1_000_000,
        }
    }

    /// Whether no time is left.
    pub const fn is_zero(&self) -> bool {
        self.seconds == 0 && self.nanoseconds == 0
    }

    pub const fn from_ns(ns: u64) -> Self {
        Self {
            seconds: (ns / 1_000_000_000) as i64,
            nanoseconds: (ns % 1_000_000_000) as i64,
        }
    }
}

/// SAFETY: the arguments must satisfy the call `number`.
unsafe fn call6(number: usize, args: [usize; 6]) -> Result<usize> {
    let result: isize;
    // SAFETY: the caller's promise; SYSCALL changes RAX, RCX and R11 alone.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result,
             in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
             in("r10") args[3], in("r8") args[4], in("r9") args[5],
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    match result {
        -4095..=-1 => Err(Errno(-result as i32)),
        _ => Ok(result as usize),
    }
}

macro_rules! call {
    ($number:expr $(, $arg:expr)*) => {
        // SAFETY: every pointer comes from a reference that lives through the call, with its
        // length; the numbers are those of the calls named at the function.
        unsafe { call6($number, padded([$($arg as usize),*])) }
    };
}

fn padded<const N: usize>(args: [usize; N]) -> [usize; 6] {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&args);
    all
}

pub fn read(fd: Fd, bytes: &mut [u8]) -> Result<usize> {
    call!(0, fd, bytes.as_mut_ptr(), bytes.len())
}

pub fn write(fd: Fd, bytes: &[u8]) -> Result<usize> {
    call!(1, fd, bytes.as_ptr(), bytes.len())
}

pub fn close(fd: Fd) {
    let _ = call!(3, fd);
}

pub fn open(path: &CStr, flags: i32) -> Result<Fd> {
    Ok(call!(2, path.as_ptr(), flags | O_CLOEXEC)? as Fd)
}

/// Create or truncate a file for writing.
pub fn create(path: &CStr, mode: usize) -> Result<Fd> {
    const O_WRONLY_CREAT_TRUNC: i32 = 0o1101;
    Ok(call!(2, path.as_ptr(), O_WRONLY_CREAT_TRUNC | O_CLOEXEC, mode)? as Fd)
}

/// Open a file to write behind its end.
pub fn append(path: &CStr) -> Result<Fd> {
    const O_WRONLY_APPEND: i32 = 0o2001;
    open(path, O_WRONLY_APPEND)
}

/// openat(2) with a path below `dir`.
pub fn open_at(dir: Fd, path: &CStr, flags: i32) -> Result<Fd> {
    Ok(call!(257, dir, path.as_ptr(), flags | O_CLOEXEC)? as Fd)
}

pub fn read_dir(fd: Fd, bytes: &mut [u8]) -> Result<usize> {
    call!(217, fd, bytes.as_mut_ptr(), bytes.len())
}

/// ppoll(2) without a signal mask; `None` waits for ever.
pub fn poll(fds: &mut [PollFd], timeout: Option<&mut Timespec>) -> Result<usize> {
    let timeout = timeout.map_or(core::ptr::null_mut(), |t| t as *mut Timespec);
    call!(271, fds.as_mut_ptr(), fds.len(), timeout)
}

/// Give way to other processes: one that wakes this one up runs on until it waits (SCHED_BATCH, sched(7)).
/// Children are scheduled as usual.
pub fn yield_to_others() {
    const SCHED_BATCH: usize = 3;
    const SCHED_RESET_ON_FORK: usize = 0x4000_0000;
    let priority = 0i32;
    let _ = call!(
        144,
        0,
        SCHED_BATCH | SCHED_RESET_ON_FORK,
        &raw const priority
    );
}

pub fn sleep_ms(ms: i64) {
    let _ = poll(&mut [], Some(&mut Timespec::from_ms(ms)));
}

/// pipe2(2) with O_CLOEXEC: the read end and the write end.
pub fn pipe() -> Result<(Fd, Fd)> {
    let mut fds = [0 as Fd; 2];
    call!(293, fds.as_mut_ptr(), O_CLOEXEC)?;
    Ok((fds[0], fds[1]))
}

pub fn dup2(from: Fd, to: Fd) -> Result<usize> {
    call!(33, from, to)
}

/// Duplicate `fd` to the lowest free descriptor, closed on exec.
pub fn dup(fd: Fd) -> Result<Fd> {
    const F_DUPFD_CLOEXEC: usize = 1030;
    Ok(call!(72, fd, F_DUPFD_CLOEXEC, 0)? as Fd)
}

pub fn set_nonblocking(fd: Fd) -> Result<usize> {
    const F_SETFL: usize = 4;
    call!(72, fd, F_SETFL, O_NONBLOCK)
}

/// ioctl(2) with a number as its argument.
pub fn ioctl(fd: Fd, request: u32, argument: usize) -> Result<usize> {
    // TIOCSCTTY, TIOCGPTPEER and TCSBRK take numbers.
    call!(16, fd, request, argument)
}

/// ioctl(2) that reads a structure.
pub fn ioctl_with<T>(fd: Fd, request: u32, argument: &T) -> Result<usize> {
    call!(16, fd, request, argument as *const T)
}

/// ioctl(2) that reads a structure and writes to it.
pub fn ioctl_into<T>(fd: Fd, request: u32, argument: &mut T) -> Result<usize> {
    call!(16, fd, request, argument as *mut T)
}

/// clock_settime(2) of CLOCK_REALTIME.
pub fn set_clock(time: &Timespec) -> Result<usize> {
    const CLOCK_REALTIME: usize = 0;
    call!(227, CLOCK_REALTIME, time as *const Timespec)
}

pub fn pid() -> usize {
    call!(39).unwrap_or(0)
}

pub fn socket(family: usize, kind: usize) -> Result<Fd> {
    const SOCK_CLOEXEC: usize = 0o2_000_000;
    Ok(call!(41, family, kind | SOCK_CLOEXEC, 0)? as Fd)
}

/// Send `signal` to the process group that `leader` leads.
pub fn kill_group(leader: i32, signal: u32) {
    let _ = call!(62, -(leader as isize), signal);
}

/// wait4(2) for any child that has ended: its process number and status.
pub fn reap() -> Option<(i32, i32)> {
    const WNOHANG: usize = 1;
    let mut status = 0i32;
    match call!(61, -1isize, &raw mut status, WNOHANG) {
        Ok(pid @ 1..) => Some((pid as i32, status)),
        _ => None,
    }
}

pub fn exit(status: i32) -> ! {
    let _ = call!(231, status);
    // exit_group does not return.
    loop {
        core::hint::spin_loop();
    }
}

pub fn set_session() -> Result<usize> {
    call!(112)
}

pub fn chroot(path: &CStr) -> Result<usize> {
    call!(161, path.as_ptr())
}

/// setgroups(2).
pub fn set_groups(groups: &[u32]) -> Result<()> {
    call!(116, groups.len(), groups.as_ptr()).map(drop)
}

/// setgid(2) of a process with all rights: real, effective and saved group.
pub fn set_group(id: u32) -> Result<()> {
    call!(106, id).map(drop)
}

/// setuid(2) of a process with all rights: real, effective and saved user.
pub fn set_user(id: u32) -> Result<()> {
    call!(105, id).map(drop)
}

/// What copying takes of struct stat.
#[derive(Default)]
pub struct Stat {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds.
    pub mtime: i64,
    pub size: u64,
    /// Of a device: which one.
    pub device: u64,
}

/// stat(2), or lstat(2) unless `follow`.
pub fn stat(path: &CStr, follow: bool) -> Result<Stat> {
    const AT_FDCWD: isize = -100;
    const AT_SYMLINK_NOFOLLOW: usize = 0x100;
    // struct stat has 144 bytes: st_mode and st_uid are at 24, st_gid at 32, st_rdev at 40, st_size at
    // 48, st_mtime at 88.
    let mut info = [0u64; 18];
    let flags = if follow { 0 } else { AT_SYMLINK_NOFOLLOW };
    call!(262, AT_FDCWD, path.as_ptr(), info.as_mut_ptr(), flags)?;
    Ok(Stat {
        mode: info[3] as u32,
        uid: (info[3] >> 32) as u32,
        gid: info[4] as u32,
        size: info[6],
        device: info[5],
        mtime: info[11] as i64,
    })
}

/// readlink(2).
pub fn read_link(path: &CStr, bytes: &mut [u8]) -> Result<usize> {
    call!(89, path.as_ptr(), bytes.as_mut_ptr(), bytes.len())
}

pub fn unlink(path: &CStr) -> Result<usize> {
    call!(87, path.as_ptr())
}

/// lchown(2).
pub fn give_link(path: &CStr, user: u32, group: u32) -> Result<()> {
    call!(94, path.as_ptr(), user, group).map(drop)
}

/// utimensat(2): the time of the last change, and of the last access as it is.
pub fn set_times(path: &CStr, seconds: i64) -> Result<()> {
    const AT_FDCWD: isize = -100;
    const AT_SYMLINK_NOFOLLOW: usize = 0x100;
    const UTIME_OMIT: i64 = 0x3fff_fffe;
    let times = [0, UTIME_OMIT, seconds, 0];
    call!(
        280,
        AT_FDCWD,
        path.as_ptr(),
        times.as_ptr(),
        AT_SYMLINK_NOFOLLOW
    )
    .map(drop)
}

/// prlimit(2) of this process.
pub fn set_limit(resource: u8, soft: u64, hard: u64) -> Result<()> {
    let limit = [soft, hard];
    call!(302, 0, resource as usize, limit.as_ptr(), 0).map(drop)
}

/// Remove a capability from the bounding set: PR_CAPBSET_DROP of prctl(2).
pub fn drop_capability(number: usize) -> Result<()> {
    const PR_CAPBSET_DROP: usize = 24;
    call!(157, PR_CAPBSET_DROP, number, 0, 0, 0).map(drop)
}

/// fchown(2) to a user, with the group as it is.
pub fn give(fd: Fd, user: u32) {
    let _ = call!(93, fd, user, u32::MAX);
}

/// The value of an extended attribute, of the link itself; its length (lgetxattr(2)).
pub fn attribute(path: &CStr, name: &CStr, value: &mut [u8]) -> Result<usize> {
    call!(192, path.as_ptr(), name.as_ptr(), value.as_mut_ptr(), value.len())
}

/// lsetxattr(2).
pub fn set_attribute(path: &CStr, name: &CStr, value: &[u8]) -> Result<usize> {
    call!(189, path.as_ptr(), name.as_ptr(), value.as_ptr(), value.len(), 0)
}

/// lremovexattr(2).
pub fn remove_attribute(path: &CStr, name: &CStr) -> Result<usize> {
    call!(198, path.as_ptr(), name.as_ptr())
}

/// mknod(2), with the type and the device of a [`Stat`].
pub fn node(path: &CStr, mode: u32, device: u64) -> Result<usize> {
    call!(133, path.as_ptr(), mode, device)
}

/// lseek(2) to the beginning.
pub fn rewind(fd: Fd) -> Result<usize> {
    call!(8, fd, 0, 0)
}

/// sendfile(2), from where `from` was left.
pub fn send_file(to: Fd, from: Fd, len: usize) -> Result<usize> {
    call!(40, to, from, 0, len)
}

/// fchdir(2).
pub fn chdir_to(folder: Fd) -> Result<usize> {
    call!(81, folder)
}

/// Kill every process but this one.
pub fn kill_all() {
    const SIGKILL: usize = 9;
    let _ = call!(62, -1isize, SIGKILL);
}

pub fn chdir(path: &CStr) -> Result<usize> {
    call!(80, path.as_ptr())
}

pub fn mkdir(path: &CStr) -> Result<usize> {
    call!(83, path.as_ptr(), 0o755)
}

pub fn chmod(path: &CStr, mode: usize) -> Result<usize> {
    call!(90, path.as_ptr(), mode)
}

/// mknod(2) of a character device.
pub fn character_device(path: &CStr, major: usize, minor: usize) -> Result<usize> {
    const S_IFCHR: usize = 0o020_000;
    call!(133, path.as_ptr(), S_IFCHR | 0o666, major << 8 | minor)
}

/// umount2(2) with MNT_DETACH.
pub fn unmount(path: &CStr) -> Result<usize> {
    const MNT_DETACH: usize = 2;
    call!(166, path.as_ptr(), MNT_DETACH)
}

/// umask(2): the bits that new files do not get.
pub fn set_umask(bits: usize) {
    let _ = call!(95, bits);
}

/// Give `to` the owner and the permissions of `from`.
pub fn copy_attributes(from: &CStr, to: &CStr) -> Result<()> {
    // struct stat has 144 bytes; st_mode is at byte 24, st_uid and st_gid follow.
    let mut about = [0u32; 36];
    call!(4, from.as_ptr(), about.as_mut_ptr())?;
    let [mode, user, group] = [about[6], about[7], about[8]];
    call!(92, to.as_ptr(), user, group)?;
    chmod(to, mode as usize & 0o7777).map(drop)
}

/// The magic number of the file system at `path`, by statfs(2).
pub fn file_system(path: &CStr) -> Result<i64> {
    // struct statfs has 120 bytes and begins with f_type.
    let mut info = [0i64; 15];
    call!(137, path.as_ptr(), info.as_mut_ptr())?;
    Ok(info[0])
}

pub fn symlink(target: &CStr, path: &CStr) -> Result<usize> {
    call!(88, target.as_ptr(), path.as_ptr())
}

/// mount(2) of a file system without a source.
pub fn mount(kind: &CStr, path: &CStr, flags: usize, options: &CStr) -> Result<usize> {
    mount_from(kind, kind, path, flags, options)
}

pub fn mount_from(
    source: &CStr,
    kind: &CStr,
    path: &CStr,
    flags: usize,
    options: &CStr,
) -> Result<usize> {
    let (source, kind) = (source.as_ptr(), kind.as_ptr());
    call!(165, source, path.as_ptr(), kind, flags, options.as_ptr())
}

pub fn set_hostname(name: &[u8]) {
    let _ = call!(170, name.as_ptr(), name.len());
}

/// finit_module(2) without parameters.
pub fn load_module(fd: Fd) -> Result<usize> {
    call!(313, fd, c"".as_ptr(), 0)
}

pub fn sync() {
    let _ = call!(162);
}

/// reboot(2).
pub fn reboot(how: Reboot) {
    let _ = call!(169, 0xfee1_dead_usize, 672_274_793, how);
}

/// iopl(2): at level 3 all I/O ports are allowed, at 0 none.
pub fn io_privilege(level: usize) -> Result<usize> {
    call!(172, level)
}

/// The bit of a signal in a mask.
const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

/// Block the signals that [`signal_fd`] gives, and SIGPIPE.
pub fn block_signals() {
    set_mask(SIGNALS | bit(SIGPIPE));
}

/// Block no signal.
pub fn unblock_signals() {
    set_mask(0);
}

const SIGNALS: u64 = bit(SIGCHLD) | bit(SIGTERM) | bit(SIGUSR1) | bit(SIGUSR2);

fn set_mask(mask: u64) {
    const SIG_SETMASK: usize = 2;
    let _ = call!(14, SIG_SETMASK, &raw const mask, 0, 8);
}

/// A descriptor that reports SIGCHLD, SIGTERM, SIGUSR1 and SIGUSR2.
pub fn signal_fd() -> Result<Fd> {
    let mask = SIGNALS;
    Ok(call!(289, -1isize, &raw const mask, 8, O_CLOEXEC)? as Fd)
}

/// The next signal of a [`signal_fd`]; waits for one.
pub fn next_signal(fd: Fd) -> u32 {
    // struct signalfd_siginfo has 128 bytes and begins with ssi_signo.
    let mut info = [0; 128];
    match read(fd, &mut info) {
        Ok(_) => u32::from_le_bytes([info[0], info[1], info[2], info[3]]),
        Err(_) => 0,
    }
}

/// execve(2); returns only when it failed.
///
/// # Safety
/// `argv` and `env` are arrays of pointers to strings ended by NULs, a null pointer last.
pub unsafe fn exec(path: *const u8, argv: *const *const u8, env: *const *const u8) -> Errno {
    let args = [path as usize, argv as usize, env as usize, 0, 0, 0];
    // SAFETY: the caller's promise.
    match unsafe { call6(59, args) } {
        Err(errno) => errno,
        Ok(_) => ENOENT,
    }
}

/// Run `child` in a new process that shares this one's memory. This process waits until the new one
/// has called execve or exit, so nothing is copied.
///
/// # Safety
/// `child` may change only the memory that `argument` points to for that purpose.
pub unsafe fn spawn<T>(child: extern "C" fn(*mut T) -> !, argument: *mut T) -> Result<i32> {
    const CLONE_VM: usize = 0x100;
    const CLONE_VFORK: usize = 0x4000;
    let result: isize;
    // SAFETY: the child continues with this stack below the current stack pointer, which the
    // parent does not use while it waits, and never returns from the call.
    unsafe {
        asm!(
            "xor r8d, r8d",
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") 56isize => result,
            in("rdi") CLONE_VM | CLONE_VFORK | SIGCHLD as usize,
            in("rsi") 0, in("rdx") 0, in("r10") 0, out("r8") _,
            in("r12") child as *const (), in("r13") argument,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    match result {
        -4095..=-1 => Err(Errno(-result as i32)),
        pid => Ok(pid as i32),
    }
}
