//! What `hull ps` says of a machine's course, in docker's words.

use crate::cli::table::duration;
use crate::fleet::health::HealthStatus;
use crate::fleet::kept::{Kept, KeptEnd, KeptState, now};

/// What is known of a machine in the background, besides what its hull says.
pub struct Course {
    pub state: KeptState,
    /// How it ended for good.
    pub end: Option<KeptEnd>,
}

impl Course {
    /// Of a machine, if it was started in the background.
    pub fn of(kept: &Kept) -> Self {
        Self {
            state: kept.state(),
            end: kept.end(),
        }
    }

    /// The state of a machine without a hull, and how it ended: it has ended for good, or its keeper is about to start
    /// it again. `None` for one that has not run yet.
    pub fn ended(&self) -> Option<(String, KeptEnd)> {
        match (self.end, self.state.last) {
            (Some(end), _) => Some((format!("exited ({})", end.status), end)),
            (None, Some(end)) => Some(("restarting".into(), end)),
            (None, None) => None,
        }
    }

    /// `Exited (0) 5 minutes ago`, if it has.
    pub fn past(&self) -> Option<String> {
        let (state, end) = self.ended()?;
        let what = match state.as_str() {
            "restarting" => "Restarting",
            _ => "Exited",
        };
        let ago = duration(now().saturating_sub(end.finished));
        Some(format!("{what} ({}) {ago} ago", end.status))
    }

    /// `(healthy)`, if that is checked.
    fn health(&self) -> Option<&'static str> {
        Some(match self.state.health.as_ref()?.status {
            HealthStatus::Starting => " (health: starting)",
            HealthStatus::Healthy => " (healthy)",
            HealthStatus::Unhealthy => " (unhealthy)",
        })
    }
}

/// `Up 5 minutes (healthy)`, of a machine in this state.
pub fn up(state: &str, seconds: u64, course: Option<&Course>) -> String {
    let more = match state {
        "paused" => Some(" (Paused)"),
        _ => course.and_then(Course::health),
    };
    format!("Up {}{}", duration(seconds), more.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::health::Health;

    #[test]
    fn it_is_told_as_docker_does() {
        let finished = now();
        let mut course = Course {
            state: KeptState::default(),
            end: Some(KeptEnd {
                status: 3,
                finished,
            }),
        };
        assert_eq!(course.past().as_deref(), Some("Exited (3) 0 seconds ago"));
        course.state.last = course.end.take();
        assert_eq!(
            course.past().as_deref(),
            Some("Restarting (3) 0 seconds ago")
        );
        course.state.last = None;
        assert_eq!(course.past(), None);
        course.state.health = Some(Health::default());
        assert_eq!(
            up("running", 61, Some(&course)),
            "Up 1 minute (health: starting)"
        );
        assert_eq!(up("paused", 61, Some(&course)), "Up 1 minute (Paused)");
        assert_eq!(up("running", 2, None), "Up 2 seconds");
    }
}
