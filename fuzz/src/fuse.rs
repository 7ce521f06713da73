//! FUSE requests to the server of a share, over a folder of the host: of a guest that knows what it was
//! told, and of one that sends anything.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use hull::devices::virtio::fs::{IN_HEADER, OUT_HEADER, Request};
use hull::memory::GuestMemory;
use hull::memory::transfer::Segment;
use hull::share::{Config, Files, Service};
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 2 << 20;
const MESSAGE_AT: u64 = 0x1000;
const ANSWER_AT: u64 = 0x10_0000;
const ROOM: u32 = 0x4000;
const ROOT: u64 = 1;
/// Most bytes that a file of the guest is given, such that the host's memory is enough.
const MAX_FILE: u64 = 1 << 20;
/// Names, in the folder from the beginning or not, and those that lead out of it.
const NAMES: &[&str] = &[
    "a",
    "inner",
    "link",
    "up",
    "new",
    "b",
    "c",
    "..",
    ".",
    "",
    "../secret",
    "inner/d",
    "/etc",
];
const XATTRS: &[&str] = &[
    "user.a",
    "user.b",
    "trusted.x",
    "security.capability",
    "user.",
];

// Opcodes of uapi/linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const SETATTR: u32 = 4;
const WRITE: u32 = 16;
const INIT: u32 = 26;
const READDIR: u32 = 28;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;
const FALLOCATE: u32 = 43;
const READDIRPLUS: u32 = 44;

/// A share, and what its guest sends.
#[derive(Arbitrary, Debug)]
pub struct Input {
    read_only: bool,
    host_locks: bool,
    xattrs: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
struct Step {
    what: What,
    node: Node,
    /// User and group, as a rule the superuser.
    caller: Option<(u8, u8)>,
    room: Room,
    /// The host does something first.
    host: Option<Host>,
}

#[derive(Arbitrary, Debug)]
enum Node {
    Root,
    /// One that was looked up or made.
    Known(u8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Room {
    Enough,
    None,
    Some(u16),
}

#[derive(Arbitrary, Debug)]
enum Host {
    Remove(u8),
    Move(u8, u8),
    Make(u8, bool),
}

#[derive(Arbitrary, Debug)]
enum What {
    /// LOOKUP, UNLINK, RMDIR: a name.
    Named(u8, u8),
    Symlink(u8, u8),
    Mknod(u32, u8),
    Mkdir(u16, u8),
    Rename {
        to: u8,
        flags: Option<u8>,
        old: u8,
        new: u8,
    },
    Link(u8, u8),
    Open(u32),
    OpenFolder,
    Create {
        flags: u32,
        mode: u16,
        name: u8,
    },
    Nameless {
        flags: u32,
        mode: u16,
    },
    Read {
        handle: u8,
        at: u16,
        size: u16,
    },
    /// READDIR or READDIRPLUS, at a position that an earlier one told or another.
    List {
        handle: u8,
        at: Option<u64>,
        size: u16,
        plus: bool,
    },
    Write {
        handle: u8,
        at: u16,
        data: Vec<u8>,
        size: Option<u32>,
    },
    /// FLUSH, FSYNC, RELEASE, SYNCFS and more.
    Handle {
        op: u8,
        handle: u8,
        flags: u32,
    },
    Getattr(Option<u8>),
    Setattr {
        valid: u16,
        handle: u8,
        size: u32,
        mode: u16,
        owner: (u16, u16),
        times: [u32; 2],
    },
    /// STATFS, READLINK, INTERRUPT: nothing.
    Bare(u8),
    Forget(u64),
    Forgets {
        count: u32,
        all: Vec<(u8, u8)>,
    },
    Setxattr {
        name: u8,
        value: Vec<u8>,
        size: Option<u32>,
        flags: u8,
    },
    Getxattr {
        name: u8,
        size: u8,
        op: u8,
    },
    Lock {
        op: u8,
        handle: u8,
        owner: u8,
        range: (u16, u16),
        kind: u8,
        flock: bool,
    },
    Fallocate {
        handle: u8,
        at: u16,
        len: u32,
        mode: u8,
    },
    Lseek {
        handle: u8,
        at: u16,
        whence: u8,
    },
    Copy {
        from: u8,
        at: u16,
        to: u8,
        to_handle: u8,
        to_at: u16,
        len: u32,
    },
    Init([u32; 4]),
    Destroy,
    /// Any operation and body.
    Any {
        op: u8,
        body: Vec<u8>,
    },
    /// Bytes without a header.
    Bytes(Vec<u8>),
    Reset,
}

/// Appends numbers in the order in which they are in memory.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn words(mut self, words: &[u32]) -> Self {
        words
            .iter()
            .for_each(|word| self.0.extend(word.to_le_bytes()));
        self
    }

    fn longs(mut self, longs: &[u64]) -> Self {
        longs
            .iter()
            .for_each(|long| self.0.extend(long.to_le_bytes()));
        self
    }

    fn name(mut self, name: u8) -> Self {
        self.0.extend(self::name(name).as_bytes());
        self.0.push(0);
        self
    }
}

fn name(which: u8) -> &'static str {
    NAMES[usize::from(which) % NAMES.len()]
}

/// The folders of all inputs: one around the share, and the share.
fn folders() -> &'static (PathBuf, PathBuf) {
    static FOLDERS: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        let around = crate::folder("fuse");
        let share = around.join("share");
        let secret = around.join("secret");
        fs::write(&secret, "secret").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
        (around, share)
    })
}

/// The share as it is at the beginning.
fn fill(share: &Path) {
    let _ = fs::remove_dir_all(share);
    fs::create_dir(share).unwrap();
    fs::write(share.join("a"), "content of a").unwrap();
    fs::create_dir(share.join("inner")).unwrap();
    fs::write(share.join("inner/d"), "d").unwrap();
    symlink("../secret", share.join("link")).unwrap();
    symlink("..", share.join("up")).unwrap();
}

struct Guest {
    memory: GuestMemory,
    service: Service,
    /// Known nodes, and open files with their nodes.
    nodes: Vec<u64>,
    handles: Vec<(u64, u64)>,
    /// The position behind the last entry that was listed.
    position: u64,
}

/// Send requests, and check their answers and the host's folders; then the same to a share that is
/// for reading, where they change nothing.
pub fn check(input: &Input) {
    converse(input, input.read_only);
    if !input.read_only && input.steps.iter().all(|step| step.host.is_none()) {
        converse(input, true);
    }
}

fn converse(input: &Input, read_only: bool) {
    let (around, share) = folders();
    fill(share);
    let before = read_only_state(share);
    let root = fs::metadata(share).unwrap();
    let open = open_files();
    let options = [
        (read_only, ":ro"),
        (input.host_locks, ":lock=host"),
        (input.xattrs, ":xattr=on"),
    ];
    let options: String = options
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, option)| *option)
        .collect();
    let config: Config = format!("{}:/s{options}", share.display()).parse().unwrap();
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let files = Files::new(File::open(share).unwrap().into(), &config).unwrap();
    let mut guest = Guest {
        service: Service::new(files, memory.clone()),
        memory,
        nodes: vec![ROOT],
        handles: Vec::new(),
        position: 0,
    };
    guest.init();
    let mut host_acted = false;
    for step in input.steps.iter().take(64) {
        if let Some(host) = &step.host {
            host_acted = true;
            host.act(share);
        }
        guest.step(step, share);
    }
    // Nothing is outside of the folder that was not there before.
    assert_eq!(fs::read(around.join("secret")).unwrap(), b"secret");
    assert_eq!(
        fs::metadata(around.join("secret")).unwrap().mode(),
        0o100_644
    );
    assert_eq!(fs::read_dir(around).unwrap().count(), 2);
    let rights = |about: &fs::Metadata| (about.mode(), about.uid(), about.gid());
    let now = fs::metadata(share).unwrap();
    assert_eq!(
        rights(&now),
        rights(&root),
        "the shared folder has other rights"
    );
    if read_only && !host_acted {
        assert_eq!(
            read_only_state(share),
            before,
            "a read-only share has changed"
        );
    }
    // A guest that begins anew is served, and holds nothing.
    guest.ask(DESTROY, 0, &[]).unwrap();
    guest.init();
    let opened = guest.ask(27, ROOT, &[0; 8]).unwrap();
    let names = guest.all_names(long(&opened, 0));
    let there = fs::read_dir(share).unwrap();
    let there = there.map(|entry| entry.unwrap().file_name().into_vec());
    let there = there.chain([b".".to_vec(), b"..".to_vec()]);
    assert_eq!(names, there.collect());
    drop(guest);
    assert_eq!(open_files(), open, "a descriptor stays open");
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// What a guest could change of the share.
fn read_only_state(share: &Path) -> Vec<(PathBuf, u32, u64, i64, i64, Vec<u8>)> {
    let (mut all, mut left) = (Vec::new(), vec![share.to_path_buf()]);
    while let Some(path) = left.pop() {
        let about = fs::symlink_metadata(&path).unwrap();
        let content = if about.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        if about.is_dir() {
            let inside = fs::read_dir(&path).unwrap();
            left.extend(inside.map(|entry| entry.unwrap().path()));
        }
        all.push((
            path,
            about.mode(),
            about.nlink(),
            about.mtime(),
            about.mtime_nsec(),
            content,
        ));
    }
    all.sort();
    all
}

impl Host {
    fn act(&self, share: &Path) {
        let at = |which: &u8| share.join(["a", "inner", "new", "b"][usize::from(which % 4)]);
        match self {
            Self::Remove(which) => {
                let _ = fs::remove_file(at(which)).or_else(|_| fs::remove_dir_all(at(which)));
            }
            Self::Move(from, to) => drop(fs::rename(at(from), at(to))),
            Self::Make(which, true) => drop(fs::create_dir(at(which))),
            // It does not follow a link of the guest's.
            Self::Make(which, false) => drop(File::create_new(at(which))),
        }
    }
}

impl Guest {
    fn init(&mut self) {
        let body = Body::default().words(&[7, 38, 0x2_0000, u32::MAX]).0;
        self.ask(INIT, 0, &body).unwrap();
    }

    fn node(&self, which: u8) -> u64 {
        self.nodes[usize::from(which) % self.nodes.len()]
    }

    /// An open file's handle, and the node that it belongs to.
    fn handle(&self, which: u8) -> (u64, u64) {
        let count = self.handles.len().max(1);
        let known = self.handles.get(usize::from(which) % count);
        known.copied().unwrap_or((u64::from(which), ROOT))
    }

    fn step(&mut self, step: &Step, share: &Path) {
        let mut node = match step.node {
            Node::Root => ROOT,
            Node::Known(which) => self.node(which),
            Node::Any(node) => node,
        };
        let room = match step.room {
            Room::Enough => ROOM,
            Room::None => 0,
            Room::Some(room) => (u32::from(room) % ROOM).max(OUT_HEADER as u32),
        };
        if let What::Reset = step.what {
            self.service.reset();
            return;
        }
        if let What::Bytes(bytes) = &step.what {
            self.send(bytes, room);
            return;
        }
        let (op, body, of) = self.encode(&step.what);
        if let (Some(of), Node::Known(_)) = (of, &step.node) {
            node = of;
        }
        let mut message = message(op, node, &body);
        if let Some((user, group)) = step.caller {
            message[24..32].copy_from_slice(
                &[u32::from(user), group.into()]
                    .map(u32::to_le_bytes)
                    .concat(),
            );
        }
        limit(op, &mut message);
        let answer = self.send(&message, room);
        let may_be_silent = room == 0 || matches!(op, FORGET | BATCH_FORGET | 36);
        if answer.is_empty() {
            assert!(may_be_silent, "{op}: no answer");
            return;
        }
        assert_eq!(
            word(&answer, 0) as usize,
            answer.len(),
            "{op}: the length of the answer"
        );
        assert_eq!(long(&answer, 8), 77);
        let (error, body) = (word(&answer, 4) as i32, &answer[16..]);
        assert!((-4095..=0).contains(&error));
        assert!(error == 0 || body.is_empty());
        if error == 0 {
            self.learn(op, node, body);
        }
        if let What::Named(0, which) = &step.what
            && step.node_is_root()
            && room == ROOM
        {
            looked_up(share, name(*which), error, body);
        }
    }

    /// Remember what was told.
    fn learn(&mut self, op: u32, node: u64, body: &[u8]) {
        match op {
            // LOOKUP, SYMLINK to LINK without UNLINK, RMDIR and RENAME
            LOOKUP | 6 | 8 | 9 | 13 => self.nodes.push(long(body, 0)),
            14 | 27 => self.handles.push((long(body, 0), node)),
            35 | 51 => {
                self.nodes.push(long(body, 0));
                self.handles.push((long(body, 128), long(body, 0)));
            }
            READDIR | READDIRPLUS => {
                let entries = entries(body, op == READDIRPLUS);
                self.position = entries.last().map_or(self.position, |(_, at)| *at);
            }
            _ => {}
        }
        assert!(self.nodes.iter().all(|node| *node != 0));
    }

    /// The operation, what follows its header, and the node of its handle.
    fn encode(&self, what: &What) -> (u32, Vec<u8>, Option<u64>) {
        let body = Body::default();
        let flags = |flags: u32| flags & 0x1f_ffff;
        let (op, body, of) = match what {
            What::Named(op, name) => (
                [LOOKUP, 10, 11][usize::from(op % 3)],
                body.name(*name),
                None,
            ),
            What::Symlink(name, target) => (6, body.name(*name).name(*target), None),
            What::Mknod(mode, name) => (
                8,
                body.words(&[*mode & 0x1_ffff, 0, 0, 0]).name(*name),
                None,
            ),
            What::Mkdir(mode, name) => (9, body.words(&[(*mode).into(), 0]).name(*name), None),
            What::Rename {
                to,
                flags,
                old,
                new,
            } => {
                let body = body.longs(&[self.node(*to)]);
                let (op, body) = match flags {
                    None => (12, body),
                    Some(flags) => (45, body.words(&[u32::from(*flags), 0])),
                };
                (op, body.name(*old).name(*new), None)
            }
            What::Link(which, name) => (13, body.longs(&[self.node(*which)]).name(*name), None),
            What::Open(open) => (14, body.words(&[flags(*open), 0]), None),
            What::OpenFolder => (27, body.words(&[0, 0]), None),
            What::Create {
                flags: open,
                mode,
                name,
            } => (
                35,
                body.words(&[flags(*open), (*mode).into(), 0, 0])
                    .name(*name),
                None,
            ),
            What::Nameless { flags: open, mode } => {
                (51, body.words(&[flags(*open), (*mode).into(), 0, 0]), None)
            }
            What::Init(words) => (INIT, body.words(words), None),
            What::Destroy => (DESTROY, body, None),
            What::Any { op, body } => (u32::from(*op % 54), Body(body.clone()), None),
            What::Bare(which) => ([17, 5, 36, 3][usize::from(which % 4)], body, None),
            What::Forget(count) => (FORGET, body.longs(&[*count % 8]), None),
            What::Forgets { count, all } => {
                let mut body = body.words(&[(*count).min(all.len() as u32 + 1), 0]);
                for (which, count) in all {
                    body = body.longs(&[self.node(*which), (*count).into()]);
                }
                (BATCH_FORGET, body, None)
            }
            What::Setxattr {
                name,
                value,
                size,
                flags,
            } => {
                let size = size.unwrap_or(value.len() as u32);
                let mut body = body.words(&[size, (*flags % 4).into()]);
                body.0.extend(xattr(*name));
                body.0.extend(value);
                (21, body, None)
            }
            What::Getxattr { name, size, op } => {
                let op = [22, 23, 24][usize::from(op % 3)];
                let mut body = if op == 24 {
                    body
                } else {
                    body.words(&[u32::from(*size) * 8, 0])
                };
                if op != 23 {
                    body.0.extend(xattr(*name));
                }
                (op, body, None)
            }
            open => return self.encode_open(open),
        };
        (op, body.0, of)
    }

    /// The same for operations on open files.
    fn encode_open(&self, what: &What) -> (u32, Vec<u8>, Option<u64>) {
        let body = Body::default();
        let (op, body, of) = match what {
            What::Read { handle, at, size } => {
                let (fh, of) = self.handle(*handle);
                let body = body.longs(&[fh, (*at).into()]).words(&[(*size).into(), 0]);
                (15, body.longs(&[0, 0]), of)
            }
            What::List {
                handle,
                at,
                size,
                plus,
            } => {
                let (fh, of) = self.handle(*handle);
                let body = body.longs(&[fh, at.unwrap_or(self.position)]);
                let op = if *plus { READDIRPLUS } else { READDIR };
                (op, body.words(&[(*size).into(), 0]).longs(&[0, 0]), of)
            }
            What::Write {
                handle,
                at,
                data,
                size,
            } => {
                let (fh, of) = self.handle(*handle);
                let size = size.unwrap_or(data.len() as u32);
                let mut body = body
                    .longs(&[fh, (*at).into()])
                    .words(&[size, 0])
                    .longs(&[0, 0]);
                body.0.extend(data);
                (WRITE, body, of)
            }
            What::Handle { op, handle, flags } => {
                let (fh, of) = self.handle(*handle);
                let op = [25, 20, 30, 18, 29, 50][usize::from(op % 6)];
                (
                    op,
                    body.longs(&[fh])
                        .words(&[*flags, 0])
                        .longs(&[u64::from(*flags)]),
                    of,
                )
            }
            What::Getattr(handle) => {
                let (fh, of) = self.handle(handle.unwrap_or(0));
                (
                    3,
                    body.words(&[handle.is_some().into(), 0]).longs(&[fh]),
                    of,
                )
            }
            What::Setattr {
                valid,
                handle,
                size,
                mode,
                owner,
                times,
            } => {
                let (fh, of) = self.handle(*handle);
                let body = body.words(&[u32::from(*valid & 0x1ff), 0]);
                let body =
                    body.longs(&[fh, (*size).into(), 0, times[0].into(), times[1].into(), 0]);
                let body = body.words(&[times[1], times[0], 0, (*mode).into(), 0]);
                (
                    SETATTR,
                    body.words(&[owner.0.into(), owner.1.into(), 0]),
                    of,
                )
            }
            What::Lock {
                op,
                handle,
                owner,
                range,
                kind,
                flock,
            } => {
                let (fh, of) = self.handle(*handle);
                let body = body.longs(&[fh, (*owner % 3).into(), range.0.into(), range.1.into()]);
                let body = body.words(&[u32::from(*kind % 4), 1, (*flock).into(), 0]);
                ([31, 32, 33][usize::from(op % 3)], body, of)
            }
            What::Fallocate {
                handle,
                at,
                len,
                mode,
            } => {
                let (fh, of) = self.handle(*handle);
                let body = body.longs(&[fh, (*at).into(), (*len).into()]);
                (FALLOCATE, body.words(&[(*mode).into(), 0]), of)
            }
            What::Lseek { handle, at, whence } => {
                let (fh, of) = self.handle(*handle);
                (
                    46,
                    body.longs(&[fh, (*at).into()])
                        .words(&[u32::from(*whence % 6), 0]),
                    of,
                )
            }
            What::Copy {
                from,
                at,
                to,
                to_handle,
                to_at,
                len,
            } => {
                let (fh, of) = self.handle(*from);
                let (to_fh, to_of) = self.handle(*to_handle);
                let to = if *to == 0 { to_of } else { self.node(*to) };
                let places = [
                    fh,
                    (*at).into(),
                    to,
                    to_fh,
                    (*to_at).into(),
                    (*len).into(),
                    0,
                ];
                (47, body.longs(&places), of)
            }
            _ => (0, body, ROOT),
        };
        (op, body.0, Some(of))
    }

    /// Send `bytes`, in two parts; the answer.
    fn send(&mut self, bytes: &[u8], room: u32) -> Vec<u8> {
        self.memory
            .write_slice(bytes, GuestAddress(MESSAGE_AT))
            .unwrap();
        let parts = |at: u64, len: u32| -> Vec<Segment> {
            let first = len.min(100);
            let parts = [(at, first), (at + u64::from(first), len - first)];
            let parts = parts.into_iter().filter(|(_, len)| *len > 0);
            let segment = |(at, len)| Segment {
                addr: GuestAddress(at),
                len,
            };
            parts.map(segment).collect()
        };
        let request = Request {
            readable: parts(MESSAGE_AT, bytes.len() as u32),
            writable: parts(ANSWER_AT, room),
        };
        let beyond = GuestAddress(ANSWER_AT + u64::from(room));
        self.memory.write_obj(0x5a5a_5a5au32, beyond).unwrap();
        // One that waits for a lock is asked again until it may wait no longer.
        let served = self.service.serve(&request, true);
        let answer = served.or_else(|| self.service.serve(&request, false));
        let answer = answer.expect("an answer");
        assert_eq!(self.memory.read_obj::<u32>(beyond).unwrap(), 0x5a5a_5a5a);
        assert!(answer.written <= room, "{} of {room}", answer.written);
        let mut bytes = vec![0; answer.written as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(ANSWER_AT))
            .unwrap();
        bytes
    }

    /// The body of the answer, or the error.
    fn ask(&mut self, op: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let answer = self.send(&message(op, node, body), ROOM);
        match word(&answer, 4) as i32 {
            0 => Ok(answer[16..].to_vec()),
            error => Err(-error),
        }
    }

    fn all_names(&mut self, handle: u64) -> BTreeSet<Vec<u8>> {
        let (mut at, mut names) = (0, BTreeSet::new());
        for _ in 0..100 {
            let body = Body::default()
                .longs(&[handle, at])
                .words(&[700, 0])
                .longs(&[0, 0])
                .0;
            let listed = self.ask(READDIRPLUS, ROOT, &body).unwrap();
            assert!(listed.len() <= 700);
            for (name, next) in entries(&listed, true) {
                assert!(names.insert(name), "a name twice");
                at = next;
            }
            if listed.is_empty() {
                return names;
            }
        }
        panic!("a folder without end");
    }
}

impl Step {
    fn node_is_root(&self) -> bool {
        matches!(self.node, Node::Root)
    }
}

fn xattr(name: u8) -> Vec<u8> {
    [XATTRS[usize::from(name) % XATTRS.len()].as_bytes(), b"\0"].concat()
}

/// Cut sizes in `message` to what the host has room for, or to what none has.
fn limit(op: u32, message: &mut [u8]) {
    let at = match op {
        SETATTR => 40 + 16,
        FALLOCATE => 40 + 16,
        _ => return,
    };
    if message.len() >= at + 8 {
        let size = long(message, at);
        let size = if size < 1 << 62 {
            size % MAX_FILE
        } else {
            size
        };
        message[at..at + 8].copy_from_slice(&size.to_le_bytes());
    }
    if op == FALLOCATE && message.len() >= 56 {
        let start = long(message, 48) % MAX_FILE;
        message[48..56].copy_from_slice(&start.to_le_bytes());
    }
}

/// The answer to LOOKUP of `name` in the folder itself is what the host has there.
fn looked_up(share: &Path, name: &str, error: i32, body: &[u8]) {
    let there = fs::symlink_metadata(share.join(name));
    match (name, there) {
        ("" | "." | "..", _) => assert_eq!(error, -22, "{name}"),
        (name, _) if name.contains('/') => assert_eq!(error, -22, "{name}"),
        (_, Err(_)) => assert!(error != 0, "{name} is not there"),
        (_, Ok(about)) => {
            assert_eq!(error, 0, "{name} is there");
            let attr = &body[40..];
            assert_eq!(long(attr, 0), about.ino());
            assert_eq!(long(attr, 8), about.size());
            assert_eq!(word(attr, 60), about.mode());
            assert_eq!(u64::from(word(attr, 64)), about.nlink());
            assert_eq!([word(attr, 68), word(attr, 72)], [about.uid(), about.gid()]);
        }
    }
}

/// The names and positions of a listing.
fn entries(mut rest: &[u8], plus: bool) -> Vec<(Vec<u8>, u64)> {
    let mut entries = Vec::new();
    while !rest.is_empty() {
        if plus {
            rest = &rest[128..];
        }
        let len = word(rest, 16) as usize;
        entries.push((rest[24..24 + len].to_vec(), long(rest, 8)));
        rest = &rest[(24 + len).next_multiple_of(8)..];
    }
    entries
}

fn message(op: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let len = IN_HEADER as u32 + body.len() as u32;
    let head = Body::default().words(&[len, op]).longs(&[77, node]);
    [head.words(&[0; 4]).0, body.to_vec()].concat()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
