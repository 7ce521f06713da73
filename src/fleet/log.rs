//! The log of a machine in the background: lines of JSON, as docker's driver json-file writes them, in files
//! that are rotated; or the system's journal.
//!
//! A line is written by one call, so that it is whole whatever process is killed.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The file of the newest lines.
const LOG: &str = "log";
/// Longest line that is written, in bytes; a longer one becomes several.
pub const MAX_LINE: usize = 16 << 10;
/// Longest line that is read, in bytes: a byte may be six characters there.
const MAX_READ: u64 = 1 << 20;
/// Most files of a log.
pub const MAX_FILES: u32 = 1000;
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Where a log goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// To files in the machine's folder.
    #[default]
    JsonFile,
    /// To the system's journal.
    Journald,
    /// Nowhere.
    None,
}

/// When files are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Largest size of a file in bytes; `None` for none.
    pub max_size: Option<u64>,
    /// Most files, 1 to [`MAX_FILES`].
    pub max_file: u32,
}

impl Default for Rotation {
    /// One file without a limit, as docker has it.
    fn default() -> Self {
        Self {
            max_size: None,
            max_file: 1,
        }
    }
}

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The text, with its line feed if it has one.
    pub log: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// When it was written, as RFC 3339 has it.
    pub time: String,
}

/// Writes a log.
pub struct LogWriter {
    to: To,
}

enum To {
    Files {
        folder: PathBuf,
        file: File,
        size: u64,
        rotation: Rotation,
    },
    Journal {
        socket: UnixDatagram,
        name: String,
    },
    Nowhere,
}

impl LogWriter {
    /// The log of the machine `name` in `folder`.
    ///
    /// # Errors
    /// The file cannot be opened, or there is no journal.
    pub fn open(folder: &Path, name: &str, driver: Driver, rotation: Rotation) -> io::Result<Self> {
        let to = match driver {
            Driver::None => To::Nowhere,
            Driver::Journald => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(JOURNAL)?;
                let name = name.into();
                To::Journal { socket, name }
            }
            Driver::JsonFile => {
                let file = newest(folder)?;
                let size = file.metadata()?.len();
                To::Files {
                    folder: folder.into(),
                    file,
                    size,
                    rotation,
                }
            }
        };
        Ok(Self { to })
    }

    /// Add the text of a line.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, stream: &str, text: &[u8]) -> io::Result<()> {
        match &mut self.to {
            To::Nowhere => Ok(()),
            To::Journal { socket, name } => {
                let priority = if stream == "stderr" { 3 } else { 6 };
                let text = String::from_utf8_lossy(text);
                let text = text.trim_end_matches('\n').replace('\n', " ");
                let entry = format!(
                    "PRIORITY={priority}\nSYSLOG_IDENTIFIER=hull\nCONTAINER_NAME={name}\nMESSAGE={text}\n"
                );
                socket.send(entry.as_bytes()).map(drop)
            }
            To::Files {
                folder,
                file,
                size,
                rotation,
            } => {
                let line = Line {
                    log: String::from_utf8_lossy(text).into_owned(),
                    stream: stream.into(),
                    time: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
                };
                let mut line = serde_json::to_vec(&line)?;
                line.push(b'\n');
                let full = rotation
                    .max_size
                    .is_some_and(|max| *size + line.len() as u64 > max);
                if full && *size > 0 {
                    rotate(folder, rotation.max_file)?;
                    (*file, *size) = (newest(folder)?, 0);
                }
                file.write_all(&line)?;
                *size += line.len() as u64;
                Ok(())
            }
        }
    }
}

fn newest(folder: &Path) -> io::Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(folder.join(LOG))
}

/// The name of the part that was rotated so often.
fn part(folder: &Path, age: u32) -> PathBuf {
    match age {
        0 => folder.join(LOG),
        age => folder.join(format!("{LOG}.{age}")),
    }
}

/// Make room for a new file: the oldest goes.
fn rotate(folder: &Path, max_file: u32) -> io::Result<()> {
    let oldest = max_file.clamp(1, MAX_FILES) - 1;
    match fs::remove_file(part(folder, oldest)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for age in (0..oldest).rev() {
        match fs::rename(part(folder, age), part(folder, age + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The files of a log that are there, the newest first. In the middle of a rotation there is none of that
/// name.
fn parts_of(folder: &Path) -> Vec<File> {
    let newest = File::open(part(folder, 0)).ok();
    let older = (1..MAX_FILES).map_while(|age| File::open(part(folder, age)).ok());
    newest.into_iter().chain(older).collect()
}

/// Reads the log of a machine, the oldest line first.
pub struct LogReader {
    folder: PathBuf,
    /// Parts that are not read yet, the next one last.
    parts: Vec<File>,
    now: Option<BufReader<File>>,
    /// The beginning of a line whose end is not there yet.
    begun: Vec<u8>,
}

impl LogReader {
    /// The log in `folder`.
    ///
    /// # Errors
    /// There is none.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let parts = parts_of(folder);
        match parts.is_empty() {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(Self {
                folder: folder.into(),
                parts,
                now: None,
                begun: Vec::new(),
            }),
        }
    }

    /// The next line; `None` if none is there yet. Lines that are not of a log are left out.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn next_line(&mut self) -> io::Result<Option<Line>> {
        loop {
            let file = match &mut self.now {
                Some(file) => file,
                None => match self.parts.pop() {
                    None => return Ok(None),
                    Some(part) => self.now.insert(BufReader::new(part)),
                },
            };
            let limit = MAX_READ.saturating_sub(self.begun.len() as u64);
            let read = io::Read::take(&mut *file, limit).read_until(b'\n', &mut self.begun)?;
            if self.begun.ends_with(b"\n") || (read > 0 && read as u64 == limit) {
                let line = std::mem::take(&mut self.begun);
                match serde_json::from_slice(&line) {
                    Ok(line) => return Ok(Some(line)),
                    Err(_) => continue,
                }
            }
            if read > 0 {
                continue;
            }
            if self.parts.is_empty() && !self.is_rotated()? {
                return Ok(None);
            }
            self.now = None;
        }
    }

    /// Whether there are newer files than the one that is read; then those are read next.
    fn is_rotated(&mut self) -> io::Result<bool> {
        let Some(file) = &self.now else {
            return Ok(false);
        };
        let read = file.get_ref().metadata()?.ino();
        let is_newer = |part: &File| part.metadata().is_ok_and(|it| it.ino() != read);
        let parts = parts_of(&self.folder).into_iter();
        self.parts = parts.take_while(is_newer).collect();
        Ok(!self.parts.is_empty())
    }

    /// The last `count` lines of those that are there.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn last(&mut self, count: usize) -> io::Result<VecDeque<Line>> {
        let mut last = VecDeque::new();
        while let Some(line) = self.next_line()? {
            last.push_back(line);
            if last.len() > count {
                last.pop_front();
            }
        }
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(reader: &mut LogReader) -> Vec<String> {
        let lines = std::iter::from_fn(|| reader.next_line().expect("read"));
        lines.map(|line| line.log).collect()
    }

    #[test]
    fn lines_come_back_across_rotations_and_the_oldest_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let rotation = Rotation {
            max_size: Some(300),
            max_file: 3,
        };
        let open = || LogWriter::open(folder.path(), "web", Driver::JsonFile, rotation);
        let mut log = open().expect("opened");
        log.add("stdout", b"0\n").expect("written");
        let mut reader = LogReader::open(folder.path()).expect("there");
        assert_eq!(texts(&mut reader), ["0\n"]);
        let mut all = Vec::new();
        for number in 1..20 {
            log.add("stderr", format!("{number}\n").as_bytes())
                .expect("written");
            all.push(format!("{number}\n"));
            if number == 10 {
                log = open().expect("opened again");
            }
            if number % 3 == 0 {
                let read = texts(&mut reader);
                assert_eq!(read, all, "a reader that follows misses nothing");
                all.clear();
            }
        }
        let mut reader = LogReader::open(folder.path()).expect("there");
        let kept = texts(&mut reader);
        assert_eq!(kept.last().map(String::as_str), Some("19\n"));
        assert!(kept.len() <= 12, "{kept:?}");
        let mut reader = LogReader::open(folder.path()).expect("there");
        let last = reader.last(2).expect("read");
        assert_eq!(
            last.iter().map(|line| &line.log[..]).collect::<Vec<_>>(),
            ["18\n", "19\n"]
        );
        let files = fs::read_dir(folder.path()).expect("there").count();
        assert_eq!(files, 3);
    }

    #[test]
    fn a_line_that_was_cut_by_a_kill_is_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(LOG);
        let whole = r#"{"log":"a\u0000\n","stream":"stdout","time":"t"}"#;
        fs::write(
            &path,
            format!("{{\"log\":\"cut\n{whole}\nnot JSON\n{whole}\n{{"),
        )
        .expect("written");
        let mut reader = LogReader::open(folder.path()).expect("there");
        assert_eq!(texts(&mut reader), ["a\0\n", "a\0\n"]);
    }
}
