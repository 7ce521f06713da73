//! The checks of a machine's health. Each runs in a process beside the keeper, which so serves the machine
//! meanwhile; there is one at a time.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::streams::pipe;
use crate::fleet::health::{Check, Health, Verdict};
use crate::sandbox::fork_beside;

/// How much longer than the check itself its process may take, before it is killed.
const MARGIN: Duration = Duration::from_secs(10);
/// Most bytes of a process's answer: what is kept of the output, each byte perhaps as six characters.
const MAX_ANSWER: usize = 64 << 10;

/// Checks the machine of this name; `None` if that cannot be done now, which counts neither way.
pub type Probe = fn(&str, &Check) -> Option<Verdict>;

/// The checks of a machine since its start.
pub struct Checks {
    check: Check,
    probe: Probe,
    health: Health,
    /// When the machine started.
    since: Instant,
    /// When the next check begins, or the one that runs is given up.
    until: Instant,
    running: Option<Running>,
}

/// A check that runs.
struct Running {
    process: Pid,
    answer: OwnedFd,
    said: Vec<u8>,
    start: SystemTime,
    since_start: Duration,
}

impl Checks {
    /// Those of a machine that has just started.
    pub fn new(check: Check, probe: Probe) -> Self {
        let since = Instant::now();
        Self {
            until: since + check.interval,
            check,
            probe,
            health: Health::default(),
            since,
            running: None,
        }
    }

    /// What they have shown.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// How long there is nothing to do unless [`Checks::answer`] is ready.
    pub fn patience(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Where the check that runs answers.
    pub fn answer(&self) -> Option<BorrowedFd<'_>> {
        Some(self.running.as_ref()?.answer.as_fd())
    }

    /// Do what is due for the machine of this name, and take the answer if it is `ready`. If a check has ended
    /// that counts: whether the status has changed.
    pub fn turn(&mut self, name: impl Fn() -> String, ready: bool) -> Option<bool> {
        let late = self.until <= Instant::now();
        let Some(running) = &mut self.running else {
            return late.then(|| self.begin(&name())).flatten();
        };
        let mut over = late;
        if ready {
            let mut bytes = [0; 4096];
            match rustix::io::read(&running.answer, &mut bytes) {
                Ok(len @ 1..) => {
                    running.said.extend(bytes.iter().take(len));
                    over |= running.said.len() > MAX_ANSWER;
                }
                Err(Errno::INTR) => {}
                _ => over = true,
            }
        }
        over.then(|| self.end()).flatten()
    }

    /// Start a check, which has ended if that fails.
    fn begin(&mut self, name: &str) -> Option<bool> {
        let (start, since_start) = (SystemTime::now(), self.since.elapsed());
        let (probe, check) = (self.probe, self.check.clone());
        let begun = pipe().and_then(|(answer, theirs)| {
            let process = fork_beside(move || {
                let verdict = serde_json::to_vec(&probe(name, &check)).unwrap_or_default();
                let _ = File::from(theirs).write_all(&verdict);
            })?;
            Ok((process, answer))
        });
        match begun {
            Ok((process, answer)) => {
                self.until = Instant::now() + self.check.timeout + MARGIN;
                self.running = Some(Running {
                    process,
                    answer,
                    said: Vec::new(),
                    start,
                    since_start,
                });
                None
            }
            Err(error) => {
                let verdict = Verdict::failed(format!("no process for the check ({error})"));
                self.until = Instant::now() + self.check.interval;
                Some(self.health.add(&self.check, verdict, start, since_start))
            }
        }
    }

    /// The check that runs has answered, or takes too long.
    fn end(&mut self) -> Option<bool> {
        self.until = Instant::now() + self.check.interval;
        let running = self.running.take()?;
        end_process(running.process);
        let verdict: Option<Verdict> = serde_json::from_slice(&running.said)
            .unwrap_or_else(|_| Some(Verdict::failed("the check has not answered".into())));
        let Running {
            start, since_start, ..
        } = running;
        Some(self.health.add(&self.check, verdict?, start, since_start))
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            end_process(running.process);
        }
    }
}

fn end_process(process: Pid) {
    let _ = kill_process(process, Signal::KILL);
    let _ = rustix::io::retry_on_intr(|| waitpid(Some(process), WaitOptions::empty()));
}
