//! The files of an image: its layers, one over the other (OCI image specification, layer.md).
//!
//! All paths are resolved in here. A symbolic link in a path is followed within the tree, as the engines do
//! in a changed root; nothing of the host's file system is looked at.

use std::collections::BTreeMap;

use super::tar::{Data, Entry, Kind, Meta};

/// The beginning of the name of a file that says which one of the layers below is gone.
const WHITEOUT: &[u8] = b".wh.";
/// The rest of the name that says that a folder has nothing of the layers below.
const OPAQUE: &[u8] = b".wh..opq";
/// Most symbolic links in one path, as Linux has it (MAXSYMLINKS).
const MAX_LINKS: usize = 40;
/// Longest path and name in bytes (PATH_MAX, NAME_MAX).
const MAX_PATH: usize = 4096;
const MAX_NAME: usize = 255;
/// Most entries of all layers together.
pub const MAX_ENTRIES: usize = 1_000_000;

/// The root's number.
pub const ROOT: usize = 0;

/// The merged files of all layers so far.
pub struct Tree {
    nodes: Vec<Node>,
    layers: usize,
    entries: usize,
}

/// A file, under one name or several.
#[derive(Debug)]
pub struct Node {
    /// Owner, permissions, time and extended attributes.
    pub meta: Meta,
    /// File, folder, link or device, with its content.
    pub what: What,
}

/// What a file is.
#[derive(Debug)]
pub enum What {
    /// A folder with these names.
    Folder(BTreeMap<Vec<u8>, usize>),
    /// A regular file, whose data is in this layer.
    File(usize, Data),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A character device, major and minor.
    Character(u32, u32),
    /// A block device, major and minor.
    Block(u32, u32),
    /// A FIFO.
    Fifo,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            nodes: vec![folder(Meta {
                mode: 0o755,
                ..Meta::default()
            })],
            layers: 0,
            entries: 0,
        }
    }
}

fn folder(meta: Meta) -> Node {
    Node {
        meta,
        what: What::Folder(BTreeMap::new()),
    }
}

/// The entries of one layer, as they come.
pub struct Layer<'a> {
    tree: &'a mut Tree,
    entries: Vec<(Vec<Vec<u8>>, Entry)>,
}

impl Layer<'_> {
    /// Add an entry.
    ///
    /// # Errors
    /// It has a path that leads out of the image, or there are too many.
    pub fn add(&mut self, entry: Entry) -> Result<(), String> {
        self.tree.entries += 1;
        if self.tree.entries > MAX_ENTRIES {
            return Err(format!(
                "the image has more than {MAX_ENTRIES} files, which hull does not take"
            ));
        }
        let path = components(&entry.path)?;
        self.entries.push((path, entry));
        Ok(())
    }

    /// Put the layer over those before it: first what it takes away, then what it has, in whatever order
    /// the archive has them.
    ///
    /// # Errors
    /// An entry that cannot be where it says.
    pub fn finish(mut self) -> Result<(), String> {
        let layer = self.tree.layers;
        self.tree.layers += 1;
        let is_whiteout = |path: &[Vec<u8>]| {
            let last = path.last();
            last.is_some_and(|name| name.starts_with(WHITEOUT))
        };
        let (gone, here): (Vec<_>, Vec<_>) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(|(path, _)| is_whiteout(path));
        for (path, entry) in &gone {
            let removed = self.tree.take_away(path);
            removed.map_err(|reason| format!("{}: {reason}", show(&entry.path)))?;
        }
        for (path, entry) in here {
            let name = show(&entry.path);
            let added = self.tree.put(layer, &path, entry);
            added.map_err(|reason| format!("{name}: {reason}"))?;
        }
        Ok(())
    }
}

impl Tree {
    /// Begin the next layer.
    pub fn layer(&mut self) -> Layer<'_> {
        Layer {
            tree: self,
            entries: Vec::new(),
        }
    }

    /// A file by its number.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number]
    }

    /// How many numbers there are; a file that was replaced still has its own.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    fn children(&mut self, number: usize) -> Result<&mut BTreeMap<Vec<u8>, usize>, String> {
        match &mut self.nodes[number].what {
            What::Folder(children) => Ok(children),
            _ => Err("its path leads through a file that is no folder".into()),
        }
    }

    /// Do what the whiteout `path` says.
    fn take_away(&mut self, path: &[Vec<u8>]) -> Result<(), String> {
        let Some((last, parents)) = path.split_last() else {
            return Ok(());
        };
        let Some(parent) = self.find(parents)? else {
            return Ok(()); // of a folder that is not there
        };
        let What::Folder(children) = &mut self.nodes[parent].what else {
            return Ok(());
        };
        let gone = last.strip_prefix(WHITEOUT).unwrap_or_default();
        if gone == OPAQUE {
            children.clear();
        } else if !gone.starts_with(WHITEOUT) {
            children.remove(gone);
        }
        Ok(())
    }

    /// Put an entry at `path`.
    fn put(&mut self, layer: usize, path: &[Vec<u8>], entry: Entry) -> Result<(), String> {
        let Entry { kind, meta, .. } = entry;
        let Some((name, parents)) = path.split_last() else {
            // The root itself.
            if kind == Kind::Folder {
                self.nodes[ROOT].meta = meta;
                return Ok(());
            }
            return Err("the root must be a folder".into());
        };
        let what = match kind {
            Kind::HardLink(target) => {
                let target = components(&target)?;
                let found = match target.split_last() {
                    Some((last, above)) => self.child(above, last)?,
                    None => None,
                };
                let found = found.ok_or("the file of which it is another name is not there")?;
                if matches!(self.nodes[found].what, What::Folder(_)) {
                    return Err("it is another name of a folder, which only has one".into());
                }
                let parent = self.make(parents)?;
                self.children(parent)?.insert(name.clone(), found);
                return Ok(());
            }
            Kind::Folder => What::Folder(BTreeMap::new()),
            Kind::File(data) => What::File(layer, data),
            Kind::Symlink(text) if (1..MAX_PATH).contains(&text.len()) && !text.contains(&0) => {
                What::Symlink(text)
            }
            Kind::Symlink(_) => return Err("the text of a link has 1 to 4095 bytes".into()),
            Kind::Character(major, minor) => What::Character(major, minor),
            Kind::Block(major, minor) => What::Block(major, minor),
            Kind::Fifo => What::Fifo,
        };
        let parent = self.make(parents)?;
        let there = self.children(parent)?.get(name).copied();
        // A folder stays the one that it is, with what is in it.
        if let (Some(number), What::Folder(_)) = (there, &what)
            && matches!(self.nodes[number].what, What::Folder(_))
        {
            self.nodes[number].meta = meta;
            return Ok(());
        }
        let number = self.nodes.len();
        self.nodes.push(Node { meta, what });
        self.children(parent)?.insert(name.clone(), number);
        Ok(())
    }

    /// The file `name` in the folder at `parents`, not followed if it is a link.
    fn child(&mut self, parents: &[Vec<u8>], name: &[u8]) -> Result<Option<usize>, String> {
        let Some(parent) = self.find(parents)? else {
            return Ok(None);
        };
        Ok(self.children(parent)?.get(name).copied())
    }

    /// The folder at `path`, links followed.
    fn find(&mut self, path: &[Vec<u8>]) -> Result<Option<usize>, String> {
        self.resolve(path, false)
    }

    /// The folder at `path`, links followed and what is missing made.
    fn make(&mut self, path: &[Vec<u8>]) -> Result<usize, String> {
        let made = self.resolve(path, true)?;
        made.ok_or_else(|| "its folder cannot be made".into())
    }

    fn resolve(&mut self, path: &[Vec<u8>], make: bool) -> Result<Option<usize>, String> {
        let mut left: Vec<Vec<u8>> = path.iter().rev().cloned().collect();
        // The way from the root, for `..` in a link's text.
        let (mut way, mut links) = (vec![ROOT], 0);
        while let Some(name) = left.pop() {
            let here = way.last().copied().unwrap_or(ROOT);
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let next = match self.children(here)?.get(&name).copied() {
                Some(next) => next,
                None if make => {
                    let next = self.nodes.len();
                    self.nodes.push(folder(Meta {
                        mode: 0o755,
                        ..Meta::default()
                    }));
                    self.children(here)?.insert(name, next);
                    next
                }
                None => return Ok(None),
            };
            let What::Symlink(text) = &self.nodes[next].what else {
                way.push(next);
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err("its path leads through too many symbolic links".into());
            }
            if text.starts_with(b"/") {
                way.truncate(1);
            }
            left.extend(text.split(|byte| *byte == b'/').rev().map(Vec::from));
        }
        Ok(way.last().copied())
    }
}

/// The parts of an entry's path.
fn components(path: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    if path.len() >= MAX_PATH {
        return Err("a path has more than 4095 bytes".into());
    }
    let parts = path.split(|byte| *byte == b'/');
    let parts: Vec<Vec<u8>> = parts
        .filter(|part| !part.is_empty() && *part != b".")
        .map(Vec::from)
        .collect();
    for part in &parts {
        if part == b".." {
            let shown = show(path);
            return Err(format!("{shown}: a path with .. leads out of the image"));
        }
        if part.len() > MAX_NAME || part.contains(&0) {
            let shown = show(path);
            return Err(format!(
                "{shown}: a name has 1 to {MAX_NAME} bytes, none of them 0"
            ));
        }
    }
    Ok(parts)
}

/// A path for a message.
fn show(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let shown = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(shown).take(200).collect()
}
