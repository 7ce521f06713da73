//! The command in the event loop: the link to the guest's init.

use std::time::Duration;

use super::super::link::Link;

/// How long the init of a booting guest may be silent before the user is told.
const INIT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the init of a restored template may be silent before another machine is booted. A tenth
/// of a second is usual where a software KVM emulates ring 0.
const RESTORED_INIT_TIMEOUT: Duration = Duration::from_secs(60);
/// The most that one turn of the event loop adds to that time. Turns are at most some seconds apart, unless
/// this process was stopped, and the guest with it.
const LONGEST_TURN: Duration = Duration::from_secs(10);

/// The link to a guest's init that runs a command.
pub struct CommandLink {
    pub link: Link,
    /// When init was told the command, and when that ended.
    pub times: (Option<Duration>, Option<Duration>),
    waited: Waited,
    /// Whether the guest was restored.
    restored: bool,
    warned: bool,
}

/// What is due about an init that is silent.
pub enum Silence {
    /// Nothing before this time is over.
    Left(Duration),
    /// Tell the user, once.
    Warn,
    /// The restored guest does not answer.
    Unanswered,
}

/// How long the guest has run without a word of its init.
struct Waited {
    total: Duration,
    /// The time up to which that is; first when the machine began to run, and one of a pool was built long
    /// before.
    until: Duration,
}

impl Waited {
    fn count(&mut self, now: Duration, paused: bool) {
        let turn = now.saturating_sub(self.until);
        self.until = now;
        if !paused {
            self.total += turn.min(LONGEST_TURN);
        }
    }
}

impl CommandLink {
    pub fn new(link: Link, began: Duration, restored: bool) -> Self {
        Self {
            link,
            times: (None, None),
            waited: Waited {
                total: Duration::ZERO,
                until: began,
            },
            restored,
            warned: false,
        }
    }

    /// Whether the command may run, as far as is known: a signal is its own.
    pub fn runs(&self) -> bool {
        self.link.greeted() && self.link.session.exit().is_none()
    }

    /// What is due at `now` about an init that has not said hello; time while the guest is `paused` does not
    /// count.
    pub fn silence(&mut self, now: Duration, paused: bool) -> Option<Silence> {
        if self.link.greeted() {
            return None;
        }
        self.waited.count(now, paused);
        let timeout = if self.restored {
            RESTORED_INIT_TIMEOUT
        } else {
            INIT_TIMEOUT
        };
        let left = timeout.saturating_sub(self.waited.total);
        if !left.is_zero() {
            return Some(Silence::Left(left));
        }
        if self.restored {
            return Some(Silence::Unanswered);
        }
        let warned = std::mem::replace(&mut self.warned, true);
        (!warned).then_some(Silence::Warn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_stands_still_is_not_waited_for() {
        let seconds = Duration::from_secs;
        let mut waited = Waited {
            total: Duration::ZERO,
            until: seconds(100),
        };
        waited.count(seconds(105), false);
        waited.count(seconds(110), true);
        waited.count(seconds(113), false);
        assert_eq!(waited.total, seconds(8));
        // This process was stopped for ten minutes.
        waited.count(seconds(713), false);
        assert_eq!(waited.total, seconds(8) + LONGEST_TURN);
    }
}
