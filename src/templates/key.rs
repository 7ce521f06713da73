//! The name of a template: a hash of all that it depends on.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

/// Bytes of a key: enough of a SHA-256 that no two templates share a key by accident.
const BYTES: usize = 16;
/// Changes of a file within this time may bear the same time: a tick of the kernel's clock is at most
/// 10 ms (HZ=100), and what is behind a network may have another clock.
const TICK: Duration = Duration::from_millis(100);
/// The same where times are whole seconds; FAT counts every other.
const COARSE_TICK: Duration = Duration::from_millis(2100);

/// The name of a template: a hash of what it depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; BYTES]);

impl Key {
    /// A builder for a key, with no part yet.
    #[allow(clippy::new_ret_no_self)] // a key is made of parts
    pub fn new() -> KeyBuilder {
        let mut hash = Sha256::new();
        hash.update(b"hull template 1");
        KeyBuilder {
            hash,
            settled: true,
        }
    }

    /// Parse a key: 32 hexadecimal digits in lower case.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: &[u8; 2 * BYTES] = text.as_bytes().try_into().ok()?;
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut key = [0; BYTES];
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(key))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What tells a file from another one, and from itself with another content.
pub(super) struct Identity {
    /// Its device and inode.
    inode: (u64, u64),
    /// Its size in bytes.
    pub bytes: u64,
    /// When its content was written: seconds and nanoseconds.
    written: (i64, i64),
    /// When it was changed in any way: seconds and nanoseconds.
    changed: (i64, i64),
}

impl Identity {
    /// The identity of an open file, if the host tells.
    pub fn of(file: &File) -> Option<Self> {
        let about = file.metadata().ok()?;
        Some(Self {
            inode: (about.dev(), about.ino()),
            bytes: about.len(),
            written: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        })
    }

    /// As bytes, which are the same for the same identity.
    pub fn to_bytes(&self) -> Vec<u8> {
        let numbers = [
            self.inode.0,
            self.inode.1,
            self.bytes,
            self.written.0 as u64,
            self.written.1 as u64,
            self.changed.0 as u64,
            self.changed.1 as u64,
        ];
        numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
    }
}

/// Hashes what a template depends on, part by part. Each part has a name and a length in the hash, so
/// that different lists of parts have different hashes.
#[derive(Clone)]
pub struct KeyBuilder {
    hash: Sha256,
    settled: bool,
}

impl KeyBuilder {
    /// Add `bytes` as the part `name`.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        for part in [name.as_bytes(), bytes] {
            self.hash.update((part.len() as u64).to_le_bytes());
            self.hash.update(part);
        }
        self
    }

    /// Add a file by its device, inode, size and times: reading it would take longer than the boot
    /// that a template saves.
    pub fn add_file(&mut self, name: &str, file: &File) -> &mut Self {
        let Some(identity) = Identity::of(file) else {
            self.settled = false;
            return self;
        };
        let (seconds, nanos) = identity.changed;
        self.settled &= settled(seconds, nanos, SystemTime::now());
        self.add(name, &identity.to_bytes())
    }

    /// The key; `None` if a file was changed so short ago that another change would not show in its
    /// times: then nothing must be kept of it.
    pub fn finish(&self) -> Option<Key> {
        let hash = self.hash.clone().finalize();
        let mut key = [0; BYTES];
        key.copy_from_slice(&hash[..BYTES]);
        let key = Key(key);
        log::debug!(
            "template key {key}; all its files are old enough: {}",
            self.settled
        );
        self.settled.then_some(key)
    }
}

/// Whether a change from `now` on would give the file another time of change.
fn settled(seconds: i64, nanos: i64, now: SystemTime) -> bool {
    let tick = if nanos == 0 { COARSE_TICK } else { TICK };
    let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let changed = UNIX_EPOCH.checked_add(seconds + Duration::from_nanos(nanos as u64));
    let age = changed.and_then(|changed| now.duration_since(changed).ok());
    age.is_some_and(|age| age > tick)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(parts: &[(&str, &str)]) -> Key {
        let mut key = Key::new();
        for (name, bytes) in parts {
            key.add(name, bytes.as_bytes());
        }
        key.finish().expect("no file in it")
    }

    #[test]
    fn parts_that_differ_make_keys_that_differ() {
        let lists: &[&[(&str, &str)]] = &[
            &[],
            &[("", "")],
            &[("", ""), ("", "")],
            &[("a", "b")],
            &[("ab", "")],
            &[("", "ab")],
            &[("a", "b"), ("c", "d")],
            &[("a", "bcd")],
            &[("a", "b\x01\0\0\0\0\0\0\0c")],
            &[("c", "d"), ("a", "b")],
        ];
        let keys: std::collections::BTreeSet<Key> = lists.iter().map(|list| key(list)).collect();
        assert_eq!(keys.len(), lists.len());
        assert_eq!(key(lists[6]), key(lists[6]));
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        let written = key(&[("a", "b")]).to_string();
        assert_eq!(written.len(), 32);
        assert_eq!(Key::parse(&written).expect("a key").to_string(), written);
        let long = format!("{written}0");
        let capital = "A".repeat(32);
        let wide = "é".repeat(16);
        for none in ["", "lock", &written[1..], &long, &capital, &wide] {
            assert_eq!(Key::parse(none), None, "{none}");
        }
    }

    #[test]
    fn a_file_that_was_just_changed_is_not_relied_on() {
        let file = tempfile::tempfile().expect("a file");
        assert_eq!(Key::new().add_file("kernel", &file).finish(), None);
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        assert!(!settled(1, 5, at(1_050)));
        assert!(settled(1, 5, at(1_200)));
        assert!(!settled(1, 0, at(3_000)), "whole seconds");
        assert!(settled(1, 0, at(3_200)));
        assert!(!settled(9, 5, at(1_000)), "of a time to come");
        assert!(settled(-9, 5, at(1_000)));
        assert!(!settled(i64::MAX, 999_999_999, at(1_000)));
    }

    #[test]
    fn a_file_is_known_by_more_than_its_name() {
        let old = |name: &str| File::open(name).expect("a file of the system");
        let of = |file: &File| Key::new().add_file("kernel", file).finish();
        let (a, b) = (old("/etc/passwd"), old("/etc/group"));
        assert_ne!(of(&a).expect("an old file"), of(&b).expect("an old file"));
        assert_eq!(of(&a), of(&old("/etc/passwd")));
    }
}
