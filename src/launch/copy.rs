//! Copies files between the host and a machine that runs: `hull cp`.
//!
//! The guest's end is a function of init's own (`guest/init/src/copy.rs`, which has the format). What it sends
//! is as hostile as the guest: nothing is made outside of the destination.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat,
    mkdirat, openat, openat2, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use thiserror::Error;

use super::exec::{Connection, ExecError, Stream, connect};
use crate::agent::Exec;
use crate::fleet::Found;

const HEADER: usize = 31;
/// Longest name, in bytes (PATH_MAX).
pub(super) const MAX_NAME: usize = 4096;
pub(super) const END: u8 = 0;
pub(super) const FILE: u8 = b'f';
pub(super) const FOLDER: u8 = b'd';
pub(super) const LINK: u8 = b'l';
pub(super) const MISSING: u8 = b'-';
/// To the guest: a folder that is made where it is missing, and left as it is otherwise.
pub(super) const PARENT: u8 = b'p';
/// Most folders of a tree.
pub(super) const MAX_FOLDERS: usize = 1 << 20;
/// Deepest folder.
pub(super) const MAX_DEPTH: usize = 200;

/// Why files are not copied.
#[derive(Debug, Error)]
pub enum CopyError {
    /// A file of the host's.
    #[error("{}", path.display())]
    Host {
        /// The file.
        path: PathBuf,
        /// What fails.
        source: io::Error,
    },
    /// The guest's end sent something that is none of it.
    #[error("the guest sent {what}; what was copied so far stays")]
    Foreign {
        /// It, as the end of a sentence.
        what: String,
    },
    /// The machine takes no command.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The guest's end says why.
    #[error("in the guest: {0}")]
    Guest(String),
    /// There is nothing at the source.
    #[error("there is nothing at {0}")]
    Missing(String),
    /// A destination ends in a slash and is none.
    #[error("there is no folder {0}; make it, or leave out the slash")]
    NoFolder(String),
    /// A folder cannot become a file.
    #[error("{0} is a file: a folder cannot be copied to it")]
    ToFile(String),
    /// An entry of an archive is not below its target.
    #[error("the archive has an entry {}, which would not be below the target", .0.display())]
    Outside(PathBuf),
    /// It is neither a file, a folder nor a link.
    #[error("{} is neither a file, a folder nor a link, and is not copied", path.display())]
    Special {
        /// The file.
        path: PathBuf,
    },
}

/// What a record says of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change, in seconds of Unix time.
    pub mtime: i64,
    /// Bytes of content.
    pub size: u64,
}

/// Copy `source` of the guest of `machine` to `target` on the host; with owners if `owned`. Returns what the
/// guest's end says of what was left out.
///
/// # Errors
/// The machine or a path is missing, a file cannot be read or written, or the guest breaks the protocol.
pub fn out_of(
    machine: &Found,
    source: &str,
    target: &str,
    owned: bool,
) -> Result<String, CopyError> {
    let kind = look(machine, source)?;
    let there = |path: &str| match fs::metadata(path) {
        Ok(it) if it.is_dir() => FOLDER,
        Ok(_) => FILE,
        Err(_) => MISSING,
    };
    let target = destination((source, kind), target, |path| Ok(there(path)))?;
    let mut stream = run(machine, "send", source)?;
    let received = receive(&mut stream, Path::new(&target), owned);
    end(stream, received).map(|((), said)| said)
}

/// Copy `source` of the host to `target` in the guest of `machine`; with owners if `owned`. Returns what was
/// left out.
///
/// # Errors
/// The machine or a path is missing, a file cannot be read or written, or the guest breaks the protocol.
pub fn into(
    machine: &Found,
    source: &str,
    target: &str,
    owned: bool,
) -> Result<Vec<PathBuf>, CopyError> {
    let about = fs::symlink_metadata(source).map_err(host(Path::new(source)))?;
    let kind = if about.is_dir() { FOLDER } else { FILE };
    let target = destination((source, kind), target, |path| look(machine, path))?;
    let function = if owned { "receive-owned" } else { "receive" };
    let mut stream = run(machine, function, &target)?;
    let sent = send(Path::new(source), &mut stream);
    end(stream, sent).map(|(left_out, _)| left_out)
}

/// Where the source becomes what, by docker's rules.
fn destination(
    (source, kind): (&str, u8),
    target: &str,
    mut look: impl FnMut(&str) -> Result<u8, CopyError>,
) -> Result<String, CopyError> {
    if kind == MISSING {
        return Err(CopyError::Missing(source.into()));
    }
    let folder = target.trim_end_matches('/');
    let folder = if folder.is_empty() { "/" } else { folder };
    match (look(if target.is_empty() { "." } else { folder })?, kind) {
        (FOLDER, FOLDER) if source.ends_with("/.") || source == "." => Ok(folder.into()),
        (FOLDER, _) => {
            let name = Path::new(source).file_name().unwrap_or_default();
            Ok(Path::new(folder).join(name).to_string_lossy().into_owned())
        }
        (MISSING, FOLDER) => Ok(folder.into()),
        (MISSING, _) if target.ends_with('/') => Err(CopyError::NoFolder(target.into())),
        (MISSING, _) => Ok(target.into()),
        (_, FOLDER) => Err(CopyError::ToFile(target.into())),
        (_, _) => Ok(target.into()),
    }
}

/// What is at a path of the guest.
pub(super) fn look(machine: &Found, path: &str) -> Result<u8, CopyError> {
    let mut stream = run(machine, "look", path)?;
    let mut kind = [0];
    let read = stream.read_exact(&mut kind);
    let read = read.map_err(|_| foreign("no answer"));
    end(stream, read)?;
    Ok(kind[0])
}

/// Run a function of init's own.
pub(super) fn run(machine: &Found, function: &str, path: &str) -> Result<Stream, CopyError> {
    let connection: Connection = connect(machine)?;
    // A relative path is one of the root folder, as docker has it.
    let path = Path::new("/").join(path.trim_end_matches("/."));
    let argv = ["init".into(), function.into(), path.into_os_string()];
    let exec = Exec {
        argv: argv.into(),
        own: true,
        ..Exec::default()
    };
    Ok(connection.stream(exec)?)
}

/// The result, and what the guest's end said; or why that has failed, which is the reason then.
pub(super) fn end<T>(
    stream: Stream,
    result: Result<T, CopyError>,
) -> Result<(T, String), CopyError> {
    match result {
        Ok(result) => match stream.finish()? {
            (Some(0), said) => Ok((result, said)),
            (_, said) if said.is_empty() => Err(foreign("no end; the machine may have ended")),
            (_, said) => Err(CopyError::Guest(said)),
        },
        Err(error) => match stream.reason()? {
            (Some(1..), said) if !said.is_empty() => Err(CopyError::Guest(said)),
            _ => Err(error),
        },
    }
}

pub(super) fn host(path: &Path) -> impl Fn(io::Error) -> CopyError + use<> {
    let path = path.to_path_buf();
    move |source| CopyError::Host {
        path: path.clone(),
        source,
    }
}

pub(super) fn foreign(what: impl Into<String>) -> CopyError {
    CopyError::Foreign { what: what.into() }
}

/// Write the tree at `root` as records to `out`. Returns what was left out.
///
/// # Errors
/// A file cannot be read, or the root is none that can be copied.
pub fn send(root: &Path, out: &mut impl Write) -> Result<Vec<PathBuf>, CopyError> {
    let mut left_out = Vec::new();
    send_tree(root, Path::new(""), out, MAX_DEPTH, &mut left_out)?;
    if left_out.first().is_some_and(|path| path == root) {
        return Err(CopyError::Special { path: root.into() });
    }
    record(END, &Attributes::default(), b"", out)
        .and_then(|()| out.flush())
        .map_err(host(root))?;
    Ok(left_out)
}

fn send_tree(
    root: &Path,
    name: &Path,
    out: &mut impl Write,
    depth: usize,
    left_out: &mut Vec<PathBuf>,
) -> Result<(), CopyError> {
    let path = if name.as_os_str().is_empty() {
        root.to_path_buf()
    } else {
        root.join(name)
    };
    let failed = host(&path);
    let about = fs::symlink_metadata(&path).map_err(&failed)?;
    let mut attributes = Attributes {
        mode: about.mode() & 0o7777,
        uid: about.uid(),
        gid: about.gid(),
        mtime: about.mtime(),
        size: 0,
    };
    let name_bytes = name.as_os_str().as_bytes();
    let kind = about.file_type();
    if kind.is_dir() {
        record(FOLDER, &attributes, name_bytes, out).map_err(&failed)?;
        let depth = depth.checked_sub(1);
        let depth = depth.ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
        for entry in fs::read_dir(&path).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            send_tree(root, &name.join(entry.file_name()), out, depth, left_out)?;
        }
    } else if kind.is_symlink() {
        let target = fs::read_link(&path)
            .map_err(&failed)?
            .into_os_string()
            .into_vec();
        attributes.size = target.len() as u64;
        record(LINK, &attributes, name_bytes, out).map_err(&failed)?;
        out.write_all(&target).map_err(&failed)?;
    } else if kind.is_file() {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(CWD, &path, flags, Mode::empty()).map_err(|it| failed(it.into()))?;
        attributes.size = about.len();
        record(FILE, &attributes, name_bytes, out).map_err(&failed)?;
        // A file that has become shorter ends with zeros.
        let content = File::from(file).chain(io::repeat(0)).take(about.len());
        io::copy(&mut { content }, out).map_err(&failed)?;
    } else {
        left_out.push(path);
    }
    Ok(())
}

pub(super) fn record(
    kind: u8,
    attributes: &Attributes,
    name: &[u8],
    out: &mut impl Write,
) -> io::Result<()> {
    let mut bytes = vec![kind];
    for word in [attributes.mode, attributes.uid, attributes.gid] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(attributes.mtime.to_le_bytes());
    bytes.extend(attributes.size.to_le_bytes());
    bytes.extend((name.len() as u16).to_le_bytes());
    bytes.extend(name);
    out.write_all(&bytes)
}

/// A record without its content.
pub(super) struct Record {
    pub kind: u8,
    pub attributes: Attributes,
    /// Relative, without `.` and `..`; empty for the root.
    pub name: PathBuf,
}

impl Record {
    /// The next one; `None` for the last.
    pub fn read(from: &mut impl Read) -> Result<Option<Self>, CopyError> {
        let cut = |_| foreign("no end of the files");
        let mut header = [0; HEADER];
        from.read_exact(&mut header).map_err(cut)?;
        let [kind, rest @ ..] = header;
        if kind == END {
            return Ok(None);
        }
        let word = |at: usize| {
            let bytes = rest.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            u32::from_le_bytes(bytes.unwrap_or_default())
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let len = usize::from(u16::from_le_bytes([rest[28], rest[29]]));
        if len > MAX_NAME || ![FILE, FOLDER, LINK].contains(&kind) {
            return Err(foreign("something that is no file"));
        }
        let mut name = vec![0; len];
        from.read_exact(&mut name).map_err(cut)?;
        let name = PathBuf::from(OsString::from_vec(name));
        let mut parts = name.components();
        let plain = parts.all(|part| matches!(part, Component::Normal(_)));
        // `components` hides some of `.` and `//`: a name of ours has none.
        let same = name.components().collect::<PathBuf>() == name;
        if !plain || !same || name.as_os_str().as_bytes().contains(&0) {
            return Err(foreign(format!("the name {name:?}")));
        }
        let attributes = Attributes {
            mode: word(0) & 0o7777,
            uid: word(4),
            gid: word(8),
            mtime: long(12) as i64,
            size: long(20),
        };
        Ok(Some(Self {
            kind,
            attributes,
            name,
        }))
    }

    /// The content of a link.
    pub fn target(&self, from: &mut impl Read) -> Result<PathBuf, CopyError> {
        if self.attributes.size >= MAX_NAME as u64 {
            return Err(foreign("a link that is too long"));
        }
        let mut target = vec![0; self.attributes.size as usize];
        from.read_exact(&mut target)
            .map_err(|_| foreign("no end of a link"))?;
        Ok(PathBuf::from(OsString::from_vec(target)))
    }
}

/// Make the files that the records of `from` describe, the root of which becomes `root`; with their owners if
/// `owned`.
///
/// # Errors
/// A file cannot be made, or the guest sent something else.
pub fn receive(from: &mut impl Read, root: &Path, owned: bool) -> Result<(), CopyError> {
    // Folders get their times and modes when nothing is made in them any more.
    let mut folders: Vec<(PathBuf, Attributes)> = Vec::new();
    let mut top: Option<OwnedFd> = None;
    let mut first = true;
    while let Some(record) = Record::read(from)? {
        let failed = host(&root.join(&record.name));
        let is_root = record.name.as_os_str().is_empty();
        // The root comes first, and only in a folder is there anything else.
        if is_root != std::mem::take(&mut first) || (!is_root && top.is_none()) {
            return Err(foreign("files in the wrong order"));
        }
        if folders.len() == MAX_FOLDERS {
            return Err(foreign(format!("more than {MAX_FOLDERS} folders")));
        }
        let (folder, name) = place(root, top.as_ref(), &record.name).map_err(&failed)?;
        make(&record, &folder, &name, from, &failed)?;
        let kind = record.kind;
        if kind == FOLDER && is_root {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = openat(&folder, &name, flags, Mode::empty());
            top = Some(opened.map_err(|it| failed(it.into()))?);
        }
        match kind {
            FOLDER => folders.push((record.name, record.attributes)),
            kind => finish(&folder, &name, &record.attributes, kind == FILE, owned)
                .map_err(|it| failed(it.into()))?,
        }
    }
    if first {
        return Err(foreign("nothing"));
    }
    for (name, attributes) in folders.iter().rev() {
        let failed = host(&root.join(name));
        let (folder, name) = place(root, top.as_ref(), name).map_err(&failed)?;
        finish(&folder, &name, attributes, true, owned).map_err(|it| failed(it.into()))?;
    }
    Ok(())
}

/// The folder in which `name` of the tree is, and its name there. The user has named `root`; below `top`, which
/// is that folder, there is no link on the way.
fn place(root: &Path, top: Option<&OwnedFd>, name: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let is_root = name.as_os_str().is_empty();
    let path = if is_root { root } else { name };
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    let above = above.unwrap_or(Path::new("."));
    let file = path.file_name().unwrap_or(".".as_ref());
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = match top.filter(|_| !is_root) {
        None => openat(CWD, above, flags, Mode::empty())?,
        Some(top) => inside(top, above)?,
    };
    Ok((folder, file.into()))
}

/// A folder below `top`, with no link on the way.
fn inside(top: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(top, path, flags, Mode::empty(), resolve)
}

fn make(
    record: &Record,
    folder: &OwnedFd,
    name: &Path,
    from: &mut impl Read,
    failed: &impl Fn(io::Error) -> CopyError,
) -> Result<(), CopyError> {
    let wrong = |errno: Errno| failed(errno.into());
    match record.kind {
        FOLDER => match mkdirat(folder, name, Mode::RWXU) {
            Ok(()) => Ok(()),
            // It must be a folder itself, and no link to one.
            Err(Errno::EXIST) => {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(folder, name, flags, Mode::empty())
                    .map(drop)
                    .map_err(wrong)
            }
            Err(errno) => Err(wrong(errno)),
        },
        LINK => {
            let target = record.target(from)?;
            replace(folder, name).map_err(wrong)?;
            symlinkat(target, folder, name).map_err(wrong)
        }
        _ => {
            replace(folder, name).map_err(wrong)?;
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(folder, name, flags, Mode::RUSR | Mode::WUSR).map_err(wrong)?;
            let size = record.attributes.size;
            let copied = io::copy(&mut from.take(size), &mut File::from(file)).map_err(failed)?;
            match copied == size {
                true => Ok(()),
                false => Err(foreign("no end of a file")),
            }
        }
    }
}

/// Remove the file `name`, if there is one: nothing is written through a link.
fn replace(folder: &OwnedFd, name: &Path) -> Result<(), Errno> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Owner, mode and time, in this order: a new owner takes set-user-ID away.
fn finish(
    folder: &OwnedFd,
    name: &Path,
    attributes: &Attributes,
    has_mode: bool,
    owned: bool,
) -> Result<(), Errno> {
    if owned {
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        chownat(
            folder,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    if has_mode {
        // Without its owner a set-user-ID program would run as the user of hull.
        let mode = if owned {
            attributes.mode
        } else {
            attributes.mode & 0o777
        };
        rustix::fs::chmodat(folder, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: attributes.mtime,
            tv_nsec: 0,
        },
    };
    utimensat(folder, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// The bytes of records.
    fn stream(records: &[(u8, &[u8], &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, name, content) in records {
            let attributes = Attributes {
                mode: 0o4755,
                size: content.len() as u64,
                ..Attributes::default()
            };
            record(*kind, &attributes, name, &mut bytes).expect("written");
            bytes.extend(*content);
        }
        record(END, &Attributes::default(), b"", &mut bytes).expect("written");
        bytes
    }

    #[test]
    fn a_tree_comes_back_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("a/empty")).expect("made");
        fs::write(from.join("a/file"), b"content").expect("written");
        fs::write(from.join("none"), b"").expect("written");
        symlink("../none", from.join("a/link")).expect("made");
        let mut bytes = Vec::new();
        assert_eq!(
            send(&from, &mut bytes).expect("sent"),
            Vec::<PathBuf>::new()
        );
        receive(&mut &bytes[..], &to, false).expect("received");
        assert_eq!(fs::read(to.join("a/file")).expect("there"), b"content");
        assert_eq!(fs::read(to.join("none")).expect("there"), b"");
        assert_eq!(
            fs::read_link(to.join("a/link")).expect("there"),
            Path::new("../none")
        );
        assert!(to.join("a/empty").is_dir());
        let time = |path: PathBuf| fs::symlink_metadata(path).expect("there").mtime();
        assert_eq!(time(from.join("a")), time(to.join("a")));
        // Again, over what is there.
        receive(&mut &bytes[..], &to, false).expect("received");
        for len in 0..bytes.len() {
            assert!(
                receive(&mut &bytes[..len], &to, false).is_err(),
                "cut at {len}"
            );
        }
    }

    #[test]
    fn nothing_is_made_outside_of_the_destination() {
        let folder = tempfile::tempdir().expect("a folder");
        let (to, outside) = (folder.path().join("to"), folder.path().join("outside"));
        fs::create_dir(&outside).expect("made");
        let file = (FILE, &b"x"[..], &b"content"[..]);
        let up = outside.as_os_str().as_bytes();
        let streams = [
            stream(&[(FOLDER, b"", b""), (FILE, b"../outside/x", b"c")]),
            stream(&[(FOLDER, b"", b""), (FILE, b"a/../../outside/x", b"c")]),
            stream(&[(FOLDER, b"", b""), (FILE, &[up, b"/x"].concat(), b"c")]),
            stream(&[(FOLDER, b"", b""), (LINK, b"l", up), (FILE, b"l/x", b"c")]),
            stream(&[
                (FOLDER, b"", b""),
                (LINK, b"l", b"../outside"),
                (FOLDER, b"l", b""),
            ]),
            stream(&[(LINK, b"", up), (FILE, b"x", b"c")]),
            stream(&[file]),
            stream(&[(FILE, b"", b"c"), file]),
            stream(&[(FOLDER, b"", b""), (FOLDER, b"", b"")]),
            stream(&[(b'p', b"", b"")]),
            stream(&[]),
        ];
        for (number, bytes) in streams.iter().enumerate() {
            assert!(
                receive(&mut &bytes[..], &to, false).is_err(),
                "stream {number}"
            );
            assert_eq!(
                fs::read_dir(&outside).expect("there").count(),
                0,
                "stream {number}"
            );
        }
        // A link that is there is replaced, and not written through.
        let _ = fs::remove_file(&to);
        let _ = fs::remove_dir_all(&to);
        fs::create_dir(&to).expect("made");
        fs::write(outside.join("x"), b"old").expect("written");
        symlink(outside.join("x"), to.join("x")).expect("made");
        receive(&mut &stream(&[(FOLDER, b"", b""), file])[..], &to, false).expect("received");
        assert_eq!(fs::read(outside.join("x")).expect("there"), b"old");
        let copied = fs::symlink_metadata(to.join("x")).expect("there");
        assert_eq!(
            copied.mode() & 0o7777,
            0o755,
            "no set-user-ID program of this user"
        );
    }
}
