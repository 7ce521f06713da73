//! The entries of a tar archive in a file, with the place of each one's data (POSIX pax; GNU and PAX sparse
//! files; long names). Nothing is unpacked.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ::tar::{EntryType, Header, PaxExtensions};

/// Bytes of a block.
pub const BLOCK: u64 = 512;
/// Most bytes of a long name or of a PAX header; Go's archive/tar, with which images are made, has the same.
const MAX_EXTENSION: u64 = 1 << 20;
/// Most regions of a sparse file.
const MAX_REGIONS: usize = 1 << 16;
/// Before the names of extended attributes in PAX headers.
const XATTR: &str = "SCHILY.xattr.";
/// Most bytes of an extended attribute's name and of its value, as Linux has it (XATTR_NAME_MAX, XATTR_SIZE_MAX).
const MAX_XATTR_NAME: usize = 255;
const MAX_XATTR_VALUE: usize = 65535;
/// Most bytes of all extended attributes of a file.
const MAX_XATTRS: usize = 128 << 10;

/// An entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path, as it is written.
    pub path: Vec<u8>,
    /// File, folder, link or device, with its data.
    pub kind: Kind,
    /// Owner, permissions, time and extended attributes.
    pub meta: Meta,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File(Data),
    /// A folder.
    Folder,
    /// A symbolic link with this text.
    Symlink(Vec<u8>),
    /// Another name of the file with this path.
    HardLink(Vec<u8>),
    /// A character device, major and minor.
    Character(u32, u32),
    /// A block device, major and minor.
    Block(u32, u32),
    /// A FIFO.
    Fifo,
}

/// The bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// Its size in bytes.
    pub size: u64,
    /// The byte of the archive at which they begin.
    pub start: u64,
    /// The parts that are there, if it has holes.
    pub regions: Option<Vec<Region>>,
}

/// A part of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its byte in the file.
    pub at: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Its byte in the archive.
    pub start: u64,
}

/// What all entries have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change: seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes: names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What stands before an entry and changes it.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

/// PAX keys of GNU tar's sparse formats 0.0, 0.1 and 1.0.
#[derive(Default)]
struct Sparse {
    major: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Offsets and lengths by turns.
    map: Option<Vec<u64>>,
}

/// Calls `found` with each entry of the archive in `file`; returns how many there are.
///
/// # Errors
/// What is wrong with the archive, or the error of `found`.
pub fn walk(file: &File, mut found: impl FnMut(Entry) -> Result<(), String>) -> Result<(), String> {
    let archive = Archive::new(file)?;
    let (mut at, mut next) = (0, Extended::default());
    let mut global = Extended::default();
    // Two blocks of zeroes end an archive; hull takes one, or the end of the file.
    while let Some(header) = archive.header(at)? {
        let kind = header.entry_type();
        let size = match kind.is_pax_global_extensions() || is_extension(kind) {
            true => None,
            false => next.size.or(global.size),
        };
        let size = match has_data(kind) {
            true => size.map_or_else(|| header.entry_size().map_err(|e| e.to_string()), Ok)?,
            false => 0,
        };
        let start = at + BLOCK;
        let end = start.checked_add(size).filter(|end| *end <= archive.len);
        let end = end.ok_or("an entry is longer than the archive; it was cut short")?;
        at = end.next_multiple_of(BLOCK);
        match kind {
            EntryType::GNULongName => next.path = Some(archive.text(start, size)?),
            EntryType::GNULongLink => next.link = Some(archive.text(start, size)?),
            EntryType::XHeader => next.read(&archive.extension(start, size)?)?,
            EntryType::XGlobalHeader => global.read(&archive.extension(start, size)?)?,
            _ => {
                let extended = std::mem::take(&mut next).over(&global);
                let (entry, skipped) = archive.entry(&header, extended, start, size)?;
                at += skipped;
                if let Some(entry) = entry {
                    found(entry)?;
                }
            }
        }
    }
    Ok(())
}

fn is_extension(kind: EntryType) -> bool {
    kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions()
}

/// Whether data follows a header: links, folders and devices have none, whatever size they name.
fn has_data(kind: EntryType) -> bool {
    !matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Directory
            | EntryType::Char
            | EntryType::Block
            | EntryType::Fifo
    )
}

struct Archive<'a> {
    file: &'a File,
    len: u64,
}

impl<'a> Archive<'a> {
    fn new(file: &'a File) -> Result<Self, String> {
        let len = file.metadata().map_err(|error| error.to_string())?.len();
        Ok(Self { file, len })
    }

    fn bytes<const N: usize>(&self, at: u64) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        let read = self.file.read_exact_at(&mut bytes, at);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "the archive was cut short".into(),
            _ => error.to_string(),
        })?;
        Ok(bytes)
    }

    /// The header at `at`; `None` at the end of the archive.
    fn header(&self, at: u64) -> Result<Option<Header>, String> {
        if at >= self.len {
            return Ok(None);
        }
        let bytes: [u8; BLOCK as usize] = self.bytes(at)?;
        if bytes == [0; BLOCK as usize] {
            return Ok(None);
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&bytes);
        // The sum with its own field as blanks (POSIX ustar).
        let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
        let field: u32 = bytes[148..156].iter().map(|byte| u32::from(*byte)).sum();
        match header.cksum() {
            Ok(told) if told == sum - field + 8 * 32 => Ok(Some(header)),
            _ => Err(format!("there is no header of tar at byte {at}")),
        }
    }

    fn extension(&self, start: u64, size: u64) -> Result<Vec<u8>, String> {
        if size > MAX_EXTENSION {
            return Err("a long name or PAX header has more than 1 MiB".into());
        }
        let mut bytes = vec![0; size as usize];
        let read = self.file.read_exact_at(&mut bytes, start);
        read.map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// A name up to its NUL.
    fn text(&self, start: u64, size: u64) -> Result<Vec<u8>, String> {
        let mut text = self.extension(start, size)?;
        let end = text.iter().position(|byte| *byte == 0);
        text.truncate(end.unwrap_or(text.len()));
        Ok(text)
    }

    /// The entry, `None` for a kind that is left out, and how many bytes of the archive follow its data.
    fn entry(
        &self,
        header: &Header,
        mut extended: Extended,
        start: u64,
        size: u64,
    ) -> Result<(Option<Entry>, u64), String> {
        let meta = meta(header, &mut extended)?;
        let path = extended.sparse.name.take().or(extended.path.take());
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = || {
            let own = || header.link_name_bytes().map(|link| link.into_owned());
            extended.link.clone().or_else(own).unwrap_or_default()
        };
        let device = || {
            // Some programs leave the fields blank.
            let major = header.device_major().ok().flatten().unwrap_or(0);
            (major, header.device_minor().ok().flatten().unwrap_or(0))
        };
        let mut skipped = 0;
        let kind = match header.entry_type() {
            // A name with a slash at its end is an old folder.
            EntryType::Regular if path.ends_with(b"/") => Kind::Folder,
            EntryType::GNUSparse => {
                let (data, blocks) = self.gnu_sparse(header, start, size)?;
                skipped = blocks;
                Kind::File(data)
            }
            EntryType::Regular | EntryType::Continuous => {
                Kind::File(self.data(&extended.sparse, start, size)?)
            }
            EntryType::Directory => Kind::Folder,
            EntryType::Symlink => Kind::Symlink(link()),
            EntryType::Link => Kind::HardLink(link()),
            EntryType::Char => {
                let (major, minor) = device();
                Kind::Character(major, minor)
            }
            EntryType::Block => {
                let (major, minor) = device();
                Kind::Block(major, minor)
            }
            EntryType::Fifo => Kind::Fifo,
            other => {
                log::debug!("an entry of type {:#04x} is left out", other.as_byte());
                return Ok((None, 0));
            }
        };
        Ok((Some(Entry { path, kind, meta }), skipped))
    }

    /// The data of a file that may be sparse by its PAX keys.
    fn data(&self, sparse: &Sparse, start: u64, size: u64) -> Result<Data, String> {
        let plain = Data {
            size,
            start,
            regions: None,
        };
        let (map, data) = match (&sparse.map, sparse.major) {
            (Some(map), _) => (map.clone(), start),
            (None, Some(1)) => self.map_in_data(start, size)?,
            (None, _) => return Ok(plain),
        };
        let total = sparse.size.ok_or("a sparse file has no size")?;
        let pairs = map.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        regions(pairs, total, data, start + size)
    }

    /// The map of format 1.0, which stands before the data: numbers in lines, filled up to a block.
    fn map_in_data(&self, start: u64, size: u64) -> Result<(Vec<u64>, u64), String> {
        let wrong = "the map of a sparse file cannot be read";
        let head = self.extension(start, size.min(MAX_EXTENSION))?;
        let (mut lines, mut numbers, mut used) = (head.split_inclusive(|b| *b == b'\n'), vec![], 0);
        let mut number = || {
            let line = lines.next()?;
            used += line.len() as u64;
            let digits = line.strip_suffix(b"\n")?;
            std::str::from_utf8(digits).ok()?.parse::<u64>().ok()
        };
        let count = number().filter(|count| *count <= MAX_REGIONS as u64);
        for _ in 0..2 * count.ok_or(wrong)? {
            numbers.push(number().ok_or(wrong)?);
        }
        Ok((numbers, start + used.next_multiple_of(BLOCK)))
    }

    /// A sparse file of GNU tar's old format, and the bytes of its further headers, which stand before its
    /// data; [`walk`] does not count them.
    fn gnu_sparse(&self, header: &Header, start: u64, size: u64) -> Result<(Data, u64), String> {
        let wrong = || String::from("the map of a sparse file cannot be read");
        let gnu = header.as_gnu().ok_or_else(wrong)?;
        let (mut pairs, mut blocks) = (Vec::new(), 0);
        let mut add = |entries: &[::tar::GnuSparseHeader]| {
            for entry in entries.iter().filter(|entry| !entry.is_empty()) {
                let offset = entry.offset().map_err(|_| wrong())?;
                pairs.push((offset, entry.length().map_err(|_| wrong())?));
            }
            if pairs.len() > MAX_REGIONS {
                return Err(wrong());
            }
            Ok(())
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let bytes: [u8; BLOCK as usize] = self.bytes(start + blocks)?;
            let mut next = ::tar::GnuExtSparseHeader::new();
            next.as_mut_bytes().copy_from_slice(&bytes);
            add(&next.sparse)?;
            more = next.is_extended();
            blocks += BLOCK;
        }
        let total = gnu.real_size().map_err(|_| wrong())?;
        let end = (start + blocks).checked_add(size);
        let end = end.filter(|end| *end <= self.len).ok_or_else(wrong)?;
        Ok((
            regions(pairs.into_iter(), total, start + blocks, end)?,
            blocks,
        ))
    }
}

/// The regions at `pairs` of offsets and lengths, whose data follows each other from `data` on.
fn regions(
    pairs: impl Iterator<Item = (u64, u64)>,
    size: u64,
    data: u64,
    end: u64,
) -> Result<Data, String> {
    let (mut regions, mut start, mut last) = (Vec::new(), data, 0);
    for (at, len) in pairs {
        let next = start.checked_add(len).filter(|next| *next <= end);
        let behind = at.checked_add(len).filter(|behind| *behind <= size);
        let (Some(next), Some(behind), true) = (next, behind, at >= last) else {
            return Err("the map of a sparse file does not fit its data".into());
        };
        if len > 0 {
            regions.push(Region { at, len, start });
        }
        (start, last) = (next, behind);
    }
    Ok(Data {
        size,
        start: data,
        regions: Some(regions),
    })
}

fn meta(header: &Header, extended: &mut Extended) -> Result<Meta, String> {
    let text = |error: io::Error| error.to_string();
    let id = |given: Option<u64>, own: io::Result<u64>| -> Result<u32, String> {
        let id = given.map_or_else(|| own.map_err(text), Ok)?;
        u32::try_from(id).map_err(|_| format!("{id} is no user or group of Linux"))
    };
    let seconds = header.mtime().map_err(text)?;
    Ok(Meta {
        mode: (header.mode().map_err(text)? & 0o7777) as u16,
        uid: id(extended.uid, header.uid())?,
        gid: id(extended.gid, header.gid())?,
        mtime: extended.mtime.unwrap_or((seconds as i64, 0)),
        xattrs: std::mem::take(&mut extended.xattrs),
    })
}

impl Extended {
    /// Take the keys of a PAX header.
    fn read(&mut self, bytes: &[u8]) -> Result<(), String> {
        for pair in PaxExtensions::new(bytes) {
            let pair = pair.map_err(|error| error.to_string())?;
            let value = pair.value_bytes();
            let Ok(key) = pair.key() else {
                continue;
            };
            let number = || -> Result<u64, String> {
                let number = std::str::from_utf8(value)
                    .ok()
                    .and_then(|it| it.parse().ok());
                number.ok_or_else(|| format!("PAX key {key} is no number"))
            };
            match key {
                "path" => self.path = Some(value.into()),
                "linkpath" => self.link = Some(value.into()),
                "size" => self.size = Some(number()?),
                "uid" => self.uid = Some(number()?),
                "gid" => self.gid = Some(number()?),
                "mtime" => self.mtime = Some(time(value)?),
                "GNU.sparse.major" => self.sparse.major = Some(number()?),
                "GNU.sparse.name" => self.sparse.name = Some(value.into()),
                "GNU.sparse.size" | "GNU.sparse.realsize" => self.sparse.size = Some(number()?),
                "GNU.sparse.map" => self.sparse.map = Some(map(value)?),
                "GNU.sparse.offset" | "GNU.sparse.numbytes" => {
                    let map = self.sparse.map.get_or_insert_default();
                    map.push(number()?);
                    if map.len() > 2 * MAX_REGIONS {
                        return Err("a sparse file has too many parts".into());
                    }
                }
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        self.set_xattr(name.as_bytes(), value)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        if !(1..=MAX_XATTR_NAME).contains(&name.len()) || value.len() > MAX_XATTR_VALUE {
            return Err("an extended attribute is larger than Linux has any".into());
        }
        self.xattrs.retain(|(other, _)| other != name);
        self.xattrs.push((name.into(), value.into()));
        let all = self
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len());
        if all.sum::<usize>() > MAX_XATTRS {
            return Err("a file has more than 128 KiB of extended attributes".into());
        }
        Ok(())
    }

    /// What this leaves open is as `global` says.
    fn over(mut self, global: &Self) -> Self {
        self.path = self.path.or_else(|| global.path.clone());
        self.link = self.link.or_else(|| global.link.clone());
        self.uid = self.uid.or(global.uid);
        self.gid = self.gid.or(global.gid);
        self.mtime = self.mtime.or(global.mtime);
        self
    }
}

/// `OFFSET,LENGTH,OFFSET,LENGTH..`.
fn map(value: &[u8]) -> Result<Vec<u64>, String> {
    let wrong = || String::from("the map of a sparse file cannot be read");
    let text = std::str::from_utf8(value).map_err(|_| wrong())?;
    let numbers: Result<Vec<u64>, _> = text.split(',').map(str::parse).collect();
    numbers
        .ok()
        .filter(|it| it.len() % 2 == 0 && it.len() <= 2 * MAX_REGIONS)
        .ok_or_else(wrong)
}

/// `SECONDS[.FRACTION]`.
fn time(value: &[u8]) -> Result<(i64, u32), String> {
    let wrong = || String::from("PAX key mtime is no time");
    let text = std::str::from_utf8(value).map_err(|_| wrong())?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = seconds.parse().map_err(|_| wrong())?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = digits.parse().map_err(|_| wrong())?;
    // Before 1970 the fraction counts down, and Linux counts up.
    Ok(match seconds.starts_with('-') && nanos > 0 {
        true => (whole.saturating_sub(1), 1_000_000_000 - nanos),
        false => (whole, nanos),
    })
}
