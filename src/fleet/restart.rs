//! When the keeper of a machine in the background starts it again: policies and waiting times are docker's
//! (moby, restartmanager/restartmanager.go).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The first wait, and the one after a machine that ran for [`LONG`].
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// A machine that ran so long did not fail at its start.
const LONG: Duration = Duration::from_secs(10);

/// When a machine is started again after its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// After a status other than 0, at most so often; 0 for any number of times.
    OnFailure(u32),
    /// Always.
    Always,
    /// Always; but after a reboot of the host only if the user had not stopped it.
    UnlessStopped,
}

/// A text that is no policy.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PolicyError {
    /// The name of none.
    #[error("write no, on-failure, on-failure:N, always or unless-stopped")]
    Unknown,
    /// Something behind `on-failure:` that is no number.
    #[error(
        "the maximum retry count {0:?} is no number from 0 to 4294967295; write as in on-failure:3, or on-failure for \
         any number of times"
    )]
    Count(String),
    /// A number behind another policy.
    #[error("maximum retry count cannot be used with restart policy '{0}', only with on-failure")]
    NoCount(String),
}

impl FromStr for RestartPolicy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let (name, count) = match text.split_once(':') {
            None => (text, None),
            Some((name, count)) => (name, Some(count)),
        };
        let policy = match name {
            "no" => Self::No,
            "always" => Self::Always,
            "unless-stopped" => Self::UnlessStopped,
            "on-failure" => {
                let parsed = count.map_or(Ok(0), str::parse);
                let wrong = || PolicyError::Count(count.unwrap_or_default().into());
                return parsed.map(Self::OnFailure).map_err(|_| wrong());
            }
            _ => return Err(PolicyError::Unknown),
        };
        match count {
            None => Ok(policy),
            Some(_) => Err(PolicyError::NoCount(name.into())),
        }
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::OnFailure(most @ 1..) => write!(f, ":{most}"),
            _ => Ok(()),
        }
    }
}

impl RestartPolicy {
    /// Its name without a count.
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure(_) => "on-failure",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
        }
    }

    /// How often it starts a machine at most; 0 for any number of times.
    pub fn most(self) -> u32 {
        match self {
            Self::OnFailure(most) => most,
            _ => 0,
        }
    }

    /// Whether a machine that has ended with `status`, and was started again `restarts` times, is started once
    /// more. One that the user has `stopped` is not.
    pub fn restarts(self, status: u8, stopped: bool, restarts: u32) -> bool {
        !stopped
            && match self {
                Self::No => false,
                Self::OnFailure(most) => status != 0 && (most == 0 || restarts < most),
                Self::Always | Self::UnlessStopped => true,
            }
    }

    /// Whether a machine that does not run since the host was started is started then. It ended with `status`, of
    /// itself, by the user if `stopped`, or with the host.
    pub fn starts_after_boot(self, status: u8, stopped: bool) -> bool {
        match self {
            Self::Always => true,
            policy => policy.restarts(status, stopped, 0),
        }
    }
}

/// How long to wait before a machine is started again: twice as long each time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff(Option<Duration>);

impl Backoff {
    /// The wait after a machine that `ran` so long.
    pub fn next(&mut self, ran: Duration) -> Duration {
        let wait = match self.0.filter(|_| ran < LONG) {
            None => FIRST,
            Some(last) => (last * 2).min(LONGEST),
        };
        self.0 = Some(wait);
        wait
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policies() -> impl Strategy<Value = RestartPolicy> {
        prop_oneof![
            Just(RestartPolicy::No),
            Just(RestartPolicy::Always),
            Just(RestartPolicy::UnlessStopped),
            any::<u32>().prop_map(RestartPolicy::OnFailure),
        ]
    }

    proptest! {
        #[test]
        fn what_is_printed_is_parsed(policy in policies()) {
            prop_assert_eq!(policy.to_string().parse(), Ok(policy));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<RestartPolicy>();
        }

        #[test]
        fn a_policy_ends(policy in policies(), status in any::<u8>(), restarts in any::<u32>()) {
            prop_assert!(!policy.restarts(status, true, restarts));
            if let RestartPolicy::OnFailure(most @ 1..) = policy {
                prop_assert!(!policy.restarts(status, false, restarts.max(most)));
            }
        }

        #[test]
        fn waits_double_up_to_a_minute(runs in prop::collection::vec(0u64..20, 1..40)) {
            let mut backoff = Backoff::default();
            let mut last = None;
            for seconds in runs {
                let wait = backoff.next(Duration::from_secs(seconds));
                let expected = match last {
                    Some(last) if seconds < 10 => Duration::min(last * 2, LONGEST),
                    _ => FIRST,
                };
                prop_assert_eq!(wait, expected);
                last = Some(wait);
            }
        }
    }

    #[test]
    fn what_is_no_policy_is_told() {
        let wrong = |text: &str| {
            text.parse::<RestartPolicy>()
                .expect_err("wrong")
                .to_string()
        };
        assert!(wrong("on-failure:-1").contains("\"-1\" is no number"));
        assert!(wrong("on-failure:").contains("\"\" is no number"));
        assert!(wrong("always:3").contains("cannot be used with restart policy 'always'"));
        assert!(wrong("sometimes").starts_with("write no, on-failure"));
        assert_eq!("on-failure:0".parse(), Ok(RestartPolicy::OnFailure(0)));
    }

    #[test]
    fn after_a_boot_always_starts_what_was_stopped() {
        let after = |policy: RestartPolicy, stopped| policy.starts_after_boot(137, stopped);
        assert!(after(RestartPolicy::Always, true));
        assert!(!after(RestartPolicy::UnlessStopped, true));
        assert!(after(RestartPolicy::UnlessStopped, false));
        assert!(after(RestartPolicy::OnFailure(1), false));
        assert!(!after(RestartPolicy::No, false));
    }
}
