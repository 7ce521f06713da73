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
use crate::fleet::{self, Claim, FleetError, Record};
use crate::sandbox::{Role, restrict_calls, spawn};
use crate::sync::{EventFd, eventfd, lock};

/// How long a machine without a name runs before it gets a folder, which costs a dozen system calls.
const UNNAMED_DELAY: Duration = Duration::from_millis(300);

/// Serves until it is dropped; the folder goes with it.
pub struct Control {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
    claim: Arc<Mutex<Option<Claim>>>,
}

/// Claim the name that the user chose, if any. A machine without one is later named by its process
/// id, and runs without a folder if none can be made.
///
/// # Errors
/// [`FleetError`].
pub fn claim(config: &Config) -> Result<Option<Claim>, FleetError> {
    let name = config.machine.name.as_ref();
    name.map(|name| fleet::claim(&record(config, name.clone())))
        .transpose()
}

fn record(config: &Config, name: String) -> Record {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Record {
        pid: std::process::id(),
        name,
        started: now.map_or(0, |time| time.as_secs()),
        cpus: config.machine.cpus,
        memory_bytes: config.machine.memory_bytes,
        version: env!("CARGO_PKG_VERSION").into(),
        ready_with: config.ready_with.clone(),
    }
}

impl Control {
    /// Serve the socket in the folder of `claim`, or in a new folder if there is no claim.
    ///
    /// # Errors
    /// No file descriptor or thread is left.
    pub fn start(
        config: &Config,
        claim: Option<Claim>,
        actions: Arc<Actions>,
    ) -> Result<Self, VmmError> {
        let stop = eventfd().map_err(VmmError::EventFd)?;
        let named = claim.is_some();
        let claim = Arc::new(Mutex::new(claim));
        let server = Server {
            stopped: stop.try_clone().map_err(VmmError::EventFd)?,
            socket: fleet::unbound().map_err(VmmError::EventFd)?,
            wake: eventfd().map_err(VmmError::EventFd)?,
            claim: claim.clone(),
            unnamed: record(config, std::process::id().to_string()),
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
            claim,
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
        drop(lock(&self.claim).take());
    }
}

/// What the thread has; the descriptors are open before its system calls are restricted.
struct Server {
    stopped: EventFd,
    socket: OwnedFd,
    wake: EventFd,
    claim: Arc<Mutex<Option<Claim>>>,
    /// The record of a machine without a claim.
    unnamed: Record,
    actions: Arc<Actions>,
}

impl Server {
    fn run(self) -> io::Result<()> {
        let named = lock(&self.claim).is_some();
        if !named {
            // A short run ends before a user could name it by its process id.
            if stops_within(&self.stopped, UNNAMED_DELAY) {
                return Ok(());
            }
            let claimed = fleet::claim(&self.unnamed);
            *lock(&self.claim) = Some(claimed.map_err(io::Error::other)?);
        }
        fleet::sweep();
        let listener = match &*lock(&self.claim) {
            Some(claim) => claim.listen_on(self.socket)?,
            None => return Ok(()), // the machine has ended
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
