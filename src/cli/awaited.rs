//! Waiting for a machine of an application that others need.

use std::thread;
use std::time::Duration;

use anyhow::bail;

use crate::compose::Opened;
use crate::compose::plan::there;
use crate::compose::service::{Condition, Need};
use crate::fleet::health::{Health, HealthStatus};
use crate::fleet::kept::Kept;
use crate::fleet::log::LogReader;

/// How often a machine is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(50);
/// Most lines of what it wrote that are told.
const MAX_TOLD_LINES: usize = 3;
/// Most characters of them.
const MAX_TOLD: usize = 500;

/// Wait until another service is as it should be.
///
/// # Errors
/// It will not be: what it wrote last.
pub fn wait_for(opened: &Opened, need: &Need) -> anyhow::Result<()> {
    let name = &need.service.text;
    if need.condition == Condition::Started {
        return Ok(()); // it was started before
    }
    let there = there(&opened.name).into_iter();
    let machine = there
        .filter(|it| it.service == *name)
        .map(|it| it.machine)
        .next();
    let kept = Kept::open(&machine.unwrap_or_default())?;
    let missed = match need.condition {
        Condition::Healthy => until_healthy(&kept).err(),
        _ => Some(kept.wait().status)
            .filter(|status| *status != 0)
            .map(|status| format!("has ended with status {status}; it was to be successful")),
    };
    if let Some(missed) = missed {
        bail!(
            "{}: line {}: service {name} {missed}",
            opened.path.display(),
            need.service.line
        );
    }
    Ok(())
}

/// Wait until a check of a machine's health was successful; else what became of it. One that is started again is
/// waited for.
fn until_healthy(kept: &Kept) -> Result<(), String> {
    loop {
        // In this order: what is known of its health is of a machine that runs.
        let health = kept.state().health;
        if !kept.runs() {
            let status = kept.end().map_or(0, |end| end.status);
            let wrote = wrote(kept);
            return Err(format!(
                "has ended with status {status}; it was to be healthy{wrote}"
            ));
        }
        match health.as_ref().map(|it| it.status) {
            Some(HealthStatus::Healthy) => return Ok(()),
            Some(HealthStatus::Unhealthy) => {
                let said = health.map_or_else(String::new, |it| said(&it));
                return Err(format!("is unhealthy; its check{said}"));
            }
            Some(HealthStatus::Starting) | None => thread::sleep(LOOK),
        }
    }
}

/// How the last check ended.
fn said(health: &Health) -> String {
    let Some(last) = health.log.last() else {
        return " has failed".into();
    };
    match told(last.output.lines()) {
        text if text.is_empty() => format!(" has ended with status {}", last.exit_code),
        text => format!(" has ended with status {}: {text}", last.exit_code),
    }
}

/// What a machine wrote last.
fn wrote(kept: &Kept) -> String {
    let last = LogReader::open(&kept.here()).and_then(|mut log| log.last(MAX_TOLD_LINES));
    let last = last.unwrap_or_default();
    match told(last.iter().map(|line| line.log.as_str())) {
        text if text.is_empty() => "; it wrote nothing".into(),
        text => format!("; it wrote: {text}"),
    }
}

/// The last of these lines of a guest, which may hold anything, on one line.
fn told<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let lines: Vec<&str> = lines
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let from = lines.len().saturating_sub(MAX_TOLD_LINES);
    let text = lines.get(from..).unwrap_or_default().join("; ");
    let plain = text.chars().filter(|it| !it.is_control());
    plain.take(MAX_TOLD).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_wrote_is_told_on_one_short_line() {
        let lines = ["zero", "one\n", "", "\x1b[31mtwo\x07", "three\r\n"];
        assert_eq!(told(lines.into_iter()), "one; [31mtwo; three");
        assert_eq!(told([].into_iter()), "");
        let long = "é".repeat(100_000);
        assert_eq!(told([&*long].into_iter()).chars().count(), MAX_TOLD);
    }
}
