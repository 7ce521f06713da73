//! The health of a machine in the background: how it is checked, and what the checks said. Rules and defaults
//! are docker's (moby, daemon/health.go).

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// Most checks that are kept.
const MAX_LOG: usize = 5;
/// Most bytes of what a check wrote that are kept.
pub const MAX_OUTPUT: usize = 4096;
/// What stands behind an output that was cut.
const CUT: &str = "...";
/// Time from one check to the next, unless something else is said.
pub const INTERVAL: Duration = Duration::from_secs(30);
/// Longest time of a check, unless something else is said.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// Failures after which a machine is unhealthy, unless something else is said.
pub const RETRIES: u32 = 3;

/// How a machine's health is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What runs.
    pub test: Test,
    /// Time from the machine's start, or the end of a check, to the next check.
    pub interval: Duration,
    /// Longest time of a check, which is killed then.
    pub timeout: Duration,
    /// Time after the machine's start in which failures do not count.
    pub start_period: Duration,
    /// Failures one after another that make it unhealthy, 1 or more.
    pub retries: u32,
}

/// What a check runs in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Test {
    /// A program with its arguments.
    Program(Vec<String>),
    /// A line for the shell.
    Shell(String),
}

impl Test {
    /// The program with its arguments.
    pub fn argv(&self) -> Vec<String> {
        match self {
            Self::Program(argv) => argv.clone(),
            Self::Shell(line) => vec!["/bin/sh".into(), "-c".into(), line.clone()],
        }
    }

    /// As an image has it: `CMD` or `CMD-SHELL`, and what follows.
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Program(argv) => [&["CMD".into()][..], argv].concat(),
            Self::Shell(line) => vec!["CMD-SHELL".into(), line.clone()],
        }
    }
}

/// What the checks have shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Nothing yet.
    #[default]
    Starting,
    /// The last check was successful, or not yet too many after it failed.
    Healthy,
    /// Too many failed.
    Unhealthy,
}

impl HealthStatus {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// A machine's health; its JSON is that of docker's `State.Health`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    /// What the checks have shown.
    pub status: HealthStatus,
    /// How many failed one after another.
    pub failing_streak: u32,
    /// The last of them, the oldest first.
    pub log: Vec<Checked>,
}

/// A check that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Checked {
    /// When it began, as RFC 3339 has it.
    pub start: String,
    /// When it ended.
    pub end: String,
    /// Its status; -1 if it has none.
    pub exit_code: i32,
    /// What it wrote, or why it has no status.
    pub output: String,
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Its status; -1 if it has none.
    pub exit_code: i32,
    /// What it wrote, or why it has no status.
    pub output: String,
}

impl Verdict {
    /// Of a check that has no status, for this reason.
    pub fn failed(reason: String) -> Self {
        Self {
            exit_code: -1,
            output: reason,
        }
    }
}

impl Health {
    /// Count a check that began at `start`, so long after the machine: whether the status has changed.
    pub fn add(
        &mut self,
        check: &Check,
        verdict: Verdict,
        start: SystemTime,
        since_start: Duration,
    ) -> bool {
        let before = self.status;
        if self.log.len() >= MAX_LOG {
            self.log.drain(..=self.log.len() - MAX_LOG);
        }
        let show = |time| humantime::format_rfc3339_nanos(time).to_string();
        self.log.push(Checked {
            start: show(start),
            end: show(SystemTime::now()),
            exit_code: verdict.exit_code,
            output: cut(verdict.output),
        });
        let counts = self.status != HealthStatus::Starting || since_start >= check.start_period;
        if verdict.exit_code == 0 {
            self.failing_streak = 0;
            self.status = HealthStatus::Healthy;
        } else if counts {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= check.retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        self.status != before
    }
}

/// `text`, at most [`MAX_OUTPUT`] bytes of it.
fn cut(mut text: String) -> String {
    if text.len() <= MAX_OUTPUT {
        return text;
    }
    let most = MAX_OUTPUT - CUT.len();
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text + CUT
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(retries: u32, start_period: u64) -> Check {
        Check {
            test: Test::Shell("true".into()),
            interval: INTERVAL,
            timeout: TIMEOUT,
            start_period: Duration::from_secs(start_period),
            retries,
        }
    }

    proptest! {
        /// The status is what docker's rules say of the whole history.
        #[test]
        fn the_status_follows_the_checks(
            codes in prop::collection::vec(-1..2, 0..30),
            retries in 1u32..5,
            start_period in 0u64..10,
        ) {
            let check = check(retries, start_period);
            let mut health = Health::default();
            let mut last_good = None;
            for (at, code) in codes.iter().enumerate() {
                let verdict = Verdict { exit_code: *code, output: at.to_string() };
                let before = health.status;
                let now = SystemTime::now();
                let changed = health.add(&check, verdict, now, Duration::from_secs(at as u64));
                prop_assert_eq!(changed, before != health.status);
                if *code == 0 {
                    last_good = Some(at);
                }
                // Those that count: after the last good one, or from the end of the start period on.
                let from = last_good.map_or(start_period as usize, |good| good + 1);
                let failed = (at + 1).saturating_sub(from) as u32;
                prop_assert_eq!(health.failing_streak, failed);
                let expected = match (failed >= retries, last_good) {
                    (true, _) => HealthStatus::Unhealthy,
                    (false, Some(_)) => HealthStatus::Healthy,
                    (false, None) => HealthStatus::Starting,
                };
                prop_assert_eq!(health.status, expected);
                prop_assert!(health.log.len() <= MAX_LOG);
                prop_assert_eq!(&health.log.last().expect("one").output, &at.to_string());
            }
        }

        #[test]
        fn outputs_are_bounded(text in "[aé€😀]{0,3000}") {
            let short = cut(text.clone());
            prop_assert!(short.len() <= MAX_OUTPUT);
            prop_assert!(short == text || text.starts_with(short.trim_end_matches(CUT)));
        }
    }

    #[test]
    fn its_json_is_dockers() {
        let mut health = Health::default();
        let verdict = Verdict::failed("no".into());
        health.add(
            &check(1, 0),
            verdict,
            SystemTime::UNIX_EPOCH,
            Duration::ZERO,
        );
        let json = serde_json::to_value(&health).expect("JSON");
        assert_eq!(json["Status"], "unhealthy");
        assert_eq!(json["FailingStreak"], 1);
        assert_eq!(json["Log"][0]["ExitCode"], -1);
        assert_eq!(json["Log"][0]["Start"], "1970-01-01T00:00:00.000000000Z");
        assert_eq!(json["Log"][0]["Output"], "no");
    }
}
