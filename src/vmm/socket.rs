//! A Unix socket at a path that the user named.
//!
//! A hull that was killed leaves its socket behind, and the next one replaces it: connect(2) says that
//! no process listens. Each hull locks the socket's folder while it looks and binds, so that it never
//! removes the socket of another one that is about to listen.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

pub use crate::control::server::is_ours;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// How often, and how long after each try, hull waits for another one that locks the folder.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(5);

/// Device, inode, and when it was made, where the file system knows that: another file may have the number of
/// an inode that was removed.
type Identity = (u64, u64, Option<SystemTime>);

/// The file of a socket, removed when this is dropped, unless another file has its name by then.
#[derive(Debug)]
pub struct SocketFile {
    /// As it was named.
    pub path: PathBuf,
    file: Option<Identity>,
}

impl SocketFile {
    fn new(path: &Path) -> Self {
        Self {
            path: path.into(),
            file: identity(path),
        }
    }

    /// Remove it, unless another file has its name by now.
    pub fn remove(&self) {
        if identity(&self.path) == self.file {
            // It fails if the file was removed already.
            let _ = fs::unlinkat(fs::CWD, &self.path, AtFlags::empty());
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let about = std::fs::symlink_metadata(path).ok()?;
    Some((about.dev(), about.ino(), about.created().ok()))
}

/// Listen at `path`, in place of a socket without a listener. The socket has `flags`, and is closed at
/// exec; no other user may connect to it, whatever the umask.
///
/// # Errors
/// [`Errno::ADDRINUSE`]: a program listens there, or it is another file. Else the socket cannot be made.
pub fn listen(path: &Path, flags: SocketFlags) -> Result<(OwnedFd, SocketFile)> {
    let address = SocketAddrUnix::new(path)?;
    let listener = socket(flags)?;
    // bind(2) makes the file with the mode of the socket.
    fs::fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
    let turn = lock_folder(path);
    match net::bind(&listener, &address) {
        Err(Errno::ADDRINUSE) if turn.is_some() && is_left_over(path, &address) => {
            log::info!("{} has no listener and is replaced", path.display());
            fs::unlink(path)?;
            net::bind(&listener, &address)?;
        }
        bound => bound?,
    }
    let file = SocketFile::new(path);
    net::listen(&listener, BACKLOG)?;
    Ok((listener, file))
}

fn socket(flags: SocketFlags) -> Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Whether `path` is a socket at which no process listens.
fn is_left_over(path: &Path, address: &SocketAddrUnix) -> bool {
    let is_socket = |stat: fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
    fs::lstat(path).is_ok_and(is_socket)
        // Without waiting for room in the queue of a listener that is busy.
        && socket(SocketFlags::NONBLOCK).and_then(|socket| net::connect(&socket, address))
            == Err(Errno::CONNREFUSED)
}

/// The lock of the folder of `path`; `None` if it cannot be had.
fn lock_folder(path: &Path) -> Option<OwnedFd> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = fs::open(folder.unwrap_or(Path::new(".")), flags, Mode::empty()).ok()?;
    for _ in 0..TRIES {
        match fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(folder),
            Err(Errno::WOULDBLOCK) => thread::sleep(PAUSE),
            Err(_) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn a_socket_without_a_listener_is_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let refused = |path: &Path| listen(path, SocketFlags::empty()).map(drop);
        drop(UnixListener::bind(&path).expect("a socket"));
        let (_listener, file) = listen(&path, SocketFlags::empty()).expect("replaced");
        assert_eq!(refused(&path), Err(Errno::ADDRINUSE));

        // Another socket has the name when the first one's owner ends.
        std::fs::remove_file(&path).expect("removed");
        let other = UnixListener::bind(&path).expect("a socket");
        drop(file);
        assert!(path.exists(), "it is another's");
        drop(other);

        let plain = folder.path().join("file");
        std::fs::write(&plain, "kept").expect("a file");
        assert_eq!(refused(&plain), Err(Errno::ADDRINUSE));
        assert_eq!(std::fs::read(&plain).expect("a file"), b"kept");
    }

    #[test]
    fn of_many_that_find_it_one_replaces_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).expect("a socket"));
        let together = Barrier::new(8);
        let made = thread::scope(|scope| {
            let try_it = || {
                together.wait();
                listen(&path, SocketFlags::empty()).ok()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(try_it)).collect();
            let made = threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"));
            made.collect::<Vec<_>>()
        });
        assert_eq!(made.iter().flatten().count(), 1);
    }
}
