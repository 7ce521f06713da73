//! `hull cp` with `-`: tar archives out of a machine and into it.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Builder, EntryType, Header};

use super::copy::{
    Attributes, CopyError, END, FILE, FOLDER, LINK, MAX_DEPTH, MAX_FOLDERS, MAX_NAME, MISSING,
    PARENT, Record, end, foreign, host, look, record, run,
};
use crate::fleet::Found;

/// Write `source` of the guest of `machine` to `out` as a tar archive. Returns what the guest's end says of what
/// was left out.
///
/// # Errors
/// The machine or a path is missing, a file cannot be read or written, or the guest breaks the protocol.
pub fn out_of(machine: &Found, source: &str, out: impl Write) -> Result<String, CopyError> {
    if look(machine, source)? == MISSING {
        return Err(CopyError::Missing(source.into()));
    }
    let mut stream = run(machine, "send", source)?;
    let name = match source.ends_with("/.") {
        true => None,
        false => Path::new(source).file_name(),
    };
    let written = write(&mut stream, Path::new(name.unwrap_or(".".as_ref())), out);
    end(stream, written).map(|((), said)| said)
}

/// Write the records of `from` as an archive, whose names begin with `base`.
fn write(from: &mut impl Read, base: &Path, out: impl Write) -> Result<(), CopyError> {
    let output = host(Path::new("-"));
    let mut builder = Builder::new(out);
    while let Some(record) = Record::read(from)? {
        let Attributes {
            mode,
            uid,
            gid,
            mtime,
            size,
        } = record.attributes;
        let mut header = Header::new_gnu();
        header.set_mode(mode);
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_mtime(mtime.max(0) as u64);
        header.set_size(0);
        let path = match record.name.as_os_str().is_empty() {
            true => base.to_path_buf(),
            false => base.join(&record.name),
        };
        match record.kind {
            FOLDER => {
                header.set_entry_type(EntryType::Directory);
                // With a slash at its end, as archives have it.
                builder.append_data(&mut header, path.join(""), io::empty())
            }
            LINK => {
                header.set_entry_type(EntryType::Symlink);
                let target = record.target(from)?;
                builder.append_link(&mut header, path, target)
            }
            _ => {
                header.set_size(size);
                let mut content = from.by_ref().take(size);
                let written = builder.append_data(&mut header, path, &mut content);
                if content.limit() > 0 && written.is_ok() {
                    return Err(foreign("no end of a file"));
                }
                written
            }
        }
        .map_err(&output)?;
    }
    let out = builder.into_inner();
    out.and_then(|mut out| out.flush()).map_err(&output)
}

/// Unpack the tar archive `from` into the folder `target` in the guest of `machine`; with owners if `owned`.
/// Returns what was left out.
///
/// # Errors
/// The machine or a path is missing, a file cannot be read or written, or the guest breaks the protocol.
pub fn into(
    machine: &Found,
    from: impl Read,
    target: &str,
    owned: bool,
) -> Result<Vec<PathBuf>, CopyError> {
    if look(machine, target)? != FOLDER {
        return Err(CopyError::NoFolder(target.into()));
    }
    let function = if owned { "receive-owned" } else { "receive" };
    let mut stream = run(machine, function, target)?;
    let sent = send(from, &mut stream);
    end(stream, sent).map(|(left_out, _)| left_out)
}

/// Write the entries of an archive as records. Returns what was left out.
fn send(from: impl Read, out: &mut impl Write) -> Result<Vec<PathBuf>, CopyError> {
    let input = host(Path::new("-"));
    let mut archive = Archive::new(from);
    let (mut left_out, mut folders) = (Vec::new(), BTreeSet::new());
    for entry in archive.entries().map_err(&input)? {
        let entry = entry.map_err(&input)?;
        let path = entry.path().map_err(&input)?.into_owned();
        let name = inner(&path)?;
        let header = entry.header();
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => FILE,
            EntryType::Directory => FOLDER,
            EntryType::Symlink => LINK,
            EntryType::XGlobalHeader => continue,
            _ => {
                left_out.push(path);
                continue;
            }
        };
        if name.as_os_str().is_empty() {
            continue;
        }
        let number = |number: io::Result<u64>| number.map_err(&input);
        let mut attributes = Attributes {
            mode: header.mode().map_err(&input)? & 0o7777,
            uid: number(header.uid())? as u32,
            gid: number(header.gid())? as u32,
            mtime: number(header.mtime())? as i64,
            size: 0,
        };
        make_parents(&name, &mut folders, out).map_err(&input)?;
        let target = match kind {
            LINK => entry.link_name_bytes().map(|target| target.into_owned()),
            _ => None,
        };
        attributes.size = match (&target, kind) {
            (Some(target), _) => target.len() as u64,
            (None, FILE) => entry.size(),
            _ => 0,
        };
        record(kind, &attributes, name.as_os_str().as_encoded_bytes(), out).map_err(&input)?;
        match target {
            Some(target) => out.write_all(&target).map_err(&input)?,
            None if kind == FILE => {
                let copied = io::copy(&mut entry.take(attributes.size), out).map_err(&input)?;
                if copied < attributes.size {
                    return Err(input(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            None => {
                folders.insert(name);
            }
        }
    }
    record(END, &Attributes::default(), b"", out)
        .and_then(|()| out.flush())
        .map_err(&input)?;
    Ok(left_out)
}

/// The path of an entry below the target.
fn inner(path: &Path) -> Result<PathBuf, CopyError> {
    let mut name = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => name.push(part),
            Component::CurDir | Component::RootDir => {}
            _ => return Err(CopyError::Outside(path.into())),
        }
    }
    let deep = name.components().count() > MAX_DEPTH;
    match deep || name.as_os_str().len() > MAX_NAME {
        true => Err(CopyError::Outside(path.into())),
        false => Ok(name),
    }
}

/// Have the folders made in which `name` is, where they are missing.
fn make_parents(
    name: &Path,
    folders: &mut BTreeSet<PathBuf>,
    out: &mut impl Write,
) -> io::Result<()> {
    let parents: Vec<&Path> = name.ancestors().skip(1).collect();
    for parent in parents.into_iter().rev() {
        if parent.as_os_str().is_empty() || folders.contains(parent) {
            continue;
        }
        if folders.len() >= MAX_FOLDERS {
            folders.clear();
        }
        folders.insert(parent.into());
        let bytes = parent.as_os_str().as_encoded_bytes();
        record(PARENT, &Attributes::default(), bytes, out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(EntryType, &str, &[u8])]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (kind, path, content) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o640);
            header.set_uid(7);
            header.set_gid(8);
            header.set_mtime(9);
            header.set_size(0);
            let added = match kind {
                EntryType::Symlink | EntryType::Link => {
                    builder.append_link(&mut header, path, str::from_utf8(content).expect("text"))
                }
                _ => {
                    header.set_size(content.len() as u64);
                    // As hostile archives have it.
                    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
                    header.set_cksum();
                    builder.append(&header, *content)
                }
            };
            added.expect("added");
        }
        builder.into_inner().expect("an archive")
    }

    #[test]
    fn an_archive_becomes_records_and_these_an_archive() {
        let bytes = archive(&[
            (EntryType::Regular, "./a/b/file", b"content"),
            (EntryType::Directory, "a/", b""),
            (EntryType::Symlink, "a/link", b"../target"),
            (EntryType::Link, "a/hard", b"a/b/file"),
            (EntryType::Fifo, "/fifo", b""),
        ]);
        let mut records = Vec::new();
        let left_out = send(&bytes[..], &mut records).expect("sent");
        assert_eq!(left_out, [PathBuf::from("a/hard"), PathBuf::from("/fifo")]);
        // What makes folders is the guest's alone.
        let parents = 2 * (31 + 1) + 2;
        let mut back = Vec::new();
        write(&mut &records[parents..], Path::new("base"), &mut back).expect("written");
        let mut archive = Archive::new(&back[..]);
        let mut seen = Vec::new();
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            let mut content = String::new();
            entry.read_to_string(&mut content).expect("read");
            let link = entry
                .link_name()
                .expect("a name")
                .map(|it| it.display().to_string());
            let header = entry.header();
            let numbers = (header.mode(), header.uid(), header.gid(), header.mtime());
            let numbers = (
                numbers.0.ok(),
                numbers.1.ok(),
                numbers.2.ok(),
                numbers.3.ok(),
            );
            assert_eq!(numbers, (Some(0o640), Some(7), Some(8), Some(9)));
            let path = entry.path().expect("a path").display().to_string();
            seen.push(format!("{path} {content}{}", link.unwrap_or_default()));
        }
        assert_eq!(
            seen,
            ["base/a/b/file content", "base/a/ ", "base/a/link ../target"]
        );
    }

    #[test]
    fn what_leads_out_or_is_cut_is_refused() {
        let up = archive(&[(EntryType::Regular, "a/../../x", b"c")]);
        assert!(matches!(
            send(&up[..], &mut Vec::new()),
            Err(CopyError::Outside(_))
        ));
        let cut = archive(&[(EntryType::Regular, "a", &[b'x'; 4000])]);
        assert!(send(&cut[..2000], &mut Vec::new()).is_err());
        assert!(send(&b"no archive"[..], &mut Vec::new()).is_err());
    }
}
