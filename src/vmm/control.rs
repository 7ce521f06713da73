//! The thread that serves a machine's control socket, and the machine's folder in [`crate::fleet`].

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::actions::Actions;
use super::config::Config;
use super::error::VmmError;
use crate::control::server;
use crate::fleet::{self, Claim, FleetError, Record, Runtime};
use crate::sandbox::{Role, restrict_calls, spawn};
use crate::sync::{EventFd, eventfd, lock};

/// How long a machine without a name runs before it gets a folder, which costs a dozen system calls.
const UNNAMED_DELAY: Duration = Duration::from_millis(300);

/// Serves until it is dropped; the folder goes with it.
pub struct Control {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
    place: Arc<Mutex<Place>>,
}

/// The machine's folder, and the folder in which it is. The lock-down has them opened before.
#[derive(Default)]
pub struct Place {
    /// `None` for a machine without a name, which has not run for long.
    claim: Option<Claim>,
    /// `None` if there can be none.
    machines: Option<Runtime>,
}

impl Place {
    /// Claim the name that the user chose, if any. A machine without one is later named by its process id,
    /// and runs without a folder if none can be made.
    ///
    /// # Errors
    /// [`FleetError`].
    pub fn open(config: &Config) -> Result<Self, FleetError> {
        if config.machine.jail.is_some() {
            let open = Self::open_now(config);
            let named = config.machine.name.is_some();
            return if named {
                open
            } else {
                Ok(open.unwrap_or_default())
            };
        }
        let Some(name) = &config.machine.name else {
            return Ok(Self {
                claim: None,
                machines: Runtime::reserve().ok(),
            });
        };
        let machines = Runtime::reserve()?;
        Ok(Self {
            claim: Some(Claim::take(&machines, &record(config, name.clone()))?),
            machines: Some(machines),
        })
    }

    /// As [`Place::open`], with a socket that is listened on: in a jail none can be made.
    fn open_now(config: &Config) -> Result<Self, FleetError> {
        let machines = Runtime::reserve()?;
        let name = config.machine.name.clone();
        let name = name.unwrap_or_else(|| process_id(config).to_string());
        let claim = Claim::take(&machines, &record(config, name))?;
        Ok(Self {
            claim: Some(claim.listen_now()?),
            machines: Some(machines),
        })
    }

    /// Listen on the control socket, if the machine has a name.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(&self) -> io::Result<Option<OwnedFd>> {
        self.claim.as_ref().map(Claim::listen).transpose()
    }

    /// The folder of all machines' folders.
    pub fn machines(&self) -> Option<&Runtime> {
        self.machines.as_ref()
    }

    /// As [`Place::listen`] on `socket`, under the name in `unnamed` if there is no other; what killed
    /// machines have left is removed. `None` if there is no folder.
    fn listen_on(&mut self, socket: OwnedFd, unnamed: &Record) -> io::Result<Option<OwnedFd>> {
        let Some(machines) = &self.machines else {
            return Ok(None);
        };
        if self.claim.is_none() {
            let claim = Claim::take(machines, unnamed).map_err(io::Error::other)?;
            self.claim = Some(claim);
        }
        machines.list();
        let claim = self.claim.as_mut();
        claim.map(|claim| claim.listen_on(socket)).transpose()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.claim = None;
        if let Some(machines) = &self.machines {
            machines.remove_if_empty();
        }
    }
}

fn record(config: &Config, name: String) -> Record {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let supervised = config.attachments.supervised.as_ref();
    Record {
        pid: process_id(config),
        name,
        started: now.map_or(0, |time| time.as_secs()),
        cpus: config.machine.cpus,
        memory_bytes: config.machine.memory_bytes,
        version: env!("CARGO_PKG_VERSION").into(),
        ready_with: config.ready_with.clone(),
        stop_seconds: config.machine.stop.seconds,
        groups: supervised.map(|it| it.groups.clone()).unwrap_or_default(),
    }
}

/// The process that the user knows: the supervisor, if there is one.
fn process_id(config: &Config) -> u32 {
    let supervised = config.attachments.supervised.as_ref();
    supervised.map_or_else(std::process::id, |it| it.pid)
}

impl Control {
    /// Serve the socket in the machine's folder.
    ///
    /// # Errors
    /// No file descriptor or thread is left.
    pub fn start(config: &Config, place: Place, actions: Arc<Actions>) -> Result<Self, VmmError> {
        let stop = eventfd().map_err(VmmError::EventFd)?;
        let named = place.claim.is_some();
        let place = Arc::new(Mutex::new(place));
        let server = Server {
            stopped: stop.try_clone().map_err(VmmError::EventFd)?,
            socket: fleet::unbound().map_err(VmmError::EventFd)?,
            wake: eventfd().map_err(VmmError::EventFd)?,
            place: place.clone(),
            named,
            unnamed: record(config, process_id(config).to_string()),
            actions,
        };
        let work = move || {
            if let Err(error) = server.run()
                && named
            {
                log::warn!("control: the socket is no longer served: {error}");
            }
        };
        let thread = spawn(Role::Claim, work).map_err(VmmError::Thread)?;
        Ok(Self {
            stop,
            thread: Some(thread),
            place,
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.raise();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // the panic hook has printed a panic
        }
        // On this thread: the other one may no longer remove the folder.
        drop(std::mem::take(&mut *lock(&self.place)));
    }
}

/// What the thread has; the descriptors are open before its system calls are restricted.
struct Server {
    stopped: EventFd,
    socket: OwnedFd,
    wake: EventFd,
    place: Arc<Mutex<Place>>,
    named: bool,
    /// The record of a machine without a name.
    unnamed: Record,
    actions: Arc<Actions>,
}

impl Server {
    fn run(self) -> io::Result<()> {
        // A short run ends before a user could name it by its process id.
        if !self.named && stops_within(&self.stopped, UNNAMED_DELAY) {
            return Ok(());
        }
        let listener = lock(&self.place).listen_on(self.socket, &self.unnamed)?;
        let Some(listener) = listener else {
            return Ok(());
        };
        restrict_calls(Role::Control);
        server::serve(&listener, self.wake, &self.stopped, |action, reply| {
            self.actions.act(action, reply);
        })
    }
}

/// Whether `stop` is signalled within this time.
fn stops_within(stop: &EventFd, time: Duration) -> bool {
    let mut fds = [PollFd::new(stop, PollFlags::IN)];
    let time = Timespec::try_from(time).ok();
    // A signal goes to the event loop's thread or interrupts this wait for good.
    poll(&mut fds, time.as_ref()).is_ok_and(|ready| ready > 0)
}
