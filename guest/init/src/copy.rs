//! The guest's end of `hull cp`: a process of its own, started with the function as its first argument.
//!
//! A tree of files is a stream of records, its root first, with an empty name:
//! `kind u8 | mode u32 | uid u32 | gid u32 | mtime i64 | size u64 | name length u16 | name | content`,
//! integers little endian. The content of a link is its target. The record of kind 0 is the last.

use core::ffi::CStr;

use crate::sys::{self, Errno, Fd, Stat};
use crate::text::{each_entry, join, say_to, write_all};

/// Deepest folder.
const MAX_DEPTH: usize = 200;
const MAX_PATH: usize = 4096;
const HEADER: usize = 31;

const END: u8 = 0;
const FILE: u8 = b'f';
const FOLDER: u8 = b'd';
const LINK: u8 = b'l';
/// From the host: a folder that is made where it is missing, and left as it is otherwise.
const PARENT: u8 = b'p';

const STDIN: Fd = 0;

/// Do what `function` says with `path`; the status to exit with.
pub fn run(function: &CStr, path: &CStr, scratch: &mut [u8]) -> i32 {
    let mut copy = Copy {
        path: [0; MAX_PATH],
        scratch,
    };
    let Some(len) = copy.begin(path) else {
        return copy.fail(path, b"its path is too long");
    };
    let done = match function.to_bytes() {
        b"look" => look(path),
        b"send" => copy
            .send(len, len, MAX_DEPTH)
            .and_then(|()| record(END, &Stat::default(), 0, b"")),
        b"receive" => copy.receive(len, false),
        b"receive-owned" => copy.receive(len, true),
        _ => Err(sys::EINVAL),
    };
    match done {
        Ok(()) => 0,
        // It has said why.
        Err(sys::EINVAL) => 1,
        Err(Errno(errno)) => {
            let (digits, zeros) = crate::text::decimal(errno as u8);
            say_to(2, &[copy.current(), b": error ", &digits[zeros..], b"\n"]);
            1
        }
    }
}

/// Print what is there: a kind, `-` for nothing, `o` for anything else.
fn look(path: &CStr) -> sys::Result<()> {
    let kind = match sys::stat(path, true) {
        Ok(stat) => kind_of(&stat).unwrap_or(b'o'),
        Err(sys::ENOENT | sys::ENOTDIR) => b'-',
        Err(errno) => return Err(errno),
    };
    write_all(&[kind])
}

fn kind_of(stat: &Stat) -> Option<u8> {
    match stat.mode & 0o170_000 {
        0o100_000 => Some(FILE),
        0o040_000 => Some(FOLDER),
        0o120_000 => Some(LINK),
        _ => None,
    }
}

fn record(kind: u8, stat: &Stat, size: u64, name: &[u8]) -> sys::Result<()> {
    let mut header = [kind; HEADER];
    header[1..5].copy_from_slice(&(stat.mode & 0o7777).to_le_bytes());
    header[5..9].copy_from_slice(&stat.uid.to_le_bytes());
    header[9..13].copy_from_slice(&stat.gid.to_le_bytes());
    header[13..21].copy_from_slice(&stat.mtime.to_le_bytes());
    header[21..29].copy_from_slice(&size.to_le_bytes());
    header[29..].copy_from_slice(&(name.len() as u16).to_le_bytes());
    write_all(&header)?;
    write_all(name)
}

struct Copy<'a> {
    /// The path of the current file, ended by a NUL.
    path: [u8; MAX_PATH],
    scratch: &'a mut [u8],
}

impl Copy<'_> {
    fn begin(&mut self, path: &CStr) -> Option<usize> {
        join(&mut self.path, &[path.to_bytes()]).map(CStr::count_bytes)
    }

    fn fail(&self, path: &CStr, why: &[u8]) -> i32 {
        say_to(2, &[path.to_bytes(), b": ", why, b"\n"]);
        1
    }

    fn current(&self) -> &[u8] {
        CStr::from_bytes_until_nul(&self.path).map_or(b"", CStr::to_bytes)
    }

    fn c_path(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.path).unwrap_or_default()
    }

    /// Send what is at the path of `len` bytes, whose root's path has `root`, at most `depth` folders deep.
    fn send(&mut self, root: usize, len: usize, depth: usize) -> sys::Result<()> {
        // The root may be a link that the user has named.
        let stat = sys::stat(self.c_path(), false)?;
        let Some(kind) = kind_of(&stat) else {
            say_to(
                2,
                &[
                    self.current(),
                    b" is neither a file, a folder nor a link, and is not copied\n",
                ],
            );
            return if len == root {
                Err(sys::EINVAL)
            } else {
                Ok(())
            };
        };
        let name = self.path.get(root..len).unwrap_or_default();
        let name = name.strip_prefix(b"/").unwrap_or(name);
        match kind {
            FOLDER => {
                record(kind, &stat, 0, name)?;
                self.send_entries(root, len, depth)
            }
            LINK => {
                let path = CStr::from_bytes_until_nul(&self.path).unwrap_or_default();
                let size = sys::read_link(path, self.scratch)?;
                record(kind, &stat, size as u64, name)?;
                write_all(self.scratch.get(..size).unwrap_or_default())
            }
            _ => {
                let file = sys::open(
                    self.c_path(),
                    sys::O_RDONLY | sys::O_NOFOLLOW | sys::O_NONBLOCK,
                )?;
                record(kind, &stat, stat.size, name)?;
                let sent = self.send_content(file, stat.size);
                sys::close(file);
                sent
            }
        }
    }

    /// Exactly `size` bytes: a file that has become shorter ends with zeros.
    fn send_content(&mut self, file: Fd, mut size: u64) -> sys::Result<()> {
        while size > 0 {
            let most = size.min(self.scratch.len() as u64) as usize;
            let part = self.scratch.get_mut(..most).unwrap_or_default();
            let len = match sys::read(file, part)? {
                0 => {
                    part.fill(0);
                    most
                }
                len => len,
            };
            write_all(self.scratch.get(..len).unwrap_or_default())?;
            size -= len as u64;
        }
        Ok(())
    }

    fn send_entries(&mut self, root: usize, len: usize, depth: usize) -> sys::Result<()> {
        let depth = depth.checked_sub(1).ok_or(sys::ENAMETOOLONG)?;
        let folder = sys::open(self.c_path(), sys::O_DIRECTORY | sys::O_NOFOLLOW)?;
        let done = each_entry(folder, |name| {
            let child = self.push(len, name)?;
            self.send(root, child, depth)?;
            self.pop(len);
            Ok(())
        });
        sys::close(folder);
        done
    }

    /// Append `/name` to the path of `len` bytes; its new length.
    fn push(&mut self, len: usize, name: &[u8]) -> sys::Result<usize> {
        let space = self.path.get_mut(len..).unwrap_or_default();
        let joined = join(space, &[b"/", name]).ok_or(sys::ENAMETOOLONG)?;
        Ok(len + joined.count_bytes())
    }

    fn pop(&mut self, len: usize) {
        if let Some(end) = self.path.get_mut(len) {
            *end = 0;
        }
    }

    /// Make what the records on standard input describe, at the path of `root` bytes.
    fn receive(&mut self, root: usize, owned: bool) -> sys::Result<()> {
        loop {
            let mut header = [0; HEADER];
            read_exact(&mut header)?;
            let [kind, rest @ ..] = header;
            if kind == END {
                return Ok(());
            }
            let word = |at: usize| {
                let bytes = rest.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                u32::from_le_bytes(bytes.unwrap_or_default())
            };
            let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
            let stat = Stat {
                mode: word(0),
                uid: word(4),
                gid: word(8),
                mtime: long(12) as i64,
                size: long(20),
                device: 0,
            };
            let name_len = usize::from(u16::from_le_bytes([rest[28], rest[29]]));
            let mut name = [0; MAX_PATH];
            let name = name.get_mut(..name_len).ok_or(sys::ENAMETOOLONG)?;
            read_exact(name)?;
            self.pop(root);
            if !name.is_empty() {
                self.push(root, name)?;
            }
            self.make(kind, &stat)?;
            if kind != PARENT {
                self.finish(kind, &stat, owned)?;
            }
        }
    }

    fn make(&mut self, kind: u8, stat: &Stat) -> sys::Result<()> {
        match kind {
            FOLDER | PARENT => match sys::mkdir(self.c_path()) {
                Err(sys::EEXIST) => Ok(()),
                made => made.map(drop),
            },
            LINK => {
                let size = stat.size as usize;
                read_exact(self.scratch.get_mut(..size).ok_or(sys::ENAMETOOLONG)?)?;
                *self.scratch.get_mut(size).ok_or(sys::ENAMETOOLONG)? = 0;
                let _ = sys::unlink(self.c_path());
                let target = CStr::from_bytes_until_nul(self.scratch).unwrap_or_default();
                let path = CStr::from_bytes_until_nul(&self.path).unwrap_or_default();
                sys::symlink(target, path).map(drop)
            }
            FILE => {
                // Not written through a link, nor into a program that runs.
                let _ = sys::unlink(self.c_path());
                let file = sys::create(self.c_path(), 0o600)?;
                let written = self.fill(file, stat.size);
                sys::close(file);
                written
            }
            _ => Err(sys::EINVAL),
        }
    }

    fn fill(&mut self, file: Fd, mut size: u64) -> sys::Result<()> {
        while size > 0 {
            let most = size.min(self.scratch.len() as u64) as usize;
            let part = self.scratch.get_mut(..most).unwrap_or_default();
            let len = sys::read(STDIN, part)?;
            if len == 0 {
                return Err(sys::EINVAL);
            }
            let mut rest = self.scratch.get(..len).unwrap_or_default();
            while !rest.is_empty() {
                let written = sys::write(file, rest)?;
                rest = rest.get(written..).unwrap_or_default();
            }
            size -= len as u64;
        }
        Ok(())
    }

    /// Owner, mode and time, in this order: a new owner takes set-user-ID away.
    fn finish(&self, kind: u8, stat: &Stat, owned: bool) -> sys::Result<()> {
        let path = self.c_path();
        if owned {
            sys::give_link(path, stat.uid, stat.gid)?;
        }
        if kind != LINK {
            sys::chmod(path, stat.mode as usize)?;
        }
        sys::set_times(path, stat.mtime)
    }
}

fn read_exact(mut bytes: &mut [u8]) -> sys::Result<()> {
    while !bytes.is_empty() {
        match sys::read(STDIN, bytes)? {
            0 => return Err(sys::EINVAL),
            len => bytes = bytes.get_mut(len..).unwrap_or_default(),
        }
    }
    Ok(())
}
