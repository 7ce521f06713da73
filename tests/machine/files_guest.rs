//! What POSIX and Linux promise of a file system, as a table of cases: the guest runs it in a shared
//! folder, the host in the same folder for comparison. The cases are those of pjdfstest and of
//! xfstests' generic group that concern a folder as a whole, re-stated.
//!
//! `files FOLDER [CASE]..`: a line for each case, `NAME: ok` or `NAME: what was found`.
//! `files --lock FILE KIND`: takes a lock (flock or fcntl; with -wait, waits for it) and says so, or that
//! it is taken. With `hold`, makes the file `held` and keeps the lock until its input ends.

use std::ffi::{CString, OsStr, c_char, c_int, c_long, c_void};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

const CWD: c_int = -100;
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EBADF: i32 = 9;
const EAGAIN: i32 = 11;
const EACCES: i32 = 13;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const ENAMETOOLONG: i32 = 36;
const ENOTEMPTY: i32 = 39;
const ELOOP: i32 = 40;

const O_APPEND: i32 = 0o2000;
const O_DIRECTORY: i32 = 0o200000;
const O_NOFOLLOW: i32 = 0o400000;
const O_PATH: i32 = 0o10000000;
const O_TMPFILE: i32 = 0o20200000;

#[repr(C)]
struct Flock {
    kind: i16,
    whence: i16,
    start: i64,
    len: i64,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Time {
    sec: i64,
    nsec: c_long,
}

#[repr(C)]
struct Dirent {
    ino: u64,
    off: i64,
    reclen: u16,
    kind: u8,
    name: [c_char; 256],
}

unsafe extern "C" {
    fn renameat2(a: c_int, b: *const c_char, c: c_int, d: *const c_char, flags: u32) -> c_int;
    fn linkat(a: c_int, b: *const c_char, c: c_int, d: *const c_char, flags: c_int) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn flock(fd: c_int, operation: c_int) -> c_int;
    fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
    fn fallocate(fd: c_int, mode: c_int, offset: i64, len: i64) -> c_int;
    fn utimensat(fd: c_int, path: *const c_char, times: *const Time, flags: c_int) -> c_int;
    fn mmap(at: *mut c_void, len: usize, p: c_int, f: c_int, fd: c_int, o: i64) -> *mut c_void;
    fn msync(at: *mut c_void, len: usize, flags: c_int) -> c_int;
    fn truncate(path: *const c_char, len: i64) -> c_int;
    fn copy_file_range(
        from: c_int,
        at: *mut i64,
        to: c_int,
        to_at: *mut i64,
        len: usize,
        flags: u32,
    ) -> isize;
    fn inotify_init1(flags: c_int) -> c_int;
    fn inotify_add_watch(fd: c_int, path: *const c_char, mask: u32) -> c_int;
    fn read(fd: c_int, to: *mut c_void, len: usize) -> isize;
    fn mkfifo(path: *const c_char, mode: u32) -> c_int;
    fn mknod(path: *const c_char, mode: u32, device: u64) -> c_int;
    fn umask(mask: u32) -> u32;
    fn fork() -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn _exit(status: c_int) -> !;
    fn setuid(uid: u32) -> c_int;
    fn setgid(gid: u32) -> c_int;
    fn setgroups(count: usize, groups: *const u32) -> c_int;
    fn opendir(path: *const c_char) -> *mut c_void;
    fn readdir(folder: *mut c_void) -> *mut Dirent;
    fn telldir(folder: *mut c_void) -> c_long;
    fn seekdir(folder: *mut c_void, at: c_long);
    fn setxattr(p: *const c_char, n: *const c_char, v: *const c_void, l: usize, f: c_int) -> c_int;
    fn getxattr(p: *const c_char, n: *const c_char, v: *mut c_void, l: usize) -> isize;
    fn listxattr(p: *const c_char, v: *mut c_char, l: usize) -> isize;
    fn removexattr(p: *const c_char, n: *const c_char) -> c_int;
    fn syncfs(fd: c_int) -> c_int;
}

type Case = io::Result<()>;

fn main() {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if arguments[0] == "--lock" {
        return lock(Path::new(&arguments[1]), &arguments[2]);
    }
    std::env::set_current_dir(&arguments[0]).expect("the folder");
    let top = std::env::current_dir().expect("the folder");
    for (name, case) in CASES {
        if arguments.len() > 1 && !arguments[1..].iter().any(|asked| asked == name) {
            continue;
        }
        let folder = top.join(name.replace(' ', "-"));
        fs::create_dir(&folder).expect("a folder for the case");
        std::env::set_current_dir(&folder).expect("a folder for the case");
        match case() {
            Ok(()) => println!("{name}: ok"),
            Err(error) => println!("{name}: {error}"),
        }
    }
}

fn lock(file: &Path, kind: &OsStr) {
    let file = File::options().read(true).write(true).open(file).expect("the file");
    let taken = match kind.as_bytes() {
        b"fcntl" => set_lock(&file, 1, 0, 0),
        b"fcntl-wait" => {
            let lock = Flock { kind: 1, whence: 0, start: 0, len: 0, pid: 0 };
            done(unsafe { fcntl(file.as_raw_fd(), 7, &lock) })
        }
        b"flock" => done(unsafe { flock(file.as_raw_fd(), 2 | 4) }),
        _ => done(unsafe { flock(file.as_raw_fd(), 2) }),
    };
    if kind == "hold" {
        fs::write("held", "").expect("a file");
        io::stdin().read_to_end(&mut Vec::new()).expect("an end");
    }
    match taken {
        Ok(()) => println!("locked"),
        Err(error) if error.raw_os_error() == Some(EAGAIN) => println!("taken"),
        Err(error) => println!("{error}"),
    }
}

const CASES: &[(&str, fn() -> Case)] = &[
    ("open flags", open_flags),
    ("append", append),
    ("names", names),
    ("rename over", rename_over),
    ("rename refused", rename_refused),
    ("rename exchange", rename_exchange),
    ("rename a folder", rename_a_folder),
    ("link counts", link_counts),
    ("removed and open", removed_and_open),
    ("removed folder", removed_folder),
    ("file without a name", nameless),
    ("sparse", sparse),
    ("times", times),
    ("truncate", truncation),
    ("locks", locks),
    ("mapping", mapping),
    ("inotify", inotify),
    ("copy range", copy_range),
    ("listing", listing),
    ("positions", positions),
    ("fifo and socket", fifo_and_socket),
    ("modes", modes),
    ("owners", owners),
    ("symbolic links", symbolic_links),
    ("depth", depth),
    ("sync", sync),
    ("extended attributes", extended_attributes),
    ("set-ID bits", set_id),
    ("devices", devices),
];

fn fail<T>(text: impl Into<String>) -> io::Result<T> {
    Err(io::Error::other(text.into()))
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: T, right: T) -> Case {
    match found == right {
        true => Ok(()),
        false => fail(format!("{what}: {found:?}, not {right:?}")),
    }
}

fn is_refused<T>(what: &str, found: io::Result<T>, right: i32) -> Case {
    equal(what, found.map(drop).map_err(|e| e.raw_os_error()), Err(Some(right)))
}

fn done(result: c_int) -> Case {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn c(text: &str) -> CString {
    CString::new(text).expect("no NUL")
}

fn rename2(old: &str, new: &str, flags: u32) -> Case {
    done(unsafe { renameat2(CWD, c(old).as_ptr(), CWD, c(new).as_ptr(), flags) })
}

fn set_lock(file: &File, kind: i16, start: i64, len: i64) -> Case {
    let lock = Flock { kind, whence: 0, start, len, pid: 0 };
    done(unsafe { fcntl(file.as_raw_fd(), 6, &lock) })
}

/// Run `work` in another process.
fn apart(work: impl FnOnce() -> Case) -> Case {
    let pid = unsafe { fork() };
    if pid == 0 {
        let status = match work() {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("{error}");
                1
            }
        };
        unsafe { _exit(status) };
    }
    let mut status = 0;
    done(unsafe { waitpid(pid, &mut status, 0) })?;
    equal("the other process", status, 0)
}

fn open_flags() -> Case {
    fs::write("f", "content")?;
    symlink("nowhere", "dangling")?;
    symlink("f", "link")?;
    fs::create_dir("d")?;
    let new = |name| OpenOptions::new().write(true).create_new(true).open(name);
    is_refused("O_EXCL", new("f"), EEXIST)?;
    is_refused("O_EXCL over a link", new("dangling"), EEXIST)?;
    let flags = |flags| OpenOptions::new().read(true).custom_flags(flags).open("link");
    is_refused("O_NOFOLLOW", flags(O_NOFOLLOW), ELOOP)?;
    is_refused("O_DIRECTORY", flags(O_DIRECTORY), ENOTDIR)?;
    is_refused("a folder for writing", OpenOptions::new().write(true).open("d"), EISDIR)?;
    is_refused("write to O_RDONLY", (&File::open("f")?).write(b"x"), EBADF)?;
    let mut only = OpenOptions::new().write(true).open("f")?;
    is_refused("read of O_WRONLY", only.read(&mut [0]), EBADF)?;
    let path = OpenOptions::new().read(true).custom_flags(O_PATH).open("f")?;
    equal("O_PATH", path.metadata()?.len(), 7)?;
    File::create("f")?;
    equal("O_TRUNC", fs::metadata("f")?.len(), 0)
}

fn append() -> Case {
    let mut file = OpenOptions::new().append(true).create(true).read(true).open("f")?;
    file.write_all(b"one")?;
    fs::OpenOptions::new().write(true).open("f")?.write_all_at(b"O", 0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(b"two")?;
    let mut later = OpenOptions::new().write(true).open("f")?;
    done(unsafe { fcntl(later.as_raw_fd(), 4, O_APPEND) })?;
    later.write_all(b"three")?;
    done(unsafe { fcntl(later.as_raw_fd(), 4, 0) })?;
    later.seek(SeekFrom::Start(1))?;
    later.write_all(b"N")?;
    equal("the content", fs::read_to_string("f")?, "ONetwothree".into())
}

fn names() -> Case {
    let long = "x".repeat(255);
    fs::write(&long, "")?;
    fs::metadata(&long)?;
    is_refused("256 bytes", File::create("x".repeat(256)), ENAMETOOLONG)?;
    for name in ["a b", "\n", "-", "...", "ä", "\u{1}"] {
        fs::write(name, "")?;
    }
    fs::write(OsStr::from_bytes(b"\xff\xfe"), "")?;
    equal("entries", fs::read_dir(".")?.count(), 8)?;
    is_refused("a file as a folder", fs::metadata("a b/x"), ENOTDIR)?;
    is_refused("no file", fs::metadata("none"), ENOENT)
}

fn rename_over() -> Case {
    fs::write("old", "old")?;
    fs::write("new", "new")?;
    let mut kept = OpenOptions::new().read(true).write(true).open("new")?;
    let inode = fs::metadata("old")?.ino();
    fs::rename("old", "new")?;
    equal("the content", fs::read_to_string("new")?, "old".into())?;
    equal("the inode", fs::metadata("new")?.ino(), inode)?;
    is_refused("the old name", fs::metadata("old"), ENOENT)?;
    equal("links of the replaced", kept.metadata()?.nlink(), 0)?;
    let mut content = String::new();
    kept.read_to_string(&mut content)?;
    equal("the replaced", content, "new".into())?;
    fs::create_dir("a")?;
    fs::create_dir("b")?;
    fs::rename("a", "b")?;
    fs::hard_link("new", "same")?;
    fs::rename("new", "same")?; // two names of one file: nothing happens
    equal("links", fs::metadata("new")?.nlink(), 2)
}

fn rename_refused() -> Case {
    fs::create_dir_all("d/inner")?;
    fs::create_dir("empty")?;
    fs::write("f", "")?;
    fs::write("g", "")?;
    is_refused("over a full folder", fs::rename("empty", "d"), ENOTEMPTY)?;
    is_refused("a file over a folder", fs::rename("f", "empty"), EISDIR)?;
    is_refused("a folder over a file", fs::rename("empty", "f"), ENOTDIR)?;
    is_refused("into itself", fs::rename("d", "d/inner/x"), EINVAL)?;
    is_refused("what is not there", fs::rename("none", "x"), ENOENT)?;
    is_refused("RENAME_NOREPLACE", rename2("f", "g", 1), EEXIST)?;
    rename2("f", "h", 1)
}

fn rename_exchange() -> Case {
    fs::create_dir("d")?;
    fs::write("d/in", "in")?;
    fs::write("f", "file")?;
    rename2("d", "f", 2)?;
    equal("the file", fs::read_to_string("d")?, "file".into())?;
    equal("in the folder", fs::read_to_string("f/in")?, "in".into())?;
    fs::write("f/in", "again")?;
    equal("in the folder", fs::read_to_string("f/in")?, "again".into())
}

fn rename_a_folder() -> Case {
    fs::create_dir_all("a/b/c")?;
    fs::write("a/b/c/f", "f")?;
    let open = File::open("a/b/c/f")?;
    std::env::set_current_dir("a/b/c")?;
    fs::rename("../../../a", "../../../z")?;
    equal("from inside", fs::read_to_string("f")?, "f".into())?;
    fs::write("g", "g")?;
    fs::rename("../../b", "../../y")?;
    equal("by the new path", fs::read_to_string("../../y/c/g")?, "g".into())?;
    equal("an open file", open.metadata()?.nlink(), 1)?;
    let at = std::env::current_dir()?;
    equal("the working folder", at.ends_with("z/y/c"), true)
}

fn link_counts() -> Case {
    fs::write("f", "f")?;
    fs::hard_link("f", "g")?;
    fs::create_dir("d")?;
    fs::rename("g", "d/g")?;
    equal("two", fs::metadata("f")?.nlink(), 2)?;
    equal("one file", fs::metadata("f")?.ino(), fs::metadata("d/g")?.ino())?;
    let open = File::open("f")?;
    fs::remove_file("f")?;
    equal("one", fs::metadata("d/g")?.nlink(), 1)?;
    equal("one, open", open.metadata()?.nlink(), 1)?;
    fs::write("d/g", "by the other")?;
    equal("the content", fs::read_to_string("d/g")?, "by the other".into())?;
    fs::hard_link("d/g", "f")?;
    fs::remove_file("d/g")?;
    fs::set_permissions("f", fs::Permissions::from_mode(0o600))?;
    is_refused("a link to a folder", fs::hard_link("d", "e"), EPERM)?;
    is_refused("over a file", fs::hard_link("f", "f"), EEXIST)?;
    symlink("f", "s")?;
    let (old, new) = (c("s"), c("t"));
    done(unsafe { linkat(CWD, old.as_ptr(), CWD, new.as_ptr(), 0) })?;
    equal("a link to a link", fs::symlink_metadata("t")?.nlink(), 2)
}

fn removed_and_open() -> Case {
    let mut file = File::options().read(true).write(true).create(true).open("f")?;
    file.write_all(b"content")?;
    fs::remove_file("f")?;
    equal("links", file.metadata()?.nlink(), 0)?;
    file.set_permissions(fs::Permissions::from_mode(0o640))?;
    equal("the mode", file.metadata()?.mode() & 0o777, 0o640)?;
    file.set_len(3)?;
    file.write_all_at(b"C", 0)?;
    fs::write("f", "another")?;
    let mut content = String::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_string(&mut content)?;
    equal("the content", content, "Con".into())?;
    let size = file.metadata()?.len();
    equal("the size", size, 3)?;
    equal("the new file", fs::read_to_string("f")?, "another".into())
}

fn removed_folder() -> Case {
    fs::create_dir("d")?;
    std::env::set_current_dir("d")?;
    fs::remove_dir("../d")?;
    fs::metadata(".")?;
    is_refused("a new file", File::create("f"), ENOENT)?;
    is_refused("the working folder", std::env::current_dir(), ENOENT)?;
    std::env::set_current_dir("..")?;
    fs::create_dir("d")?;
    fs::write("d/f", "")?;
    is_refused("a full folder", fs::remove_dir("d"), ENOTEMPTY)?;
    is_refused("a folder as a file", fs::remove_file("d"), EISDIR)?;
    is_refused("a file as a folder", fs::remove_dir("d/f"), ENOTDIR)
}

fn nameless() -> Case {
    let mut flags = OpenOptions::new();
    let mut file = flags.read(true).write(true).custom_flags(O_TMPFILE).open(".")?;
    file.write_all(b"content")?;
    equal("links", file.metadata()?.nlink(), 0)?;
    equal("entries", fs::read_dir(".")?.count(), 0)?;
    let link = c(&format!("/proc/self/fd/{}", file.as_raw_fd()));
    done(unsafe { linkat(CWD, link.as_ptr(), CWD, c("f").as_ptr(), 0x400) })?;
    equal("the content", fs::read_to_string("f")?, "content".into())
}

fn sparse() -> Case {
    let file = File::options().read(true).write(true).create(true).open("f")?;
    file.write_all_at(b"x", 4 << 20)?;
    file.sync_all()?;
    let blocks = file.metadata()?.blocks();
    equal("few blocks", blocks < 2048, true)?;
    let seek = |from, whence| unsafe { lseek(file.as_raw_fd(), from, whence) };
    equal("the hole", seek(0, 4), 0)?;
    equal("the data", seek(0, 3), 4 << 20)?;
    equal("the end", seek(4 << 20, 4) > 4 << 20, true)?;
    done(unsafe { fallocate(file.as_raw_fd(), 1, 0, 8 << 20) })?;
    equal("the size", file.metadata()?.len(), (4 << 20) + 1)?;
    file.write_all_at(&[1; 8192], 0)?;
    done(unsafe { fallocate(file.as_raw_fd(), 3, 4096, 4096) })?;
    let mut page = [2; 2];
    file.read_exact_at(&mut page, 4095)?;
    equal("a punched hole", page, [1, 0])?;
    done(unsafe { fallocate(file.as_raw_fd(), 0, 0, 8 << 20) })?;
    equal("the size", file.metadata()?.len(), 8 << 20)
}

fn times() -> Case {
    fs::write("f", "")?;
    symlink("f", "l")?;
    let set = |name: &str, times: [Time; 2], flags| {
        done(unsafe { utimensat(CWD, c(name).as_ptr(), times.as_ptr(), flags) })
    };
    let time = |sec, nsec| Time { sec, nsec };
    set("f", [time(1, 123_456_789), time(1 << 33, 5)], 0)?;
    let now = fs::metadata("f")?;
    equal("atime", (now.atime(), now.atime_nsec()), (1, 123_456_789))?;
    equal("mtime", (now.mtime(), now.mtime_nsec()), (1 << 33, 5))?;
    set("f", [time(0, (1 << 30) - 2), time(-5, 0)], 0)?; // UTIME_OMIT
    let now = fs::metadata("f")?;
    equal("kept and negative", (now.atime(), now.mtime()), (1, -5))?;
    set("l", [time(7, 0), time(8, 0)], 0x100)?; // AT_SYMLINK_NOFOLLOW
    equal("of a link", fs::symlink_metadata("l")?.mtime(), 8)?;
    equal("of its target", fs::metadata("f")?.mtime(), -5)?;
    fs::write("f", "x")?;
    equal("written", fs::metadata("f")?.mtime() > 1 << 30, true)?;
    let folder = fs::metadata(".")?;
    set(".", [time(3, 0), time(3, 0)], 0)?;
    fs::write("g", "")?;
    equal("of the folder", fs::metadata(".")?.mtime() >= folder.mtime(), true)
}

fn truncation() -> Case {
    let file = File::options().read(true).write(true).create(true).open("f")?;
    file.write_all_at(&[1; 6000], 0)?;
    file.set_len(5000)?;
    file.set_len(9000)?;
    let mut all = vec![2; 9000];
    file.read_exact_at(&mut all, 0)?;
    let zeroes = all[5000..].iter().all(|byte| *byte == 0);
    equal("zeroes", (all[4999], zeroes), (1, true))?;
    done(unsafe { truncate(c("f").as_ptr(), 10) })?;
    equal("by path", file.metadata()?.len(), 10)?;
    is_refused("for reading", File::open("f")?.set_len(1), EINVAL)?;
    fs::create_dir("d")?;
    is_refused("a folder", done(unsafe { truncate(c("d").as_ptr(), 0) }), EISDIR)
}

fn locks() -> Case {
    fs::write("f", "0123456789")?;
    let [one, two] = [File::options().read(true).write(true).open("f")?, File::open("f")?];
    done(unsafe { flock(one.as_raw_fd(), 2) })?;
    is_refused("flock", done(unsafe { flock(two.as_raw_fd(), 1 | 4) }), EAGAIN)?;
    done(unsafe { flock(one.as_raw_fd(), 8) })?;
    done(unsafe { flock(two.as_raw_fd(), 1 | 4) })?;
    set_lock(&one, 1, 2, 3)?;
    apart(|| {
        let own = File::options().read(true).write(true).open("f")?;
        is_refused("fcntl", set_lock(&own, 1, 4, 10), EAGAIN)?;
        set_lock(&own, 1, 5, 0)?;
        let mut lock = Flock { kind: 1, whence: 0, start: 0, len: 0, pid: 0 };
        done(unsafe { fcntl(own.as_raw_fd(), 5, &mut lock) })?;
        equal("F_GETLK", (lock.kind, lock.start, lock.len), (1, 2, 3))
    })?;
    drop(File::open("f")?); // a close ends all locks of the process
    apart(|| set_lock(&File::options().write(true).open("f")?, 1, 0, 0))
}

fn mapping() -> Case {
    const PAGE: usize = 4096;
    let file = File::options().read(true).write(true).create(true).open("f")?;
    file.write_all_at(&[b'a'; 2 * PAGE], 0)?;
    let map = unsafe { mmap(std::ptr::null_mut(), 2 * PAGE, 3, 1, file.as_raw_fd(), 0) };
    if map as isize == -1 {
        return Err(io::Error::last_os_error());
    }
    let bytes = map.cast::<u8>();
    unsafe { bytes.add(PAGE).write_volatile(b'b') };
    let mut byte = [0];
    file.read_exact_at(&mut byte, PAGE as u64)?;
    equal("by read", byte, *b"b")?;
    File::options().write(true).open("f")?.write_all_at(b"c", 1)?;
    equal("by the mapping", unsafe { bytes.add(1).read_volatile() }, b'c')?;
    // Written back while the file is open for appending, which must not append the page.
    let mut appending = File::options().append(true).open("f")?;
    appending.write_all(b"end")?;
    drop(file);
    unsafe { bytes.write_volatile(b'd') };
    done(unsafe { msync(map, 2 * PAGE, 4) })?;
    equal("the size", fs::metadata("f")?.len(), 2 * PAGE as u64 + 3)?;
    let all = fs::read("f")?;
    equal("the bytes", (all[0], all[1], all[PAGE]), (b'd', b'c', b'b'))
}

fn inotify() -> Case {
    let watch = unsafe { inotify_init1(0o4000) };
    done(watch)?;
    done(unsafe { inotify_add_watch(watch, c(".").as_ptr(), 0x100 | 0x200 | 0x80 | 2) })?;
    fs::write("f", "x")?;
    fs::rename("f", "g")?;
    fs::remove_file("g")?;
    let (mut buffer, mut seen) = ([0u8; 4096], 0);
    let len = unsafe { read(watch, buffer.as_mut_ptr().cast(), buffer.len()) };
    let mut at = 0;
    while at + 16 <= len as usize {
        let word = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().expect("four"));
        seen |= word(at + 4);
        at += 16 + word(at + 12) as usize;
    }
    equal("create, write, move, remove", seen & 0x382, 0x382)
}

fn copy_range() -> Case {
    fs::write("f", vec![7; 300_000])?;
    let (from, to) = (File::open("f")?, File::create("g")?);
    let (mut at, mut to_at) = (1000, 10);
    while at < 300_000 {
        let left = 300_000 - at as usize;
        let (a, b) = (&mut at, &mut to_at);
        let now = unsafe { copy_file_range(from.as_raw_fd(), a, to.as_raw_fd(), b, left, 0) };
        done(now as c_int)?;
        if now == 0 {
            break;
        }
    }
    let copy = fs::read("g")?;
    equal("the size", copy.len(), 299_010)?;
    equal("the bytes", (copy[9], copy[10], copy[299_009]), (0, 7, 7))
}

fn listing() -> Case {
    for n in 0..120 {
        fs::write(format!("{n}"), "")?;
    }
    let here = c(".");
    let (one, two) = unsafe { (opendir(here.as_ptr()), opendir(here.as_ptr())) };
    let mut dots = 0;
    let mut seen = 0;
    let mut middle = None;
    while let Some((name, inode, kind)) = next(one) {
        if name.starts_with('.') {
            dots += 1;
            equal("its type", kind, 4)?;
            continue;
        }
        equal("its inode", inode, fs::metadata(&name)?.ino())?;
        equal("its type", kind, 8)?;
        seen += 1;
        fs::remove_file(&name)?;
        if seen == 80 {
            let at = unsafe { telldir(one) };
            middle = next(one).map(|entry| (at, entry.0));
            unsafe { seekdir(one, at) };
        }
    }
    equal("entries", (dots, seen), (2, 120))?;
    let (at, name) = middle.expect("a middle");
    unsafe { seekdir(one, at) };
    equal("seekdir", next(one).map(|entry| entry.0), Some(name))?;
    while next(two).is_some() {}
    equal("what is left", fs::read_dir(".")?.count(), 0)
}

/// The next entry's name, inode number and type.
fn next(folder: *mut c_void) -> Option<(String, u64, u8)> {
    let entry = unsafe { readdir(folder) };
    (!entry.is_null()).then(|| {
        let entry = unsafe { &*entry };
        let name = entry.name.iter().take_while(|byte| **byte != 0);
        let name: Vec<u8> = name.map(|byte| *byte as u8).collect();
        (String::from_utf8(name).expect("a name"), entry.ino, entry.kind)
    })
}

/// Of a folder that the host's kernel reads in several parts.
fn positions() -> Case {
    for n in 0..300 {
        fs::write(format!("{n:0200}"), "")?;
    }
    let folder = unsafe { opendir(c(".").as_ptr()) };
    let mut entries = Vec::new();
    let mut at = unsafe { telldir(folder) };
    while let Some((name, ..)) = next(folder) {
        entries.push((at, name));
        at = unsafe { telldir(folder) };
    }
    equal("entries", entries.len(), 302)?;
    for index in [0, 290, 1, 150, 301] {
        let (at, name) = &entries[index];
        unsafe { seekdir(folder, *at) };
        equal("the entry", next(folder).map(|entry| entry.0).as_ref(), Some(name))?;
    }
    Ok(())
}

fn fifo_and_socket() -> Case {
    done(unsafe { mkfifo(c("p").as_ptr(), 0o600) })?;
    let pid = unsafe { fork() };
    if pid == 0 {
        let sent = OpenOptions::new().write(true).open("p");
        let sent = sent.and_then(|mut pipe| pipe.write_all(b"through"));
        unsafe { _exit(sent.is_err().into()) };
    }
    equal("the pipe", fs::read_to_string("p")?, "through".into())?;
    done(unsafe { waitpid(pid, std::ptr::null_mut(), 0) })?;
    let listener = UnixListener::bind("s")?;
    let mut client = UnixStream::connect("s")?;
    client.write_all(b"x")?;
    let mut byte = [0];
    listener.accept()?.0.read_exact(&mut byte)?;
    equal("the socket", byte, *b"x")
}

fn modes() -> Case {
    let before = unsafe { umask(0o027) };
    fs::write("f", "")?;
    fs::create_dir("d")?;
    unsafe { umask(before) };
    equal("a file", fs::metadata("f")?.mode() & 0o7777, 0o640)?;
    equal("a folder", fs::metadata("d")?.mode() & 0o7777, 0o750)?;
    for mode in [0o000, 0o1777, 0o421] {
        fs::set_permissions("d", fs::Permissions::from_mode(mode))?;
        equal("chmod", fs::metadata("d")?.mode() & 0o7777, mode)?;
    }
    let ctime = |name| fs::metadata(name).map(|now| (now.ctime(), now.ctime_nsec()));
    let before = ctime("f")?;
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::set_permissions("f", fs::Permissions::from_mode(0o600))?;
    equal("ctime", ctime("f")? > before, true)
}

/// Of another user, who is only told apart where the superuser runs the case.
fn owners() -> Case {
    fs::create_dir("all")?;
    fs::set_permissions("all", fs::Permissions::from_mode(0o777))?;
    fs::create_dir("group")?;
    chown("group", Some(0), Some(1500))?;
    fs::set_permissions("group", fs::Permissions::from_mode(0o770))?;
    fs::write("closed", "")?;
    fs::set_permissions("closed", fs::Permissions::from_mode(0o600))?;
    apart(|| {
        done(unsafe { setgroups(1, &1500) })?;
        done(unsafe { setgid(1001) })?;
        done(unsafe { setuid(1000) })?;
        is_refused("a closed file", File::open("closed"), EACCES)?;
        is_refused("a closed folder", File::create("new"), EACCES)?;
        fs::write("all/mine", "")?;
        fs::create_dir("all/folder")?;
        fs::write("group/by-group", "")?;
        fs::set_permissions("all/mine", fs::Permissions::from_mode(0o604))?;
        is_refused("to another", chown("all/mine", Some(0), None), EPERM)
    })?;
    let owner = |name| fs::metadata(name).map(|now| (now.uid(), now.gid()));
    equal("of a file", owner("all/mine")?, (1000, 1001))?;
    equal("of a folder", owner("all/folder")?, (1000, 1001))?;
    equal("by a group", owner("group/by-group")?, (1000, 1001))?;
    chown("all/mine", Some(5), Some(6))?;
    equal("chown", owner("all/mine")?, (5, 6))
}

fn symbolic_links() -> Case {
    let long = "x/".repeat(2047);
    symlink(&long, "long")?;
    equal("the target", fs::read_link("long")?.as_os_str().len(), 4094)?;
    symlink("b", "a")?;
    symlink("a", "b")?;
    is_refused("a circle", fs::metadata("a"), ELOOP)?;
    symlink("new", "to")?;
    fs::write("to", "through")?;
    equal("through a link", fs::read_to_string("new")?, "through".into())?;
    let size = fs::symlink_metadata("long")?.len();
    equal("the size", size, 4094)
}

fn depth() -> Case {
    for n in 0..50 {
        fs::create_dir("folder-with-a-long-name-for-a-long-path-to-the-last-one")?;
        std::env::set_current_dir("folder-with-a-long-name-for-a-long-path-to-the-last-one")?;
        fs::write(format!("{n}"), "")?;
    }
    equal("the path", std::env::current_dir()?.as_os_str().len() > 2200, true)?;
    fs::write("f", "deep")?;
    for _ in 0..50 {
        std::env::set_current_dir("..")?;
    }
    let path = "folder-with-a-long-name-for-a-long-path-to-the-last-one/".repeat(50) + "f";
    equal("from above", fs::read_to_string(path)?, "deep".into())?;
    fs::remove_dir_all("folder-with-a-long-name-for-a-long-path-to-the-last-one")
}

fn sync() -> Case {
    let file = File::create("f")?;
    file.sync_all()?;
    file.sync_data()?;
    File::open(".")?.sync_all()?;
    done(unsafe { syncfs(file.as_raw_fd()) })
}

fn extended_attributes() -> Case {
    fs::write("f", "")?;
    let (file, name, value) = (c("f"), c("user.color"), b"blue");
    let set = |flags| unsafe {
        done(setxattr(file.as_ptr(), name.as_ptr(), value.as_ptr().cast(), 4, flags))
    };
    set(0)?;
    is_refused("XATTR_CREATE", set(1), EEXIST)?;
    let mut buffer = [0u8; 100];
    let get = unsafe { getxattr(file.as_ptr(), name.as_ptr(), buffer.as_mut_ptr().cast(), 100) };
    equal("the value", &buffer[..get.max(0) as usize], &value[..])?;
    let len = unsafe { listxattr(file.as_ptr(), std::ptr::null_mut(), 0) };
    equal("the list", len, 11)?;
    done(unsafe { removexattr(file.as_ptr(), name.as_ptr()) })?;
    is_refused("removed", done(unsafe { removexattr(file.as_ptr(), name.as_ptr()) }), 61)
}

fn set_id() -> Case {
    fs::write("f", "")?;
    fs::set_permissions("f", fs::Permissions::from_mode(0o6755))?;
    equal("the mode", fs::metadata("f")?.mode() & 0o7777, 0o6755)
}

fn devices() -> Case {
    done(unsafe { mknod(c("null").as_ptr(), 0o20666, 0x103) })
}
