//! What is known of a machine in the background, also when it does not run; names are those of docker inspect.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::cli::table::count;
use crate::control::{self, Action, Answer};
use crate::fleet::health::{Check, Health};
use crate::fleet::kept::{Kept, Phase};
use crate::fleet::{self, Found};

/// How long its hull may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The time of what has not happened, as docker has it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Members of its JSON.
pub fn members(kept: &Kept) -> Value {
    let state = kept.state();
    let phase = phase(kept);
    let found = fleet::find(&kept.record.name).ok();
    let paused = found.as_ref().is_some_and(is_paused);
    let end = kept.end().or(state.last);
    let status = match (phase, paused) {
        (_, true) => "paused",
        (Phase::Starting, _) => "created",
        (Phase::Running, _) => "running",
        (Phase::Restarting, _) => "restarting",
        (Phase::Exited, _) => "exited",
    };
    let policy = kept.record.restart;
    json!({
        "Name": kept.record.name,
        "Created": time(Some(kept.record.created)),
        "State": {
            "Status": status,
            // One that waits for its next start counts as running there.
            "Running": matches!(phase, Phase::Running | Phase::Restarting),
            "Paused": paused,
            "Restarting": phase == Phase::Restarting,
            "Pid": found.map_or(0, |found| found.record.pid),
            "ExitCode": end.filter(|_| phase != Phase::Running).map_or(0, |end| end.status),
            "StartedAt": time(state.started),
            "FinishedAt": time(end.map(|end| end.finished)),
            "Health": state.health,
        },
        "RestartCount": state.restarts,
        "HostConfig": {
            "RestartPolicy": { "Name": policy.name(), "MaximumRetryCount": policy.most() },
        },
        "Config": { "Healthcheck": kept.check().map(|check| healthcheck(&check)) },
    })
}

/// Lines about it.
pub fn draw(kept: &Kept) -> String {
    let state = kept.state();
    let mut text = String::new();
    match (phase(kept), state.last) {
        (Phase::Exited, _) => {
            let status = kept.end().map_or(0, |end| end.status);
            text += &format!("{}: ended with status {status}\n", kept.record.name);
        }
        (Phase::Restarting, Some(end)) => {
            let name = &kept.record.name;
            text += &format!("{name}: restarting after status {}\n", end.status);
        }
        _ => {}
    }
    let restarts = count(state.restarts.into(), "restart");
    text += &format!("restart policy: {}, {restarts}\n", kept.record.restart);
    text + &state.health.as_ref().map(draw_health).unwrap_or_default()
}

fn draw_health(health: &Health) -> String {
    let failures = count(health.failing_streak.into(), "failure");
    let mut text = format!("health: {}, {failures} in a row\n", health.status.name());
    for checked in &health.log {
        let output = checked.output.trim_end().lines().next_back();
        let output = output.unwrap_or_default().chars();
        let output: String = output.filter(|it| !it.is_control()).take(100).collect();
        let line = format!("  {} status {} {output}", checked.start, checked.exit_code);
        text += line.trim_end();
        text += "\n";
    }
    text
}

/// Where it is.
fn phase(kept: &Kept) -> Phase {
    match kept.runs() {
        true => kept.state().phase,
        false => Phase::Exited,
    }
}

fn is_paused(found: &Found) -> bool {
    let answer = control::ask_within(found, Action::Status, ANSWER_TIMEOUT);
    matches!(answer, Ok(Answer::Status(status)) if status.state == "paused")
}

fn time(seconds: Option<u64>) -> String {
    let at = seconds.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    at.map_or_else(
        || NEVER.into(),
        |at| humantime::format_rfc3339(at).to_string(),
    )
}

/// How its health is checked, as docker has it: times are in nanoseconds.
fn healthcheck(check: &Check) -> Value {
    json!({
        "Test": check.test.words(),
        "Interval": nanoseconds(check.interval),
        "Timeout": nanoseconds(check.timeout),
        "StartPeriod": nanoseconds(check.start_period),
        "Retries": check.retries,
    })
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
