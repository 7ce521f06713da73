//! What vCPUs and devices report, and how the event loop is woken for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::action_queue::ActionQueue;
use super::marks::{self, Mark};
use super::timeline::Timeline;
use crate::control::{Action, Reply};
use crate::devices::{MachineEvents, MarkSource};
use crate::sync::{EventFd, lock};
use crate::trace::{self, Trace};

/// Limit of marks that are kept; a guest may set any number.
const MAX_MARKS: usize = 64;

/// Why no vCPU may enter the guest again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    /// The guest powered off (ACPI S5).
    PoweredOff,
    /// The guest reset the machine, by the i8042 or the ACPI reset register.
    Reset,
    /// All vCPUs have halted with interrupts off, or the kernel says that it does nothing any more.
    Halted,
    /// [`Action::Kill`], or the timeout of [`Action::Stop`].
    Killed,
    /// A vCPU shut down by a triple fault.
    TripleFault {
        /// RIP of the vCPU.
        rip: u64,
    },
    /// KVM or hull cannot continue.
    Failed {
        /// RIP of the vCPU.
        rip: u64,
        /// What KVM or hull reports.
        reason: String,
    },
}

/// Shared by the vCPU threads, the devices and the event loop.
///
/// Lock order: a device's lock, then any one of these; they are never held together.
pub struct Events {
    timeline: Arc<Timeline>,
    stopping: AtomicBool,
    wake: EventFd,
    end: Mutex<Option<GuestEnd>>,
    marks: Mutex<Vec<Mark>>,
    trace: Option<Arc<Trace>>,
    actions: ActionQueue,
}

impl Events {
    /// Events of a machine with this clock; `wake` is signalled to wake the event loop.
    pub fn new(timeline: Arc<Timeline>, wake: EventFd) -> Self {
        Self {
            timeline,
            stopping: AtomicBool::new(false),
            wake,
            end: Mutex::new(None),
            marks: Mutex::new(Vec::new()),
            trace: None,
            actions: ActionQueue::default(),
        }
    }

    /// Record marks in a trace, too.
    pub fn traced(mut self, trace: Option<Arc<Trace>>) -> Self {
        self.trace = trace;
        self
    }

    /// Wake the event loop.
    pub fn wake(&self) {
        self.wake.raise();
    }

    /// The file descriptor that [`Events::wake`] signals.
    pub fn waker(&self) -> &EventFd {
        &self.wake
    }

    /// Note the guest's end, and stop the vCPUs; the first end counts.
    pub fn finish(&self, end: GuestEnd) {
        lock(&self.end).get_or_insert(end);
        self.stop();
    }

    /// Let no vCPU enter the guest again.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether vCPUs are to stop.
    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// How the guest ended, if it did.
    pub fn end(&self) -> Option<GuestEnd> {
        lock(&self.end).clone()
    }

    /// The marks so far, oldest first.
    pub fn marks(&self) -> Vec<Mark> {
        lock(&self.marks).clone()
    }

    /// The machine's clock, and what hull did by it.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Time since the machine's clock started.
    pub fn now(&self) -> Duration {
        self.timeline.now()
    }

    /// Have the event loop carry out `action` and give the answer to `reply`.
    pub fn act(&self, action: Action, reply: Reply) {
        self.actions.put(action, reply);
        self.wake();
    }

    /// Actions that wait for the event loop.
    pub fn actions(&self) -> &ActionQueue {
        &self.actions
    }
}

impl MachineEvents for Events {
    fn reset(&self) {
        self.finish(GuestEnd::Reset);
    }

    fn power_off(&self) {
        self.finish(GuestEnd::PoweredOff);
    }

    fn mark(&self, source: MarkSource, code: u8) {
        let at = self.now();
        if let Some(trace) = &self.trace {
            let mark = trace::Event::Mark(marks::name(source, code));
            trace.record_at(trace::nanoseconds(at), mark);
        }
        let mut marks = lock(&self.marks);
        // The first of a kind counts: a kernel that writes to the port to pass time writes often.
        let known = |mark: &Mark| (mark.source, mark.code) == (source, code);
        if marks.len() < MAX_MARKS && !marks.iter().any(known) {
            marks.push(Mark { source, code, at });
        }
    }

    fn warn(&self, device: &str, what: &str) {
        log::warn!(target: "hull::devices", "{device}: {what}");
    }
}
