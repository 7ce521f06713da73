//! Reads the files of an EROFS, as far as hull writes it.

use std::collections::BTreeMap;

/// A file that was found.
#[derive(Debug)]
pub struct Found {
    pub inode: u64,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (u64, u32),
    pub links: u32,
    pub content: Vec<u8>,
    /// Number of the prefix and rest of the name; value.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Found {
    /// Kind and content in a word.
    pub fn what(&self) -> String {
        match self.mode & 0o170_000 {
            0o040_000 => "folder".into(),
            0o120_000 => format!("link {}", String::from_utf8_lossy(&self.content)),
            _ => format!("file {}", self.content.first().unwrap_or(&0)),
        }
    }
}

fn u16_at(disk: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(disk[at..at + 2].try_into().expect("2 bytes"))
}

fn u32_at(disk: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(disk[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(disk: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(disk[at..at + 8].try_into().expect("8 bytes"))
}

/// All files by their paths, without the root.
pub fn read(disk: &[u8]) -> BTreeMap<String, Found> {
    assert_eq!(u32_at(disk, 1024), 0xe0f5_e1e2);
    assert_eq!(disk[1024 + 12], 9, "blocks of 512 bytes");
    let root = u64::from(u16_at(disk, 1024 + 14));
    let mut all = BTreeMap::new();
    let mut left = vec![(String::new(), root)];
    while let Some((path, nid)) = left.pop() {
        let found = inode(disk, nid);
        if found.mode & 0o170_000 == 0o040_000 {
            let names = names(&found.content);
            assert!(names.is_sorted_by_key(|(name, _)| name.clone()), "{path}");
            let folders = names.iter().filter(|(name, _)| name == "." || name == "..");
            assert_eq!(folders.count(), 2, "{path}");
            assert_eq!(
                names.iter().find(|it| it.0 == ".").map(|it| it.1),
                Some(nid)
            );
            for (name, nid) in names {
                if name != "." && name != ".." {
                    let slash = if path.is_empty() { "" } else { "/" };
                    left.push((format!("{path}{slash}{name}"), nid));
                }
            }
        }
        if !path.is_empty() {
            all.insert(path, found);
        }
    }
    all
}

fn inode(disk: &[u8], nid: u64) -> Found {
    let at = nid as usize * 32;
    let format = u16_at(disk, at);
    assert_eq!(format & 1, 1, "an extended inode");
    let size = u64_at(disk, at + 8) as usize;
    let mode = u16_at(disk, at + 4);
    let value = u32_at(disk, at + 16) as usize;
    let count = usize::from(u16_at(disk, at + 2));
    let xattrs = if count == 0 { 0 } else { 12 + 4 * (count - 1) };
    let start = match format >> 1 {
        0 => value * 512,
        2 => {
            let start = at + 64 + xattrs;
            assert!(start % 512 + size <= 512, "within a block");
            start
        }
        other => panic!("layout {other}"),
    };
    let has_content = matches!(mode & 0o170_000, 0o040_000 | 0o100_000 | 0o120_000);
    let content = if has_content {
        disk[start..start + size].to_vec()
    } else {
        Vec::new()
    };
    Found {
        inode: nid,
        mode,
        uid: u32_at(disk, at + 24),
        gid: u32_at(disk, at + 28),
        mtime: (u64_at(disk, at + 32), u32_at(disk, at + 40)),
        links: u32_at(disk, at + 44),
        content,
        xattrs: attributes(&disk[at + 64..at + 64 + xattrs]),
    }
}

fn attributes(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let (mut at, mut found) = (12, Vec::new());
    while at + 4 <= bytes.len() {
        let (name, value) = (usize::from(bytes[at]), usize::from(u16_at(bytes, at + 2)));
        let text = String::from_utf8_lossy(&bytes[at + 4..at + 4 + name]);
        let start = at + 4 + name;
        found.push((
            format!("{}:{text}", bytes[at + 1]),
            bytes[start..start + value].to_vec(),
        ));
        at = (start + value).next_multiple_of(4);
    }
    found
}

fn names(bytes: &[u8]) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for block in bytes.chunks(512) {
        let count = usize::from(u16_at(block, 8)) / 12;
        for index in 0..count {
            let start = usize::from(u16_at(block, 12 * index + 8));
            let end = match index + 1 < count {
                true => usize::from(u16_at(block, 12 * (index + 1) + 8)),
                false => block[start..]
                    .iter()
                    .position(|b| *b == 0)
                    .map_or(block.len(), |end| start + end),
            };
            // A character for each byte: names have any bytes, and keep their order.
            let name = block[start..end]
                .iter()
                .map(|byte| char::from(*byte))
                .collect();
            found.push((name, u64_at(block, 12 * index)));
        }
    }
    found
}
