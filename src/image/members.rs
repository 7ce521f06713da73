//! The files of an image on this host: a folder, or an archive that is not unpacked.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::tar::{self, Kind};
use crate::config::file::open;

/// Most members of an archive that hull looks at.
const MAX_MEMBERS: usize = 100_000;
/// Most links from one member to another.
const MAX_LINKS: usize = 8;

/// Files by their names.
pub enum Members {
    /// Those in a folder.
    Folder(PathBuf),
    /// Those in an archive.
    Archive(File, HashMap<String, Member>),
}

/// A file in an archive.
pub enum Member {
    /// First byte and length.
    Data(u64, u64),
    /// It is the same as this one.
    Link(String),
}

impl Members {
    /// Those of the plain tar archive in `file`.
    ///
    /// # Errors
    /// What is wrong with the archive.
    pub fn of_archive(file: File) -> Result<Self, String> {
        let mut members = HashMap::new();
        tar::walk(&file, |entry| {
            let name = clean(&String::from_utf8_lossy(&entry.path));
            let member = match entry.kind {
                Kind::File(data) if data.regions.is_none() => Member::Data(data.start, data.size),
                // Docker's old archives have layers that are links to those of another image.
                Kind::Symlink(text) => {
                    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                    let text = String::from_utf8_lossy(&text).into_owned();
                    Member::Link(clean(&format!("{folder}/{text}")))
                }
                Kind::HardLink(path) => Member::Link(clean(&String::from_utf8_lossy(&path))),
                _ => return Ok(()),
            };
            if members.len() >= MAX_MEMBERS {
                return Err(format!("the archive has more than {MAX_MEMBERS} members"));
            }
            members.insert(name, member);
            Ok(())
        })?;
        Ok(Self::Archive(file, members))
    }

    /// Whether there is a file of this name.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).is_file(),
            Self::Archive(_, members) => members.contains_key(name),
        }
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn read(&self, name: &str) -> Result<Box<dyn Read + '_>, String> {
        let (file, members) = match self {
            Self::Folder(folder) => {
                let file = open(&folder.join(name), u64::MAX);
                return Ok(Box::new(
                    file.map_err(|reason| format!("{name}: {reason}"))?,
                ));
            }
            Self::Archive(file, members) => (file, members),
        };
        let mut at = name;
        for _ in 0..MAX_LINKS {
            match members.get(at) {
                Some(Member::Link(next)) => at = next,
                Some(Member::Data(start, len)) => {
                    return Ok(Box::new(Section {
                        file,
                        at: *start,
                        end: start + len,
                    }));
                }
                None => break,
            }
        }
        Err(format!("{name} is not in it"))
    }

    /// All of a file of at most `most` bytes.
    ///
    /// # Errors
    /// As [`Members::read`], or it is larger.
    pub fn document(&self, name: &str, most: u64) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let read = self.read(name)?.take(most + 1).read_to_end(&mut bytes);
        read.map_err(|error| format!("{name}: {error}"))?;
        if bytes.len() as u64 > most {
            return Err(format!("{name} has more than {} MiB", most >> 20));
        }
        Ok(bytes)
    }
}

/// A path without `.`, `..` and slashes that say nothing.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A part of a file.
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = (self.end - self.at).min(into.len() as u64) as usize;
        let part = into.get_mut(..left).unwrap_or_default();
        let len = self.file.read_at(part, self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}
