//! Machines in the background: what stays of one after its end, until it is removed.
//!
//! ```text
//!  STATE/hull/NAME/        0700; STATE is $XDG_STATE_HOME, or ~/.local/state
//!                  lock    locked (flock) by the machine's keeper as long as that lives; how it ended, JSON,
//!                          once it has
//!                  record  of how it was started, JSON
//!                  state   what its keeper knows of it now, JSON (see `state`)
//!                  check   how its health is checked, JSON, if it is (see `health`)
//!                  stopped if it was told to end, so that it is not started again
//!                  log     what it wrote, and older parts as log.1, log.2 (see `log`)
//!                  network what left it and what was refused, lines of JSON, if there are rules on that
//!                  attach  socket of its keeper, for those that look at it
//! ```
//! A process that has found a machine keeps its folder open, since it may be renamed. The end stands in the lock
//! file, which a process that waits keeps open: with `--rm` the folder is removed at once.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use rustix::net::{self, SocketAddrUnix, SocketFlags};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::events;
use super::folder::socket;
use super::health::Check;
use super::log::{Driver, Rotation};
use super::name::check_name;
use super::restart::RestartPolicy;
pub use super::state::{KeptEnd, KeptState, Phase};

const LOCK: &str = "lock";
const RECORD: &str = "record";
const ATTACH: &str = "attach";
const STATE: &str = "state";
const CHECK: &str = "check";
const STOPPED: &str = "stopped";
/// See [`Kept::journal`].
const NETWORK: &str = "network";
/// Size in bytes from which a journal is begun anew at a start.
const MAX_JOURNAL: u64 = 2 << 20;
/// What stands there if the host shut down.
const BY_HOST: &[u8] = b"host";
/// Connections to a keeper that may wait to be accepted.
const BACKLOG: i32 = 8;
/// Longest record, in bytes: a command line may have 2 MiB.
const MAX_RECORD: u64 = 8 << 20;
/// Longest record of an end, in bytes.
const MAX_END: usize = 256;
/// How often a machine is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(50);
/// The status of a machine whose keeper was killed, and so the machine.
const KILLED: u8 = 137;

/// Why there is no machine in the background, or nothing is known of it.
#[derive(Debug, Error)]
pub enum KeptError {
    /// No place for the folders.
    #[error(
        "no folder for machines in the background; set XDG_STATE_HOME or HOME to a folder of yours"
    )]
    NoPlace,
    /// The name is taken.
    #[error(
        "the machine name {name:?} is already in use; hull rm {name} removes that machine when it has ended, or choose \
         another name"
    )]
    Taken {
        /// The name that was asked for.
        name: String,
    },
    /// There is none of that name.
    #[error(
        "no such machine in the background: {name}; hull ps -a lists those that were started there"
    )]
    Unknown {
        /// The name that was asked for.
        name: String,
    },
    /// It runs.
    #[error("machine {name} is running; hull stop {name} first")]
    Runs {
        /// The name that was asked for.
        name: String,
    },
    /// Something in its folder fails.
    #[error("{}", path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// How a machine was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRecord {
    /// The name that `--name` gave or hull chose, which is also the folder's.
    pub name: String,
    /// When it was, in seconds of Unix time.
    pub created: u64,
    /// hull's command line, as bytes.
    pub arguments: Vec<Vec<u8>>,
    /// The folder in which hull was started.
    pub folder: PathBuf,
    /// Where its log goes.
    pub driver: Driver,
    /// When its log is rotated.
    pub rotation: Rotation,
    /// Whether it is removed at its end.
    pub remove: bool,
    /// The names of its volumes.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// What the user says of it, by keys.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether its command has standard input.
    #[serde(default)]
    pub input: bool,
    /// Whether its command is on a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// When its keeper starts it again.
    #[serde(default)]
    pub restart: RestartPolicy,
}

/// The folder of a machine in the background.
#[derive(Clone, Debug)]
pub struct Kept {
    path: PathBuf,
    folder: Arc<File>,
    /// How it was started.
    pub record: KeptRecord,
}

impl Kept {
    /// Make the folder, and lock it: until the file is closed by all who have it, it is kept.
    ///
    /// # Errors
    /// [`KeptError::Taken`], or the folder cannot be made.
    pub fn create(record: KeptRecord) -> Result<(Self, File), KeptError> {
        let place = place()?;
        let mut folder = DirBuilder::new();
        folder.mode(0o700);
        let made = folder.recursive(true).create(&place);
        made.map_err(failed(&place))?;
        let path = place.join(&record.name);
        folder
            .recursive(false)
            .create(&path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => KeptError::Taken {
                    name: record.name.clone(),
                },
                _ => failed(&path)(error),
            })?;
        let folder = File::open(&path).map(Arc::new);
        let folder = folder.map_err(failed(&path))?;
        let kept = Self {
            path,
            folder,
            record,
        };
        let lock = kept.write_record().and_then(|()| kept.lock());
        let lock = lock.inspect_err(|_| _ = fs::remove_dir_all(&kept.path))?;
        events::record("create", &kept.record.name, &[]);
        Ok((kept, lock))
    }

    /// The folder of an ended machine, to start it again.
    ///
    /// # Errors
    /// [`KeptError::Unknown`] or [`KeptError::Runs`].
    pub fn reopen(name: &str) -> Result<(Self, File), KeptError> {
        let kept = Self::open(name)?;
        let lock = kept.lock()?;
        lock.set_len(0).map_err(failed(&kept.path))?;
        let _ = fs::remove_file(kept.here().join(STOPPED));
        Ok((kept, lock))
    }

    /// The folder of a machine.
    ///
    /// # Errors
    /// [`KeptError::Unknown`].
    pub fn open(name: &str) -> Result<Self, KeptError> {
        let unknown = || KeptError::Unknown { name: name.into() };
        check_name(name).map_err(|_| unknown())?;
        let path = place()?.join(name);
        let folder = File::open(&path).map_err(|_| unknown())?;
        let text = read(&by_descriptor(&folder).join(RECORD)).ok_or_else(unknown)?;
        let record = serde_json::from_slice(&text).map_err(|_| unknown())?;
        Ok(Self {
            path,
            folder: Arc::new(folder),
            record,
        })
    }

    /// The same machine under the name that it has now.
    pub fn renamed(&self) -> Self {
        let now = || {
            let path = fs::read_link(self.here()).ok()?;
            Self::open(path.file_name()?.to_str()?).ok()
        };
        now().unwrap_or_else(|| self.clone())
    }

    /// All of them, sorted by name.
    pub fn list() -> Vec<Self> {
        let folders = place().ok().and_then(|place| fs::read_dir(place).ok());
        let names = folders.into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let mut all: Vec<Self> = names.filter_map(|name| Self::open(&name).ok()).collect();
        all.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        all
    }

    /// The machine's folder, `STATE/hull/NAME`, as it was called when it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The machine's folder in /proc, as long as this lives: also after it was renamed.
    pub fn here(&self) -> PathBuf {
        by_descriptor(&self.folder)
    }

    /// Whether its keeper lives.
    pub fn runs(&self) -> bool {
        matches!(self.lock(), Err(KeptError::Runs { .. }))
    }

    /// How it ended; `None` while it runs.
    pub fn end(&self) -> Option<KeptEnd> {
        self.end_in(self.lock_file().ok().as_ref())
    }

    /// Wait for its end.
    pub fn wait(&self) -> KeptEnd {
        // Open from the beginning: it may be removed at the end.
        let lock = self.lock_file().ok();
        loop {
            match self.end_in(lock.as_ref()).filter(|_| !self.runs()) {
                Some(end) => return end,
                None => thread::sleep(LOOK),
            }
        }
    }

    fn end_in(&self, lock: Option<&File>) -> Option<KeptEnd> {
        // In this order: the end is written before the lock is free.
        let runs = self.runs();
        let end = || {
            let mut text = [0; MAX_END];
            let len = lock?.read_at(&mut text, 0).ok()?;
            serde_json::from_slice(text.get(..len)?).ok()
        };
        end().or_else(|| {
            (!runs).then_some(KeptEnd {
                status: KILLED,
                finished: self.record.created,
            })
        })
    }

    /// Wait for the keeper of the machine `name`, which has ended, to write the end of its log and its status: at
    /// most `time`, and not at all if it has none.
    pub fn settle(name: &str, time: Duration) {
        let until = Instant::now() + time;
        while Self::open(name).is_ok_and(|kept| kept.runs()) && Instant::now() < until {
            thread::sleep(LOOK);
        }
    }

    /// Listen for those that want to attach to the machine, whose keeper this process is to be. The socket
    /// does not block.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(&self) -> io::Result<OwnedFd> {
        self.stop_listening();
        let listener = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        net::bind(&listener, &SocketAddrUnix::new(self.here().join(ATTACH))?)?;
        net::listen(&listener, BACKLOG)?;
        Ok(listener)
    }

    /// Remove the socket of [`Kept::listen`].
    pub fn stop_listening(&self) {
        let _ = fs::remove_file(self.here().join(ATTACH));
    }

    /// Connect to the machine's keeper. The socket does not block.
    ///
    /// # Errors
    /// It has none, or an older one.
    pub fn connect(&self) -> io::Result<OwnedFd> {
        let stream = socket(SocketFlags::CLOEXEC)?;
        net::connect(&stream, &SocketAddrUnix::new(self.here().join(ATTACH))?)?;
        rustix::io::ioctl_fionbio(&stream, true)?;
        Ok(stream)
    }

    /// Record how it ended for good.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_end(&self, end: KeptEnd) -> Result<(), KeptError> {
        let text = serde_json::to_vec(&end).unwrap_or_default();
        let lock = self.lock_file().map_err(failed(&self.path))?;
        lock.write_all_at(&text, 0).map_err(failed(&self.path))
    }

    /// What its keeper knows of it; what is known of none if it has had no keeper.
    pub fn state(&self) -> KeptState {
        self.read(STATE).unwrap_or_default()
    }

    /// Record the state of the machine, whose keeper this process is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_state(&self, state: &KeptState) -> Result<(), KeptError> {
        self.write(STATE, state)
    }

    /// How its health is checked, if it is.
    pub fn check(&self) -> Option<Check> {
        self.read(CHECK)
    }

    /// Record how its health is checked.
    ///
    /// # Errors
    /// The file cannot be written or removed.
    pub fn write_check(&self, check: Option<&Check>) -> Result<(), KeptError> {
        match check {
            Some(check) => self.write(CHECK, check),
            None => match fs::remove_file(self.here().join(CHECK)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(failed(&self.path.join(CHECK))(error))
                }
                _ => Ok(()),
            },
        }
    }

    /// The file in which a machine that starts tells what left it, to append to.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn journal(&self) -> io::Result<File> {
        let mut options = File::options();
        let file = options.append(true).create(true).open(self.network())?;
        if file.metadata()?.len() > MAX_JOURNAL {
            file.set_len(0)?;
        }
        Ok(file)
    }

    /// The path of [`Kept::journal`].
    pub fn network(&self) -> PathBuf {
        self.here().join(NETWORK)
    }

    /// Whether its keeper waits to start it again.
    pub fn is_restarting(&self) -> bool {
        self.runs() && self.state().phase == Phase::Restarting
    }

    /// Whether it was told to end since it was started.
    pub fn is_stopped(&self) -> bool {
        self.here().join(STOPPED).exists()
    }

    /// Whether its folder was removed behind the keeper's back.
    pub fn is_removed(&self) -> bool {
        fs::metadata(self.here()).is_ok_and(|folder| folder.nlink() == 0)
    }

    /// Whether it was the user, and not the host that shut down.
    pub fn is_stopped_by_user(&self) -> bool {
        let text = fs::read(self.here().join(STOPPED));
        text.is_ok_and(|text| text != BY_HOST)
    }

    /// The machine is ended, `by_host` when that shuts down: its keeper will not start it again, and one that waits
    /// to do so ends.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn stop_restarts(&self, by_host: bool) -> Result<(), KeptError> {
        if self.record.remove {
            return Ok(()); // It is not started again, and its folder may just go.
        }
        let path = self.here().join(STOPPED);
        let text = if by_host { BY_HOST } else { b"" };
        fs::write(path, text).map_err(failed(&self.path.join(STOPPED)))?;
        // It wakes the keeper, which sees the file.
        drop(self.connect());
        Ok(())
    }

    /// Whether its policy starts it after a reboot of the host.
    pub fn starts_after_boot(&self) -> bool {
        let status = self.end().map_or(KILLED, |end| end.status);
        let policy = self.record.restart;
        policy.starts_after_boot(status, self.is_stopped_by_user())
    }

    /// Change when it is started again.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn set_restart(&mut self, policy: RestartPolicy) -> Result<(), KeptError> {
        self.record.restart = policy;
        self.write_record()?;
        // Its keeper may wait for the next start.
        drop(self.connect());
        Ok(())
    }

    /// Give the machine another name.
    ///
    /// # Errors
    /// The name is taken.
    pub fn rename(mut self, name: &str) -> Result<Self, KeptError> {
        let path = self.path.with_file_name(name);
        match renameat_with(CWD, &self.path, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(KeptError::Taken { name: name.into() }),
            Err(error) => return Err(failed(&path)(error.into())),
        }
        self.path = path;
        self.record.name = name.into();
        self.write_record()?;
        Ok(self)
    }

    /// Remove the folder of an ended machine.
    ///
    /// # Errors
    /// It runs, or a file stays.
    pub fn remove(&self) -> Result<(), KeptError> {
        let _lock = self.lock()?;
        self.remove_all()
    }

    /// Remove the folder, whose keeper this process is.
    ///
    /// # Errors
    /// A file stays.
    pub fn remove_all(&self) -> Result<(), KeptError> {
        // What a killed `hull rm` leaves has no record, and is no machine.
        let _ = fs::remove_file(self.here().join(RECORD));
        events::record("destroy", &self.record.name, &[]);
        fs::remove_dir_all(&self.path).map_err(failed(&self.path))
    }

    fn write_record(&self) -> Result<(), KeptError> {
        self.write(RECORD, &self.record)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&read(&self.here().join(name))?).ok()
    }

    /// Write a file whole or not at all.
    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), KeptError> {
        let path = self.here().join(name);
        let fresh = self.here().join(format!("{name}.new"));
        let text = serde_json::to_vec(value).unwrap_or_default();
        let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path));
        written.map_err(failed(&self.path.join(name)))
    }

    fn lock_file(&self) -> io::Result<File> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        options.open(self.here().join(LOCK))
    }

    fn lock(&self) -> Result<File, KeptError> {
        let file = self.lock_file().map_err(failed(&self.path.join(LOCK)))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(_) => Err(KeptError::Runs {
                name: self.record.name.clone(),
            }),
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> KeptError {
    let path = path.to_path_buf();
    move |source| KeptError::Folder { path, source }
}

/// The path in /proc of an open folder.
fn by_descriptor(folder: &File) -> PathBuf {
    format!("/proc/self/fd/{}", folder.as_raw_fd()).into()
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let small = fs::metadata(path).is_ok_and(|it| it.is_file() && it.len() <= MAX_RECORD);
    small.then(|| fs::read(path).ok()).flatten()
}

/// Now, in seconds of Unix time.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// The folder of the machines' folders.
fn place() -> Result<PathBuf, KeptError> {
    super::place::place().ok_or(KeptError::NoPlace)
}
