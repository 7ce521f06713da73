//! A machine as `hull ps` shows it.

use std::time::Duration;

use serde::Serialize;

use super::status::{Course, up};
use crate::control::{self, Action, Answer, ControlError};
use crate::fleet::Found;
use crate::fleet::health::HealthStatus;
use crate::fleet::kept::{Kept, KeptRecord};
use crate::supervisor::control_group::Usage;

/// How long a machine may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A machine as a line of the table.
#[derive(Serialize)]
pub struct Line {
    pub name: String,
    pub pid: u32,
    pub state: String,
    pub cpus: u8,
    pub memory_bytes: u64,
    /// `None` if the machine does not answer.
    pub resident_bytes: Option<u64>,
    pub uptime_seconds: u64,
    pub version: String,
    /// How it ended, if it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u8>,
    /// Its course, as `Up 5 minutes (healthy)`.
    pub course: String,
    /// What its checks have shown, if it has some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthStatus>,
    /// How often its keeper has started it again, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restarts: Option<u32>,
    /// What its control group uses and may use, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Usage>,
}

impl Line {
    /// The line of a machine that has ended; none if it runs.
    pub fn ended(course: Course, record: KeptRecord) -> Option<Self> {
        let (state, end) = course.ended()?;
        let started = course.state.started.unwrap_or(record.created);
        Some(Self {
            name: record.name,
            pid: 0,
            state,
            cpus: 0,
            memory_bytes: 0,
            resident_bytes: None,
            uptime_seconds: end.finished.saturating_sub(started),
            version: String::new(),
            status: Some(end.status),
            course: course.past().unwrap_or_default(),
            health: course.state.health.map(|health| health.status),
            restarts: Some(course.state.restarts),
            limits: None,
        })
    }
}

/// The line of a machine; none if it has ended meanwhile.
pub fn line(machine: &Found) -> Option<Line> {
    let record = &machine.record;
    let mut line = Line {
        name: record.name.clone(),
        pid: record.pid,
        state: "unresponsive".into(),
        cpus: record.cpus,
        memory_bytes: record.memory_bytes,
        resident_bytes: None,
        uptime_seconds: record.age(),
        version: record.version.clone(),
        status: None,
        course: String::new(),
        health: None,
        restarts: None,
        limits: Usage::of(&record.groups),
    };
    match control::ask_within(machine, Action::Status, ANSWER_TIMEOUT) {
        Ok(Answer::Status(status)) => {
            line.state = status.state;
            line.resident_bytes = status.resident_bytes;
            line.uptime_seconds = status.uptime_seconds;
        }
        Err(ControlError::Stopped { .. }) => line.state = "stopped".into(),
        Err(ControlError::Lost { .. }) if machine.is_stopped() => line.state = "stopped".into(),
        Err(ControlError::Lost { .. }) => {}
        Err(ControlError::Connect { error, .. })
            if error.kind() == std::io::ErrorKind::WouldBlock => {}
        Err(ControlError::Connect { .. } | ControlError::Ended { .. }) => {
            if machine.is_gone() {
                return None;
            }
            line.state = "starting".into();
        }
        // A machine of another version of hull; it runs all the same.
        Ok(_) | Err(_) => line.state = "unknown".into(),
    }
    let course = Kept::open(&line.name).ok().map(|kept| Course::of(&kept));
    line.course = up(&line.state, line.uptime_seconds, course.as_ref());
    if let Some(course) = course {
        line.health = course.state.health.map(|health| health.status);
        line.restarts = Some(course.state.restarts);
    }
    Some(line)
}
