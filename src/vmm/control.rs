//! The thread that takes orders for a machine, and its folder among the records of those that run.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;

use super::events::Events;
use super::inspect::Inspector;
use super::orders::Order;
use super::standstill::Standstill;
use super::{Config, VmmError};
use crate::control::server::{self, Reply};
use crate::control::{Answer, Request, Status};
use crate::fleet::{self, Claim, FleetError, Record};
use crate::kvm;
use crate::memory::STACK;

/// How long a machine without a name runs before it gets a folder, which costs a dozen system calls.
const UNNAMED: Duration = Duration::from_millis(300);

/// Running; gone with its folder when this is dropped.
pub struct Control {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

/// Take the name that the user chose, if that was done. A machine without a name takes its process
/// id for one, later: it runs on without a folder where none can be had.
///
/// # Errors
/// [`FleetError`].
pub fn claim(config: &Config) -> Result<Option<Claim>, FleetError> {
    let name = config.name.as_ref();
    name.map(|name| fleet::claim(&record(config, name.clone())))
        .transpose()
}

fn record(config: &Config, name: String) -> Record {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Record {
        pid: std::process::id(),
        name,
        started: now.map_or(0, |time| time.as_secs()),
        cpus: config.cpus,
        memory_bytes: config.memory_bytes,
        version: env!("CARGO_PKG_VERSION").into(),
        ready_with: config.ready_with.clone(),
    }
}

impl Control {
    /// Take orders from now on, in the folder `claim` or one that is made now.
    ///
    /// # Errors
    /// No descriptor or thread is left.
    pub fn start(
        config: &Config,
        claim: Option<Claim>,
        ordered: Ordered,
    ) -> Result<Self, VmmError> {
        let stop = super::machine::eventfd()?;
        let stopped = stop.try_clone().map_err(VmmError::EventFd)?;
        let unnamed = record(config, std::process::id().to_string());
        let work = move || {
            let named = claim.is_some();
            let claim = match claim {
                Some(claim) => claim,
                // A short run is over before anybody could ask for it by its process id.
                None if stops_within(&stopped, UNNAMED) => return,
                None => match fleet::claim(&unnamed) {
                    Ok(claim) => claim,
                    Err(_) => return, // nobody asked for it
                },
            };
            fleet::sweep();
            if let Err(error) = serve(&claim, &stopped, &ordered)
                && named
            {
                log::warn!("control: no orders are taken any more: {error}");
            }
        };
        let thread = thread::Builder::new()
            .name("control".into())
            .stack_size(STACK)
            .spawn(work)
            .map_err(VmmError::Thread)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // It fails only when it is signalled already.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been printed by its hook
        }
    }
}

/// What a machine's requests are about.
pub struct Ordered {
    /// To look into it.
    pub inspector: Inspector,
    /// To pause it.
    pub standstill: Arc<Standstill>,
    /// To give orders to the event loop.
    pub events: Arc<Events>,
}

impl Ordered {
    /// Answer at once what can be; the event loop answers the rest.
    fn answer(&self, request: Request, reply: Reply) {
        let answer = match request {
            Request::Inspect { topic, vcpu } => match self.inspector.inspect(&topic, vcpu) {
                Ok(seen) => Answer::Inspection(Box::new(seen)),
                Err(reason) => Answer::Refused(reason),
            },
            Request::Status => Answer::Status(self.status()),
            Request::Pause => Answer::Done {
                changed: self.standstill.pause(),
            },
            Request::Resume => Answer::Done {
                changed: self.standstill.resume(),
            },
            Request::Snapshot { dir, diff, stop } => {
                let order = Order::Snapshot { dir, diff, stop };
                return self.events.order(order, reply);
            }
            Request::Stop { seconds } => {
                return self.events.order(Order::Stop { seconds }, reply);
            }
            Request::Take { .. } => Answer::Refused("it has its command already".into()),
        };
        reply.send(answer);
    }

    fn status(&self) -> Status {
        let state = match self.standstill.is_paused() {
            true => "paused",
            false => "running",
        };
        status(state, &self.events)
    }
}

/// That this process is in `state`, and what it has cost.
pub fn status(state: &str, events: &Events) -> Status {
    Status {
        state: state.into(),
        resident_bytes: resident(),
        uptime_seconds: events.now().as_secs(),
    }
}

/// What the host has of this process in memory, its guest's included (proc_pid_statm(5)).
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0u64) * rustix::param::page_size() as u64
}

/// Whether the machine ends within so much time.
fn stops_within(stop: &EventFd, time: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(
        kvm::descriptor(stop),
        PollFlags::IN,
    )];
    let time = Timespec::try_from(time).ok();
    // A signal goes to the event loop's thread or interrupts this wait for good.
    poll(&mut fds, time.as_ref()).is_ok_and(|ready| ready > 0)
}

fn serve(claim: &Claim, stop: &EventFd, ordered: &Ordered) -> io::Result<()> {
    let listener = claim.listen()?;
    server::serve(&listener, kvm::descriptor(stop), |request, reply| {
        ordered.answer(request, reply);
    })
}
