//! What the guest knows of the folder: a node for each file that it has looked up.
//!
//! A node has no descriptor of its own. It has its place, a folder and a name in it, from which the
//! file is opened again when it is needed, and its identity, by which that file is recognized. So a
//! guest may know as many files as there are, and hull still has few open.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::wire::ROOT;
use super::wire::errno;

/// Most nodes of a share. Each takes about 200 bytes of hull's memory.
pub const MAX_NODES: usize = 4 << 20;

/// What distinguishes a file of the host from all others, also from a later one whose inode has the
/// same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device number (st_dev).
    pub device: u64,
    /// Inode number (st_ino).
    pub inode: u64,
    /// Number of the mount: a folder that is mounted at two places is two folders.
    pub mount: u64,
    /// Type, as in st_mode.
    pub kind: u32,
    /// Time of creation in seconds and nanoseconds, or 0 where the file system has none to rely on.
    pub born: (i64, u32),
}

/// A folder's number and a name in it.
pub type Place = (u64, CString);

/// A file that the guest knows, or a folder that leads to one.
#[derive(Debug)]
pub struct Node {
    pub identity: Identity,
    /// Where it was seen last; none for the folder itself and for what was removed.
    pub place: Option<Place>,
    /// Distinguishes its inode number from those of the folder's file system; 0 if it is on it.
    pub alias: u64,
    /// What it is reached by where it has no place; the second part is counted.
    pub pin: Option<(Arc<OwnedFd>, Arc<()>)>,
    /// Its open files, by their handles.
    pub handles: Vec<(u64, Arc<OwnedFd>)>,
    /// How often the guest has been given its number and has not forgotten that.
    lookups: u64,
    /// Nodes whose place is in it, for which it stays.
    children: u64,
}

/// All nodes of a share.
#[derive(Debug, Default)]
pub struct Nodes {
    by_number: HashMap<u64, Node>,
    by_identity: HashMap<Identity, u64>,
    /// The greatest number that was given to a node; no number is used twice.
    last: u64,
}

impl Nodes {
    /// Forget all, and begin with the folder itself.
    pub fn reset(&mut self, folder: Identity, pin: (Arc<OwnedFd>, Arc<()>)) {
        // The numbers go on: those of before lead nowhere.
        let last = self.last.max(ROOT);
        *self = Self {
            last,
            ..Self::default()
        };
        let root = Node {
            identity: folder,
            place: None,
            alias: 0,
            pin: Some(pin),
            handles: Vec::new(),
            lookups: 1,
            children: 0,
        };
        self.by_number.insert(ROOT, root);
        self.by_identity.insert(folder, ROOT);
    }

    /// The number of nodes.
    pub fn count(&self) -> usize {
        self.by_number.len()
    }

    /// The node with `number`.
    ///
    /// # Errors
    /// EBADF: the guest never had it, or has forgotten it.
    pub fn get(&self, number: u64) -> io::Result<&Node> {
        self.by_number.get(&number).ok_or(errno(libc::EBADF))
    }

    /// The number of the node with `identity`.
    pub fn find(&self, identity: &Identity) -> Option<u64> {
        self.by_identity.get(identity).copied()
    }

    /// The number of the file `identity`, now seen at `place`, which the guest is about to be given.
    ///
    /// # Errors
    /// ENFILE: it would be one more than [`MAX_NODES`].
    pub fn look_up(
        &mut self,
        identity: Identity,
        place: Option<(u64, &CStr)>,
        alias: u64,
    ) -> io::Result<u64> {
        if let Some(number) = self.find(&identity) {
            if let Some(place) = place {
                self.move_to(number, Some(place));
            }
            if let Some(node) = self.by_number.get_mut(&number) {
                node.lookups = node.lookups.saturating_add(1);
            }
            return Ok(number);
        }
        if self.count() >= MAX_NODES {
            return Err(errno(libc::ENFILE));
        }
        self.last += 1;
        let node = Node {
            identity,
            place: None,
            alias,
            pin: None,
            handles: Vec::new(),
            lookups: 1,
            children: 0,
        };
        self.by_number.insert(self.last, node);
        self.by_identity.insert(identity, self.last);
        self.move_to(self.last, place);
        Ok(self.last)
    }

    /// Whether the node was seen last at this place.
    pub fn is_at(&self, number: u64, parent: u64, name: &CStr) -> bool {
        let place = self
            .by_number
            .get(&number)
            .and_then(|node| node.place.as_ref());
        place.is_some_and(|(folder, known)| *folder == parent && known.as_c_str() == name)
    }

    /// The node is at another place now, or at none.
    pub fn move_to(&mut self, number: u64, place: Option<(u64, &CStr)>) {
        if let Some((parent, name)) = place
            && (number == ROOT || number == parent || self.is_at(number, parent, name))
        {
            return;
        }
        if let Some((parent, _)) = place
            && let Some(folder) = self.by_number.get_mut(&parent)
        {
            folder.children += 1;
        }
        let place = place.map(|(parent, name)| (parent, name.to_owned()));
        let Some(node) = self.by_number.get_mut(&number) else {
            return;
        };
        if place.is_some() {
            node.pin = None;
        }
        if let Some((before, _)) = std::mem::replace(&mut node.place, place) {
            self.leave(before);
        }
    }

    /// The node was removed from its place; `pin` reaches it as long as the guest knows it.
    pub fn removed(&mut self, number: u64, pin: Option<(Arc<OwnedFd>, Arc<()>)>) {
        if let Some(node) = self.by_number.get_mut(&number) {
            node.pin = pin;
        }
        self.move_to(number, None);
    }

    /// A file of the node was opened.
    pub fn opened(&mut self, number: u64, handle: u64, file: Arc<OwnedFd>) {
        if let Some(node) = self.by_number.get_mut(&number) {
            node.handles.push((handle, file));
        }
    }

    /// It was closed.
    pub fn closed(&mut self, number: u64, handle: u64) {
        if let Some(node) = self.by_number.get_mut(&number) {
            node.handles.retain(|(open, _)| *open != handle);
        }
    }

    /// The guest forgets `count` look-ups. Returns whether the node is gone.
    pub fn forget(&mut self, number: u64, count: u64) -> bool {
        if number == ROOT {
            return false;
        }
        let Some(node) = self.by_number.get_mut(&number) else {
            return false;
        };
        node.lookups = node.lookups.saturating_sub(count);
        self.drop_if_unused(number)
    }

    /// A node that was in `folder` is not there any more.
    fn leave(&mut self, folder: u64) {
        if let Some(node) = self.by_number.get_mut(&folder) {
            node.children = node.children.saturating_sub(1);
            self.drop_if_unused(folder);
        }
    }

    /// Remove the node, and the folders above it, if the guest has forgotten them and they lead to
    /// nothing else. Returns whether the node itself was removed.
    fn drop_if_unused(&mut self, first: u64) -> bool {
        let mut number = first;
        while number != ROOT
            && let Some(node) = self.by_number.get(&number)
            && node.lookups == 0
            && node.children == 0
            && let Some(node) = self.by_number.remove(&number)
        {
            if self.by_identity.get(&node.identity) == Some(&number) {
                self.by_identity.remove(&node.identity);
            }
            let Some((parent, _)) = node.place else {
                break;
            };
            if let Some(folder) = self.by_number.get_mut(&parent) {
                folder.children = folder.children.saturating_sub(1);
            }
            number = parent;
        }
        !self.by_number.contains_key(&first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(inode: u64) -> Identity {
        Identity {
            device: 1,
            inode,
            mount: 1,
            kind: libc::S_IFDIR,
            born: (0, 0),
        }
    }

    fn nodes() -> Nodes {
        let mut nodes = Nodes::default();
        let pin = Arc::new(std::fs::File::open("/").unwrap().into());
        nodes.reset(identity(1), (pin, Arc::default()));
        nodes
    }

    #[test]
    fn a_folder_stays_as_long_as_something_known_is_in_it() {
        let mut nodes = nodes();
        let a = nodes.look_up(identity(2), Some((ROOT, c"a")), 0).unwrap();
        let b = nodes.look_up(identity(3), Some((a, c"b")), 0).unwrap();
        let again = nodes.look_up(identity(3), Some((a, c"b")), 0).unwrap();
        assert_eq!(b, again);
        nodes.forget(a, 1);
        assert!(nodes.get(a).is_ok());
        nodes.forget(b, 1);
        assert!(nodes.get(b).is_ok());
        nodes.forget(b, 1);
        assert_eq!(nodes.count(), 1);
        assert!(nodes.get(a).is_err());
        nodes.forget(ROOT, u64::MAX);
        assert!(nodes.get(ROOT).is_ok());
    }

    #[test]
    fn a_move_takes_the_node_out_of_its_folder() {
        let mut nodes = nodes();
        let a = nodes.look_up(identity(2), Some((ROOT, c"a")), 0).unwrap();
        let b = nodes.look_up(identity(3), Some((a, c"b")), 0).unwrap();
        nodes.forget(a, 1);
        nodes.move_to(b, Some((ROOT, c"c")));
        assert!(nodes.get(a).is_err());
        assert!(nodes.is_at(b, ROOT, c"c"));
        nodes.move_to(b, None);
        nodes.forget(b, 1);
        assert_eq!(nodes.count(), 1);
        // A number is never given to another file.
        assert!(nodes.look_up(identity(3), None, 0).unwrap() > b);
    }
}
