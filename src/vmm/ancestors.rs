//! The processes that this one descends from, as far as its shell: whether that could continue it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::unistd::{Pid, getpgid, getpgrp, getppid, getsid};

use crate::sandbox::is_supervised;

/// Ancestors that are looked at to find the shell of a job.
const MAX_ANCESTORS: usize = 64;
/// Longest text of /proc/PID/stat: a name of 15 characters and some 50 numbers.
const MAX_STAT: usize = 1024;

/// Ancestors of this process in its session: those in its process group, from its parent on, and the first
/// one outside. Their files of /proc are open, as they are out of reach after the lock-down.
#[derive(Debug, Default)]
pub struct Ancestors {
    stats: Vec<File>,
    session: i32,
}

/// A process's place among others: the fields behind the name in parentheses (proc_pid_stat(5)).
struct Place {
    parent: i32,
    group: i32,
    session: i32,
}

impl Ancestors {
    /// Look for them. A session or group that began outside of this process's PID namespace is 0 here
    /// (pid_namespaces(7)).
    pub fn find() -> Self {
        let (session, group) = (getsid(None), getpgrp());
        let mut found = Self {
            stats: Vec::new(),
            session: session.map_or(0, Pid::as_raw),
        };
        let mut ancestor = getppid();
        while found.stats.len() < MAX_ANCESTORS
            && ancestor.as_raw() > 0
            && getsid(Some(ancestor)) == session
            && let Ok(stat) = File::open(format!("/proc/{ancestor}/stat"))
        {
            let outside = getpgid(Some(ancestor)) != Ok(group);
            let parent = place(&stat).map_or(0, |place| place.parent);
            found.stats.push(stat);
            if outside {
                return found;
            }
            ancestor = Pid::from_raw(parent);
        }
        // None is outside of the group.
        found.stats.clear();
        found
    }

    /// Whether a shell would continue this process if it stopped: an ancestor in the same session is outside
    /// of the process group (POSIX.1-2017, 3.264, orphaned process group). One that has ended cannot, and
    /// what it has left descends from the session's end.
    pub fn have_job_control(&self) -> bool {
        if is_supervised() {
            return true; // the supervisor looks, and continues it at once where there is no shell
        }
        let group = getpgrp().as_raw();
        for stat in &self.stats {
            match place(stat) {
                Some(place) if place.session != self.session => return false,
                Some(place) if place.group != group => return true,
                Some(_) => {}
                None => return false,
            }
        }
        false
    }
}

/// Whether a shell would continue this process if it stopped now.
pub fn has_job_control() -> bool {
    Ancestors::find().have_job_control()
}

/// What an open file says; `None` if its process has ended.
fn place(stat: &File) -> Option<Place> {
    let mut text = [0; MAX_STAT];
    let read = stat.read_at(&mut text, 0).ok()?;
    let text = String::from_utf8_lossy(text.get(..read)?);
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(1);
    let mut next = || fields.next()?.parse().ok();
    Some(Place {
        parent: next()?,
        group: next()?,
        session: next()?,
    })
}
