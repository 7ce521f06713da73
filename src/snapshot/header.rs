//! The file `state`: sections after a table (picture in `snapshot`). Encodes and decodes bytes, and
//! accesses no files.

use std::ops::Range;

/// The version of the format and of all payloads.
pub const VERSION: u32 = 4;

/// The name of a section.
pub type Tag = [u8; 4];

/// Largest `state` that is read or written, in bytes: more than all sections together have.
pub(super) const MAX_STATE: u64 = 16 << 20;
/// Most sections that a file may have.
pub(super) const MAX_SECTIONS: u32 = 4096;

const MAGIC: &[u8; 8] = b"HULLSNAP";
/// Bytes of magic, version and count.
const FIXED: usize = 16;
/// Bytes of an entry of the table.
const ENTRY: usize = 16;
/// Bytes of the CRC-32 after the table.
const CRC: usize = 4;

/// Why a file cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Foreign,
    Newer(u32),
    Older(u32),
    Truncated,
    /// The content is damaged: the part.
    Damaged(String),
}

/// A section of a file, and the range of its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub tag: Tag,
    pub payload: Range<usize>,
}

/// The file that holds `sections`.
pub(super) fn encode(sections: &[(Tag, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((sections.len() as u32).to_le_bytes());
    for (tag, payload) in sections {
        bytes.extend(tag);
        bytes.extend((payload.len() as u64).to_le_bytes());
        bytes.extend(crc32fast::hash(payload).to_le_bytes());
    }
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    sections
        .iter()
        .for_each(|(_, payload)| bytes.extend(payload));
    bytes
}

/// The sections of a file, after checking that all of it is intact.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Section>, Fault> {
    let magic = &bytes[..bytes.len().min(MAGIC.len())];
    if magic != &MAGIC[..magic.len()] {
        return Err(Fault::Foreign);
    }
    match number(bytes, 8).ok_or(Fault::Truncated)? {
        VERSION => {}
        version if version > VERSION => return Err(Fault::Newer(version)),
        version => return Err(Fault::Older(version)),
    }
    let count = number(bytes, 12).ok_or(Fault::Truncated)?;
    if count > MAX_SECTIONS {
        return Err(damaged("count of sections"));
    }
    let end = FIXED + count as usize * ENTRY;
    let crc = number(bytes, end).ok_or(Fault::Truncated)?;
    if crc != crc32fast::hash(&bytes[..end]) {
        return Err(damaged("table of sections"));
    }
    let mut sections: Vec<Section> = Vec::with_capacity(count as usize);
    let mut at = end + CRC;
    for entry in bytes[FIXED..end].as_chunks::<ENTRY>().0 {
        let [a, b, c, d, len @ .., _, _, _, _] = *entry;
        let tag = [a, b, c, d];
        let len = usize::try_from(u64::from_le_bytes(len)).unwrap_or(usize::MAX);
        let next = at.saturating_add(len);
        let payload = bytes.get(at..next).ok_or(Fault::Truncated)?;
        if number(entry, 12) != Some(crc32fast::hash(payload)) {
            return Err(damaged(&format!("section {}", name(tag))));
        }
        if sections.iter().any(|section| section.tag == tag) {
            return Err(damaged(&format!("two sections {}", name(tag))));
        }
        sections.push(Section {
            tag,
            payload: at..next,
        });
        at = next;
    }
    if at == bytes.len() {
        Ok(sections)
    } else {
        Err(damaged("data after its end"))
    }
}

/// `tag` as text, for messages.
pub(super) fn name(tag: Tag) -> String {
    tag.escape_ascii().to_string()
}

fn damaged(part: &str) -> Fault {
    Fault::Damaged(part.into())
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}
