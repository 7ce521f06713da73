//! Keeps machines ready for commands: each is a process of its own ([`super::member`]).
//!
//! A process stays as long as the pipe that is its standard input: whatever happens to the pool, its
//! waiting machines end in good order. On its standard output it says how far it is, until that is
//! its customer's.

use std::io::{self, Read};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGUSR1, SIGUSR2, SIGWINCH};

use super::error::LaunchError;
use super::images::prepare;
use crate::config::Machine;
use crate::fleet;
use crate::templates::Cache;
use crate::vmm::Signals;

/// How often it is tried to make a template.
const TRIES: u32 = 3;
/// Machines in a row that may fail, once the pool was full, and how long it waits after each.
const MAX_FAILURES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// How long machines may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// What a machine says of itself: that it waits for a command.
pub(super) const READY: u8 = b'r';
/// That it has one.
pub(super) const TAKEN: u8 = b't';

/// Keep so many `machines` ready until a signal comes. `start` makes the command of a process that
/// calls [`super::member::run`] for the same `machine`; `progress` gets how many machines are
/// ready until all have been once.
///
/// # Errors
/// No such machine can be made ready.
pub fn keep(
    machines: usize,
    machine: Machine,
    signals: Signals,
    start: &dyn Fn() -> Command,
    progress: &mut dyn FnMut(usize),
) -> Result<(), LaunchError> {
    // Refused once, and not by each of them.
    Cache::made()?;
    prepare(machine, None)?;
    let keeper = Keeper {
        start,
        signals,
        members: Vec::new(),
        busy: Vec::new(),
        was_full: false,
        failures: 0,
        built: 0,
    };
    keeper.keep(machines, progress)
}

/// A machine that waits, or will.
struct Member {
    child: Child,
    /// Open as long as it is to wait.
    _stay: ChildStdin,
    says: ChildStdout,
    ready: bool,
    taken: bool,
}

struct Keeper<'a> {
    /// A process that becomes a member.
    start: &'a dyn Fn() -> Command,
    signals: Signals,
    members: Vec<Member>,
    /// Those that run a command.
    busy: Vec<Child>,
    was_full: bool,
    /// Machines in a row that have failed, or have made a template.
    failures: u32,
    built: u32,
}

impl Keeper<'_> {
    fn keep(mut self, machines: usize, progress: &mut dyn FnMut(usize)) -> Result<(), LaunchError> {
        loop {
            // One first, which makes the template.
            let first = !self.was_full && !self.members.iter().any(|member| member.ready);
            let wanted = if first { 1 } else { machines };
            while self.members.len() < wanted {
                let member = Member::start((self.start)()).map_err(LaunchError::Spawn);
                self.members.push(member?);
            }
            let ready = self.members.iter().filter(|member| member.ready).count();
            if !self.was_full {
                progress(ready);
            }
            self.was_full |= ready == machines;
            if self.wait()? {
                self.end();
                return Ok(());
            }
            let listened = self.listen();
            self.reap();
            if let Err(error) = listened {
                self.end();
                return Err(error);
            }
        }
    }

    /// Wait until there is something to do; whether the pool is to end.
    fn wait(&mut self) -> Result<bool, LaunchError> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN)];
        for member in &self.members {
            fds.push(PollFd::new(&member.says, PollFlags::IN));
        }
        // No descriptor says that one that runs a command has ended.
        let now_and_then = Timespec::try_from(PAUSE).ok();
        let timeout = now_and_then.as_ref().filter(|_| !self.busy.is_empty());
        match poll(&mut fds, timeout) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(LaunchError::system("wait for machines")(error)),
        }
        drop(fds);
        let signals = self.signals.take().into_iter();
        let mut ends = signals.filter(|signal| ![SIGWINCH, SIGUSR1, SIGUSR2].contains(signal));
        Ok(ends.next().is_some())
    }

    /// Hear what the machines say.
    fn listen(&mut self) -> Result<(), LaunchError> {
        let mut waiting = Vec::new();
        for mut member in self.members.drain(..) {
            if member.hear() {
                if member.ready {
                    (self.failures, self.built) = (0, 0);
                }
                waiting.push(member);
            } else if member.ready || member.taken {
                self.busy.push(member.child);
            } else {
                let status = member.child.wait();
                let status = status.map_err(LaunchError::system("wait for a machine"))?;
                if status.success() {
                    self.built += 1;
                } else {
                    self.failures += 1;
                }
            }
        }
        self.members = waiting;
        if self.built > TRIES {
            return Err(LaunchError::NoTemplate);
        }
        let most = if self.was_full { MAX_FAILURES } else { 1 };
        if self.failures >= most {
            return Err(LaunchError::NotReady);
        }
        if self.failures > 0 {
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// See to those that have ended.
    fn reap(&mut self) {
        let before = self.busy.len();
        self.busy
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if self.busy.len() < before {
            fleet::sweep(); // of one that was killed
        }
    }

    /// Have those that wait leave.
    fn end(&mut self) {
        let until = Instant::now() + GRACE;
        let mut leaving = Vec::new();
        for member in self.members.drain(..) {
            if !member.ready {
                let _ = kill_process(Pid::from_child(&member.child), Signal::TERM);
            }
            leaving.push((member.child, member.says, member.taken));
        }
        for (mut child, mut says, taken) in leaving {
            let left = until.saturating_duration_since(Instant::now());
            if taken || last_words(&mut says, left) {
                continue;
            }
            let _ = child.kill(); // it hangs, or has ended
            let _ = child.wait();
        }
        fleet::sweep();
    }
}

/// Hear a machine out; whether it has got a command meanwhile.
fn last_words(says: &mut ChildStdout, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(says, PollFlags::IN)];
        let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        if fds[0].revents().is_empty() && Instant::now() >= until {
            return false;
        }
        let mut words = [0; 16];
        match says.read(&mut words) {
            Ok(0) | Err(_) => return false,
            Ok(read) if words.iter().take(read).any(|word| *word == TAKEN) => return true,
            Ok(_) => {}
        }
    }
}

impl Member {
    fn start(mut command: Command) -> io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stay), Some(says)) => Ok(Self {
                child,
                _stay: stay,
                says,
                ready: false,
                taken: false,
            }),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Hear what it says, if it says anything; whether it still waits.
    fn hear(&mut self) -> bool {
        let mut fds = [PollFd::new(&self.says, PollFlags::IN)];
        let now = Timespec::default();
        if !matches!(poll(&mut fds, Some(&now)), Ok(ready) if ready > 0) {
            return true;
        }
        let mut words = [0; 16];
        let read = self.says.read(&mut words).unwrap_or(0);
        for word in words.iter().take(read) {
            self.ready |= *word == READY;
            self.taken |= *word == TAKEN;
        }
        read > 0 && !self.taken
    }
}
