//! A hostile guest's messages, made by hand: what they reach on the host, and what comes back.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use vm_memory::{Bytes, GuestAddress};

use super::files::Files;
use super::service::Service;
use super::*;
use crate::devices::virtio::fs::{IN_HEADER, OUT_HEADER, Request};
use crate::memory::transfer::Segment;
use crate::memory::{GuestMemory, backing};

// Opcodes of uapi/linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const SETATTR: u32 = 4;
const READLINK: u32 = 5;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const SETXATTR: u32 = 21;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const CREATE: u32 = 35;
const DESTROY: u32 = 38;
const FALLOCATE: u32 = 43;
const READDIRPLUS: u32 = 44;
const RENAME2: u32 = 45;

const ROOT: u64 = 1;
const MEMORY: u64 = 2 << 20;
const MESSAGE_AT: u64 = 0x1000;
const ANSWER_AT: u64 = 0x10_0000;
const ROOM: u32 = 0x8000;

/// A guest, its share, and a folder of the host around it that is none of its business.
struct Guest {
    host: tempfile::TempDir,
    memory: GuestMemory,
    service: Service,
    warnings: Vec<String>,
    /// What the last answer said.
    mounted: bool,
}

impl Guest {
    fn new(read_only: bool) -> Self {
        Self::with_files(read_only, u64::MAX)
    }

    /// One whose hull may have `limit` descriptors.
    fn with_files(read_only: bool, limit: u64) -> Self {
        let options = if read_only { ":ro" } else { "" };
        Self::in_folder(tempfile::tempdir().unwrap(), options, limit)
    }

    fn in_folder(host: tempfile::TempDir, options: &str, limit: u64) -> Self {
        let folder = host.path().join("share");
        fs::create_dir(&folder).unwrap();
        fs::write(host.path().join("secret"), "secret").unwrap();
        let memory = backing::allocate(MEMORY).unwrap();
        let config: Config = format!("{}:/s{options}", folder.display()).parse().unwrap();
        let opened = fs::File::open(&folder).unwrap();
        let mut files = Files::new(opened.into(), &config).unwrap();
        files.limit = files.limit.min(limit);
        let service = Service::new(files, memory.clone());
        let mut guest = Self {
            host,
            memory,
            service,
            warnings: Vec::new(),
            mounted: false,
        };
        guest.init();
        guest
    }

    fn init(&mut self) {
        let words = [7u32, 38, 0x2_0000, 0x3fff_ffff];
        let body = words.map(u32::to_le_bytes).concat();
        self.ask(INIT, 0, &body).unwrap();
    }

    fn share(&self) -> std::path::PathBuf {
        self.host.path().join("share")
    }

    /// Send `bytes` as they are; what is in the room for the answer.
    fn send(&mut self, bytes: &[u8], room: u32) -> Vec<u8> {
        self.memory
            .write_slice(bytes, GuestAddress(MESSAGE_AT))
            .unwrap();
        let segment = |addr, len| Segment {
            addr: GuestAddress(addr),
            len,
        };
        let request = Request {
            readable: vec![segment(MESSAGE_AT, bytes.len() as u32)],
            writable: match room {
                0 => vec![],
                room => vec![segment(ANSWER_AT, room)],
            },
        };
        let answer = self.service.serve(&request, false).unwrap();
        self.warnings.extend(answer.warning);
        self.mounted = answer.mounted;
        assert!(answer.written <= room, "{} of {room}", answer.written);
        let mut bytes = vec![0; answer.written as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(ANSWER_AT))
            .unwrap();
        bytes
    }

    /// A message; its answer's body, or the error.
    fn ask(&mut self, opcode: u32, inode: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let answer = self.send(&message(opcode, inode, body), ROOM);
        assert!(answer.len() >= OUT_HEADER as usize, "{opcode}: no answer");
        assert_eq!(answer[8..16], 77u64.to_le_bytes());
        match word(&answer, 4) as i32 {
            0 => Ok(answer[16..].to_vec()),
            error => Err(-error),
        }
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let body = [name.as_bytes(), b"\0"].concat();
        self.ask(LOOKUP, parent, &body).map(|entry| long(&entry, 0))
    }

    fn open(&mut self, inode: u64, flags: i32) -> Result<u64, i32> {
        let body = [flags as u32, 0].map(u32::to_le_bytes).concat();
        self.ask(OPEN, inode, &body).map(|opened| long(&opened, 0))
    }

    /// Entries of a folder from `at` on, in an answer of at most `size` bytes: names, and positions.
    fn list(
        &mut self,
        opcode: u32,
        inode: u64,
        handle: u64,
        at: u64,
        size: u32,
    ) -> Result<Vec<(String, u64)>, i32> {
        let mut body = [handle, at].map(u64::to_le_bytes).concat();
        body.extend([size, 0].map(u32::to_le_bytes).concat());
        body.extend([0; 16]);
        let answer = self.ask(opcode, inode, &body)?;
        assert!(answer.len() <= size as usize);
        let (mut rest, mut items) = (&answer[..], Vec::new());
        while !rest.is_empty() {
            if opcode == READDIRPLUS {
                rest = &rest[128..];
            }
            let len = word(rest, 16) as usize;
            let name = String::from_utf8(rest[24..24 + len].to_vec()).unwrap();
            items.push((name, long(rest, 8)));
            rest = &rest[(24 + len).next_multiple_of(8)..];
        }
        Ok(items)
    }

    /// All names in a folder, read in parts.
    fn names(&mut self, inode: u64) -> Vec<String> {
        let opened = self.ask(OPENDIR, inode, &[0; 8]).unwrap();
        let (mut at, mut names) = (0, Vec::new());
        loop {
            let items = self
                .list(READDIRPLUS, inode, long(&opened, 0), at, 0x1000)
                .unwrap();
            match items.last() {
                Some((_, next)) => at = *next,
                None => return names,
            }
            names.extend(items.into_iter().map(|(name, _)| name));
        }
    }

    fn read(&mut self, inode: u64, handle: u64) -> Result<Vec<u8>, i32> {
        let mut body = [handle, 0].map(u64::to_le_bytes).concat();
        body.extend([100u32, 0].map(u32::to_le_bytes).concat());
        body.extend([0; 16]);
        self.ask(READ, inode, &body)
    }
}

fn message(opcode: u32, inode: u64, body: &[u8]) -> Vec<u8> {
    let len = IN_HEADER as u32 + body.len() as u32;
    let mut bytes = [len, opcode].map(u32::to_le_bytes).concat();
    bytes.extend([77u64, inode].map(u64::to_le_bytes).concat());
    bytes.extend([0; 16]); // uid, gid, pid
    bytes.extend(body);
    bytes
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Names behind a body of words.
fn with_names(words: &[u32], names: &[&str]) -> Vec<u8> {
    let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    for name in names {
        body.extend(name.as_bytes());
        body.push(0);
    }
    body
}

#[test]
fn no_name_leads_out_of_the_folder() {
    let mut guest = Guest::new(false);
    fs::create_dir(guest.share().join("inner")).unwrap();
    fs::write(guest.share().join("mine"), "").unwrap();
    let inner = guest.lookup(ROOT, "inner").unwrap();
    let mine = guest.lookup(ROOT, "mine").unwrap();
    for name in ["..", ".", "", "../secret", "a/b", "/etc", "inner/..", "/"] {
        for folder in [ROOT, inner] {
            assert_eq!(guest.lookup(folder, name), Err(libc::EINVAL), "{name}");
            for (opcode, words, names) in [
                (MKDIR, &[0o755, 0][..], &[name][..]),
                (MKNOD, &[libc::S_IFREG | 0o644, 0, 0, 0], &[name]),
                (CREATE, &[libc::O_RDWR as u32, 0o644, 0, 0], &[name]),
                (SYMLINK, &[], &[name, "/etc/passwd"]),
                (UNLINK, &[], &[name]),
                (RENAME, &[folder as u32, 0], &[name, "new"]),
                (RENAME, &[ROOT as u32, 0], &["mine", name]),
                (LINK, &[mine as u32, (mine >> 32) as u32], &[name]),
            ] {
                let refused = guest.ask(opcode, folder, &with_names(words, names));
                assert_eq!(refused.err(), Some(libc::EINVAL), "{opcode} {names:?}");
            }
        }
    }
    assert_eq!(fs::read_dir(guest.host.path()).unwrap().count(), 2);
}

#[test]
fn symbolic_links_are_resolved_by_the_guest() {
    let mut guest = Guest::new(false);
    symlink("../secret", guest.share().join("link")).unwrap();
    symlink("..", guest.share().join("up")).unwrap();
    let link = guest.lookup(ROOT, "link").unwrap();
    assert_eq!(guest.ask(READLINK, link, b"").unwrap(), b"../secret");
    assert!(guest.open(link, libc::O_RDONLY).is_err());
    let up = guest.lookup(ROOT, "up").unwrap();
    assert_eq!(guest.lookup(up, "secret"), Err(libc::ENOTDIR));
    assert!(guest.ask(OPENDIR, up, &[0; 8]).is_err());
    // Through an existing name, too.
    let body = with_names(&[libc::O_RDWR as u32, 0o644, 0, 0], &["link"]);
    assert!(guest.ask(CREATE, ROOT, &body).is_err());
}

#[test]
fn folders_that_the_host_moves_are_unreachable() {
    let mut guest = Guest::new(false);
    let inner = guest.share().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("file"), "ours").unwrap();
    let folder = guest.lookup(ROOT, "inner").unwrap();
    assert!(guest.lookup(folder, "file").is_ok());
    fs::rename(&inner, guest.host.path().join("away")).unwrap();
    assert_eq!(guest.lookup(folder, ".."), Err(libc::EINVAL));
    symlink(guest.host.path(), &inner).unwrap();
    // The same name is another thing now, which is a link; the old one still what it was.
    let link = guest.lookup(ROOT, "inner").unwrap();
    assert_ne!(link, folder);
    assert_eq!(guest.lookup(link, "secret"), Err(libc::ENOTDIR));
    assert!(guest.lookup(folder, "file").is_ok());
    // The folder itself is held by a descriptor, not by its name.
    let share = guest.share();
    fs::rename(&share, guest.host.path().join("moved")).unwrap();
    symlink("/etc", &share).unwrap();
    guest.send(&message(DESTROY, 0, b""), ROOM);
    guest.init();
    assert_eq!(guest.lookup(ROOT, "passwd"), Err(libc::ENOENT));
    assert!(guest.lookup(ROOT, "inner").is_ok());
}

#[test]
fn a_race_of_renames_never_shows_the_outside() {
    let mut guest = Guest::new(false);
    let (swap, outside) = (guest.share().join("swap"), guest.host.path().to_path_buf());
    fs::create_dir(outside.join("real")).unwrap();
    fs::write(outside.join("real/secret"), "harmless").unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                fs::rename(outside.join("real"), &swap).unwrap();
                fs::rename(&swap, outside.join("real")).unwrap();
                symlink(&outside, &swap).unwrap();
                fs::remove_file(&swap).unwrap();
            }
        });
        for _ in 0..3000 {
            let Ok(folder) = guest.lookup(ROOT, "swap") else {
                continue;
            };
            let Ok(file) = guest.lookup(folder, "secret") else {
                continue;
            };
            let handle = guest.open(file, libc::O_RDONLY).unwrap();
            assert_eq!(guest.read(file, handle).unwrap(), b"harmless");
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn devices_and_fifos_are_neither_opened_nor_made() {
    let mut guest = Guest::new(false);
    let fifo = guest.share().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let mut names = vec!["fifo"];
    let null = guest.share().join("null");
    // Only the superuser makes one.
    if mknodat(CWD, &null, FileType::CharacterDevice, Mode::RWXU, 0x103).is_ok() {
        names.push("null");
        let device = guest.lookup(ROOT, "null").unwrap();
        let chmod = setattr(1, 0o666, 0);
        assert_eq!(guest.ask(SETATTR, device, &chmod), Err(libc::EPERM));
    }
    for name in names {
        let inode = guest.lookup(ROOT, name).unwrap();
        for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY, libc::O_PATH] {
            assert_eq!(guest.open(inode, flags), Err(libc::EBADF), "{name}");
        }
        assert!(guest.ask(OPENDIR, inode, &[0; 8]).is_err());
        assert!(guest.ask(SETATTR, inode, &setattr(8, 0, 5)).is_err());
    }
    for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFDIR, libc::S_IFLNK] {
        let body = with_names(&[kind | 0o666, 0x103, 0, 0], &["made"]);
        assert_eq!(guest.ask(MKNOD, ROOT, &body), Err(libc::EPERM));
    }
    // RENAME_WHITEOUT leaves a device node behind.
    fs::write(guest.share().join("file"), "").unwrap();
    let body = with_names(&[ROOT as u32, 0, 4, 0], &["file", "new"]);
    assert_eq!(guest.ask(RENAME2, ROOT, &body), Err(libc::EINVAL));
    for entry in fs::read_dir(guest.share()).unwrap() {
        let entry = entry.unwrap();
        let device = entry.file_type().unwrap().is_char_device();
        assert_eq!(device, entry.file_name() == "null");
    }
}

/// struct fuse_setattr_in: what is valid, mode, size.
fn setattr(valid: u32, mode: u32, size: u64) -> Vec<u8> {
    let mut body = vec![0; 88];
    body[0..4].copy_from_slice(&valid.to_le_bytes());
    body[16..24].copy_from_slice(&size.to_le_bytes());
    body[68..72].copy_from_slice(&mode.to_le_bytes());
    body
}

#[test]
fn nothing_becomes_setuid() {
    let mut guest = Guest::new(false);
    let body = with_names(&[libc::O_RDWR as u32, 0o6755, 0, 0], &["made"]);
    let made = long(&guest.ask(CREATE, ROOT, &body).unwrap(), 0);
    let node = with_names(&[libc::S_IFREG | 0o6755, 0, 0, 0], &["node"]);
    guest.ask(MKNOD, ROOT, &node).unwrap();
    let folder = with_names(&[0o6755, 0], &["folder"]);
    guest.ask(MKDIR, ROOT, &folder).unwrap();
    guest.ask(SETATTR, made, &setattr(1, 0o6755, 0)).unwrap();
    for name in ["made", "node", "folder"] {
        let mode = fs::metadata(guest.share().join(name)).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o755, "{name}");
    }
}

#[test]
fn a_read_only_share_changes_nothing() {
    let mut guest = Guest::new(true);
    let file = guest.share().join("file");
    fs::write(&file, "content").unwrap();
    let inode = guest.lookup(ROOT, "file").unwrap();
    let handle = guest.open(inode, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(inode, handle).unwrap(), b"content");
    for flags in [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_RDONLY | libc::O_TRUNC,
        libc::O_RDWR | libc::O_APPEND,
    ] {
        assert_eq!(guest.open(inode, flags), Err(libc::EROFS), "{flags:#x}");
    }
    let on = inode.to_le_bytes();
    let write = [
        &handle.to_le_bytes()[..],
        &[0; 8],
        &[1, 0, 0, 0],
        &[0; 20],
        b"x",
    ]
    .concat();
    let space = [
        &handle.to_le_bytes()[..],
        &[0; 8],
        &[9, 0, 0, 0, 0, 0, 0, 0],
        &[0; 8],
    ]
    .concat();
    for (opcode, inode, body) in [
        (CREATE, ROOT, with_names(&[2, 0o644, 0, 0], &["new"])),
        (CREATE, ROOT, with_names(&[0, 0o644, 0, 0], &["new"])),
        (MKDIR, ROOT, with_names(&[0o755, 0], &["new"])),
        (MKNOD, ROOT, with_names(&[0o644, 0, 0, 0], &["new"])),
        (SYMLINK, ROOT, with_names(&[], &["new", "x"])),
        (UNLINK, ROOT, with_names(&[], &["file"])),
        (RENAME, ROOT, with_names(&[1, 0], &["file", "new"])),
        (RENAME2, ROOT, with_names(&[1, 0, 0, 0], &["file", "new"])),
        (LINK, ROOT, [&on[..], b"new\0"].concat()),
        (SETATTR, inode, setattr(1, 0o777, 0)),
        (SETATTR, inode, setattr(8, 0, 0)),
        (WRITE, inode, write),
        (FALLOCATE, inode, space),
    ] {
        assert_eq!(
            guest.ask(opcode, inode, &body),
            Err(libc::EROFS),
            "{opcode}"
        );
    }
    let attribute = [&[1, 0, 0, 0, 0, 0, 0, 0][..], b"user.x\0v"].concat();
    assert_eq!(guest.ask(SETXATTR, inode, &attribute), Err(libc::ENOSYS));
    assert_eq!(fs::read(&file).unwrap(), b"content");
    assert_eq!(fs::read_dir(guest.share()).unwrap().count(), 1);
}

#[test]
fn invalid_messages_are_answered_with_an_error() {
    let mut guest = Guest::new(false);
    for opcode in [0, 7, 99, 4096, u32::MAX] {
        assert_eq!(guest.ask(opcode, ROOT, b""), Err(libc::ENOSYS), "{opcode}");
    }
    for opcode in 1..54 {
        // A header that lies about its length, and bodies that break off.
        for len in [0u32, 39, 41, 1 << 20, u32::MAX] {
            let mut bytes = message(opcode, ROOT, b"");
            bytes[0..4].copy_from_slice(&len.to_le_bytes());
            guest.send(&bytes, ROOM);
        }
        guest.send(&message(opcode, ROOT, b"x"), ROOM);
        guest.send(&message(opcode, u64::MAX, &[0; 64]), ROOM);
    }
    // Room that is too small for what there is to say.
    fs::write(guest.share().join("file"), "content").unwrap();
    for room in [0, 16, 17, 40, 100] {
        guest.init();
        guest.send(&message(LOOKUP, ROOT, b"file\0"), room);
        let body = [0u8; 40];
        guest.send(&message(READDIR, ROOT, &body), room);
        guest.send(&message(READDIRPLUS, ROOT, &body), room);
    }
}

#[test]
fn a_reset_closes_what_the_guest_had_open() {
    let mut guest = Guest::new(false);
    fs::write(guest.share().join("file"), "content").unwrap();
    let inode = guest.lookup(ROOT, "file").unwrap();
    let handle = guest.open(inode, libc::O_RDONLY).unwrap();
    guest.service.reset();
    guest.init();
    assert_eq!(guest.read(inode, handle), Err(libc::EBADF));
    let again = guest.lookup(ROOT, "file").unwrap();
    assert!(guest.open(again, libc::O_RDONLY).is_ok());
}

#[test]
fn it_is_mounted_from_the_first_message_to_the_last() {
    let mut guest = Guest::new(false);
    assert!(guest.mounted);
    guest.lookup(ROOT, "none").unwrap_err();
    assert!(guest.mounted);
    guest.send(&message(DESTROY, 0, b""), ROOM);
    assert!(!guest.mounted);
    guest.init();
    assert!(guest.mounted);
    guest.service.reset();
    guest.send(&message(FORGET, ROOT, &[0; 8]), 0);
    assert!(!guest.mounted);
}

#[test]
fn a_guest_leaves_descriptors_for_others_and_gets_them_back() {
    let now = fs::File::open("/").unwrap();
    let mut guest = Guest::with_files(false, now.as_raw_fd() as u64 + 500);
    for n in 0..1000 {
        fs::write(guest.share().join(format!("{n}")), "").unwrap();
    }
    // It may know more files than hull has open.
    let known: Vec<u64> = (0..1000)
        .map(|n| guest.lookup(ROOT, &format!("{n}")).unwrap())
        .collect();
    let mut open = Vec::new();
    let refused = known.iter().find_map(|inode| {
        guest
            .open(*inode, libc::O_RDONLY)
            .map(|handle| open.push((*inode, handle)))
            .err()
    });
    assert_eq!(refused, Some(libc::EMFILE));
    assert_eq!(guest.open(known[999], libc::O_RDONLY), Err(libc::EMFILE));
    let [warning] = &guest.warnings[..] else {
        panic!("told {} times", guest.warnings.len());
    };
    assert!(warning.contains("ulimit -Hn"), "{warning}");
    for (inode, handle) in open {
        let body = [&handle.to_le_bytes()[..], &[0; 16]].concat();
        guest.ask(RELEASE, inode, &body).unwrap();
    }
    assert_eq!(guest.names(ROOT).len(), 1002);
}

#[test]
fn an_entry_that_cannot_be_looked_up_is_an_entry() {
    let mut guest = Guest::new(false);
    fs::write(guest.share().join("gone"), "").unwrap();
    let opened = guest.ask(OPENDIR, ROOT, &[0; 8]).unwrap();
    let handle = long(&opened, 0);
    // The first answer has no room for it, so the host has been asked already.
    assert_eq!(
        guest.list(READDIRPLUS, ROOT, handle, 0, 160).unwrap().len(),
        1
    );
    fs::remove_file(guest.share().join("gone")).unwrap();
    let all = guest.list(READDIRPLUS, ROOT, handle, 0, 0x4000).unwrap();
    assert_eq!(all.len(), 2, "it is read again from the begin");
}

/// What a guest does that removes while it reads, and one that goes back.
#[test]
fn positions_survive_removal() {
    for folder in [Path::new("/dev/shm"), &std::env::temp_dir()] {
        let host = tempfile::tempdir_in(folder).unwrap();
        let mut guest = Guest::in_folder(host, "", u64::MAX);
        for n in 0..1000 {
            fs::write(guest.share().join(format!("{n}")), "").unwrap();
        }
        let opened = guest.ask(OPENDIR, ROOT, &[0; 8]).unwrap();
        let handle = long(&opened, 0);
        let (mut at, mut seen, mut middle) = (0, Vec::new(), None);
        loop {
            let items = guest.list(READDIRPLUS, ROOT, handle, at, 0x1000).unwrap();
            let Some((_, next)) = items.last() else {
                break;
            };
            if seen.len() > 500 && middle.is_none() {
                middle = Some((at, items.clone()));
            }
            at = *next;
            for (name, _) in items {
                if name != "." && name != ".." {
                    let body = [name.as_bytes(), b"\0"].concat();
                    guest.ask(UNLINK, ROOT, &body).unwrap();
                }
                seen.push(name);
            }
        }
        assert_eq!(seen.len(), 1002);
        assert_eq!(fs::read_dir(guest.share()).unwrap().count(), 0);
        let (at, items) = middle.unwrap();
        assert_eq!(
            guest.list(READDIR, ROOT, handle, at, 0x1000).unwrap()[0],
            items[0]
        );
        // From the begin it sees what there is now.
        assert_eq!(
            guest.list(READDIR, ROOT, handle, 0, 0x1000).unwrap().len(),
            2
        );
        assert_eq!(
            guest.list(READDIR, ROOT, handle, u64::MAX, 0x1000),
            Ok(Vec::new())
        );
    }
}

/// seekdir(3) to the begin is no rewinddir(3): positions of before still hold.
#[test]
fn positions_survive_a_return_to_the_begin() {
    let mut guest = Guest::new(false);
    for n in 0..3000 {
        fs::write(guest.share().join(format!("{n}")), "").unwrap();
    }
    let opened = guest.ask(OPENDIR, ROOT, &[0; 8]).unwrap();
    let handle = long(&opened, 0);
    let (mut at, mut parts) = (0, Vec::new());
    loop {
        let items = guest.list(READDIR, ROOT, handle, at, 0x1000).unwrap();
        let Some((_, next)) = items.last() else {
            break;
        };
        let before = std::mem::replace(&mut at, *next);
        parts.push((before, items));
    }
    for part in [0, parts.len() - 1, 0, parts.len() / 2] {
        let (at, items) = &parts[part];
        let again = guest.list(READDIR, ROOT, handle, *at, 0x1000);
        assert_eq!(again.as_ref(), Ok(items));
    }
}

#[test]
fn folders_that_cannot_be_shared_are_told_apart() {
    let host = tempfile::tempdir().unwrap();
    let file = host.path().join("file");
    fs::write(&file, "").unwrap();
    symlink("/", host.path().join("root")).unwrap();
    let open = |path: &Path| {
        Share::open(&Config {
            folder: path.into(),
            guest_path: "/x".into(),
            read_only: true,
            host_locks: false,
            xattrs: false,
            tag: "x".into(),
        })
        .map(drop)
    };
    assert!(open(host.path()).is_ok());
    assert!(matches!(open(&file), Err(ShareError::NotAFolder { .. })));
    let missing = open(&host.path().join("none"));
    assert!(matches!(missing, Err(ShareError::Open { .. })));
    for root in ["/", "//", "/usr/..", "/proc/self/root"] {
        assert!(matches!(
            open(Path::new(root)),
            Err(ShareError::Root { .. })
        ));
    }
    let root = open(&host.path().join("root"));
    assert!(matches!(root, Err(ShareError::Root { .. })));
}

proptest! {
    /// Whatever a guest sends, the server goes on, claims no more than there was room for, and
    /// nothing is there outside of the folder that was not before.
    #[test]
    fn no_bytes_end_the_server(
        requests in prop::collection::vec((
            0u32..54,
            prop_oneof![Just(ROOT), Just(2), any::<u64>()],
            prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(b'.'), Just(b'a'),
                any::<u8>()], 0..120),
            prop_oneof![Just(0u32), Just(ROOM), 16..200u32],
        ), 1..60),
    ) {
        let mut guest = Guest::new(false);
        fs::write(guest.share().join("a"), "content").unwrap();
        guest.lookup(ROOT, "a").unwrap();
        for (opcode, inode, body, room) in requests {
            guest.send(&message(opcode, inode, &body), room);
        }
        prop_assert_eq!(fs::read_dir(guest.host.path()).unwrap().count(), 2);
        guest.init();
        prop_assert!(guest.ask(OPENDIR, ROOT, &[0; 8]).is_ok());
    }

    #[test]
    fn bytes_without_a_header_do_not_end_it_either(bytes in prop::collection::vec(any::<u8>(), 40..400)) {
        let mut guest = Guest::new(true);
        guest.send(&bytes, ROOM);
    }
}
