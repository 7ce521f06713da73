//! Owners of files where hull is not the superuser, and so cannot give a file of the host to another user.
//!
//! The guest's owner stands in an extended attribute of the file, [`NAME`], as `UID:GID` in decimal. It is on
//! regular files and folders of hull's user alone: the kernel keeps such attributes for no others (xattr(7)),
//! and another user of the host could write there what a guest trusts. A file without one has its owner of the
//! host. Permissions stay the host's.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, Statx, StatxFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::wire::errno;

/// The attribute. The guest cannot read or write it.
pub const NAME: &CStr = c"user.hull.owner";
/// Longest value in bytes: two numbers of 32 bits.
const MAX_VALUE: usize = 21;
/// The permission without which the owner cannot change attributes (xattr(7)).
const WRITE: u32 = 0o200;

/// Shows and sets the owners that files have in the guest.
#[derive(Clone, Copy)]
pub struct Owners {
    /// hull's user, unless that is the superuser: files really belong to the guest's users then.
    user: Option<u32>,
}

impl Owners {
    /// For the files of this user, 0 for the superuser.
    pub fn of(user: Uid) -> Self {
        Self {
            user: (!user.is_root()).then_some(user.as_raw()),
        }
    }

    /// Whether they are those of the host.
    pub fn are_hosts(&self) -> bool {
        self.user.is_none()
    }

    /// Change `stat`, of `name` in `folder` or without a name of `folder` itself, to what the guest sees.
    pub fn show(&self, folder: impl AsFd, name: &CStr, stat: &mut Statx) {
        if self.has(stat)
            && let Ok(Some((user, group))) = read(&folder, name)
        {
            (stat.stx_uid, stat.stx_gid) = (user, group);
        }
    }

    /// Give `file`, or only its user or group.
    ///
    /// # Errors
    /// EPERM for a file of another user, and for one that can have no attribute or does not let its owner read
    /// it; a symbolic link stays as it is, which is no error: `chown -R` would fail at each.
    pub fn set(&self, file: &OwnedFd, user: Option<Uid>, group: Option<Gid>) -> io::Result<()> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        if self.are_hosts() {
            return Ok(rustix::fs::chownat(file, c"", user, group, flags)?);
        }
        let stat = rustix::fs::statx(file, c"", flags, StatxFlags::BASIC_STATS)?;
        if kind(&stat) == libc::S_IFLNK {
            return Ok(());
        }
        if !self.has(&stat) {
            return Err(errno(libc::EPERM));
        }
        let hosts = (stat.stx_uid, stat.stx_gid);
        let before = match read(file, c"") {
            Ok(before) => before,
            // A file system without attributes: what the host lets its user do.
            Err(Errno::OPNOTSUPP) => {
                return Ok(rustix::fs::chownat(file, c"", user, group, flags)?);
            }
            Err(_) => return Err(errno(libc::EPERM)),
        };
        let (old_user, old_group) = before.unwrap_or(hosts);
        let after = (
            user.map_or(old_user, Uid::as_raw),
            group.map_or(old_group, Gid::as_raw),
        );
        match (before, after == hosts) {
            (None, true) => Ok(()),
            _ if before == Some(after) => Ok(()),
            (_, same) => write(file, &stat, (!same).then_some(after)),
        }
    }

    /// Whether a file may have the attribute.
    fn has(&self, stat: &Statx) -> bool {
        self.user == Some(stat.stx_uid) && matches!(kind(stat), libc::S_IFREG | libc::S_IFDIR)
    }
}

fn kind(stat: &Statx) -> u32 {
    u32::from(stat.stx_mode) & libc::S_IFMT
}

/// The path of `name` in `folder`: calls on attributes take no O_PATH descriptor.
fn path(folder: impl AsFd, name: &CStr) -> CString {
    let folder = folder.as_fd().as_raw_fd();
    let mut path = format!("/proc/self/fd/{folder}").into_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend(name.to_bytes());
    }
    CString::new(path).unwrap_or_default()
}

/// What the attribute says; `None` where there is none, or something else.
fn read(folder: impl AsFd, name: &CStr) -> rustix::io::Result<Option<(u32, u32)>> {
    let (path, mut value) = (path(folder, name), [0; MAX_VALUE]);
    let read = match name.is_empty() {
        true => rustix::fs::getxattr(&path, NAME, &mut value),
        // Not of what a symbolic link leads to, by which the host may replace the file.
        false => rustix::fs::lgetxattr(&path, NAME, &mut value),
    };
    match read {
        Ok(len) => Ok(value.get(..len).and_then(parse)),
        Err(Errno::NODATA | Errno::RANGE) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(value: &[u8]) -> Option<(u32, u32)> {
    let (user, group) = std::str::from_utf8(value).ok()?.split_once(':')?;
    // -1 is no user (chown(2)).
    let number = |text: &str| text.parse().ok().filter(|id| *id != u32::MAX);
    Some((number(user)?, number(group)?))
}

/// Write the attribute, or remove it.
fn write(file: &OwnedFd, stat: &Statx, owner: Option<(u32, u32)>) -> io::Result<()> {
    let path = path(file, c"");
    let change = || match owner {
        Some((user, group)) => {
            let value = format!("{user}:{group}");
            rustix::fs::setxattr(&path, NAME, value.as_bytes(), XattrFlags::empty())
        }
        None => rustix::fs::removexattr(&path, NAME),
    };
    let changed = match change() {
        // A file that its owner may not write, as git has them.
        Err(Errno::ACCESS) => {
            let mode = u32::from(stat.stx_mode) & 0o7777;
            let to = |mode| {
                let mode = Mode::from_bits_truncate(mode);
                rustix::fs::chmodat(CWD, &path, mode, AtFlags::empty())
            };
            to(mode | WRITE)?;
            let changed = change();
            to(mode)?;
            changed
        }
        changed => changed,
    };
    changed.map_err(|error| match error {
        Errno::OPNOTSUPP | Errno::ACCESS => errno(libc::EPERM),
        error => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::fs::OFlags;

    use super::*;

    /// What the guest sees of the file.
    fn seen(owners: Owners, folder: &OwnedFd, name: &CStr) -> (u32, u32) {
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        let mut stat = rustix::fs::statx(folder, name, flags, StatxFlags::BASIC_STATS).unwrap();
        owners.show(folder, name, &mut stat);
        (stat.stx_uid, stat.stx_gid)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// What was set last is seen, by name and by descriptor, and nothing of the host changes.
        #[test]
        fn owners_are_those_that_were_set(changes in prop::collection::vec(
            (any::<bool>(), prop::option::of(0..u32::MAX), prop::option::of(0..u32::MAX)), 1..20,
        )) {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("file"), "").unwrap();
            std::fs::create_dir(folder.path().join("folder")).unwrap();
            std::os::unix::fs::symlink("file", folder.path().join("link")).unwrap();
            let host: OwnedFd = std::fs::File::open(folder.path()).unwrap().into();
            let hosts = seen(Owners { user: None }, &host, c"file");
            let owners = Owners { user: Some(rustix::process::geteuid().as_raw()) };
            let mut model = [hosts; 2];
            let open = |name| {
                let flags = OFlags::PATH | OFlags::NOFOLLOW;
                rustix::fs::openat(&host, name, flags, Mode::empty()).unwrap()
            };
            for (which, user, group) in changes {
                let (name, model) = if which { (c"file", &mut model[0]) } else { (c"folder", &mut model[1]) };
                let raw = (user.map(Uid::from_raw), group.map(Gid::from_raw));
                owners.set(&open(name), raw.0, raw.1).unwrap();
                *model = (user.unwrap_or(model.0), group.unwrap_or(model.1));
                prop_assert_eq!(seen(owners, &host, name), *model);
                prop_assert_eq!(seen(owners, &open(name), c""), *model);
                prop_assert_eq!(seen(Owners { user: None }, &host, name), hosts);
                owners.set(&open(c"link"), raw.0, raw.1).unwrap();
                prop_assert_eq!(seen(owners, &host, c"link"), hosts);
            }
            for name in [c"file", c"folder"] {
                owners.set(&open(name), Some(Uid::from_raw(hosts.0)), Some(Gid::from_raw(hosts.1))).unwrap();
                let (file, mut names) = (open(name), [0; 256]);
                let listed = rustix::fs::listxattr(path(&file, c""), &mut names).unwrap();
                prop_assert!(!names[..listed].starts_with(NAME.to_bytes()));
            }
        }
    }

    #[test]
    fn a_value_is_two_numbers() {
        assert_eq!(parse(b"0:4294967294"), Some((0, u32::MAX - 1)));
        for wrong in ["", "1", "1:", ":1", "1:4294967295", "1:2:3", "-1:0", "x:1"] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
        assert!("4294967295:4294967295".len() == MAX_VALUE);
    }
}
