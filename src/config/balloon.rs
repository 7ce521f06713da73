//! The memory balloon's configuration: `[SIZE][,stats=SECONDS]`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::size;
use super::table::{Separators, Table};

/// A balloon in a file as a table.
pub const TABLE: Table = Table::new("balloon", &["size"], &["stats"], Separators::Commas);
/// Largest target: the largest memory of a guest.
const MAX_TARGET: u64 = 1 << 40;
/// Longest time between two statistics, in seconds: a day.
const MAX_PERIOD: u64 = 86_400;

/// A memory balloon as the user asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// Bytes that the guest is asked to give up, 0 to 1 TiB and less than its memory.
    pub target_bytes: u64,
    /// How often the guest reports statistics of its memory, 1 s to 1 day; once if `None`.
    pub period: Option<Duration>,
}

impl FromStr for Balloon {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (target, options) = text.split_once(',').unwrap_or((text, ""));
        let target_bytes = match target {
            "" => 0,
            target => size::parse(target)
                .filter(|bytes| *bytes <= MAX_TARGET)
                .ok_or("a balloon has 0 to 1T; bytes, or a number with K, M, G or T")?,
        };
        let period = match options.split_once('=') {
            None if options.is_empty() => None,
            Some(("stats", seconds)) => {
                let seconds = seconds.parse().ok();
                let seconds = seconds.filter(|n| (1..=MAX_PERIOD).contains(n));
                let seconds = seconds.ok_or("stats= is 1 to 86400 seconds")?;
                Some(Duration::from_secs(seconds))
            }
            _ => {
                return Err(format!(
                    "'{options}' is no option of a balloon; there is stats=SECONDS"
                ));
            }
        };
        Ok(Self {
            target_bytes,
            period,
        })
    }
}

impl fmt::Display for Balloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&size::exact(self.target_bytes))?;
        match self.period {
            Some(period) => write!(f, ",stats={}", period.as_secs()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_has_a_size_and_a_period_or_neither() {
        let parse = |text: &str| text.parse::<Balloon>();
        let balloon = |target_bytes, period: Option<u64>| {
            let period = period.map(Duration::from_secs);
            Ok(Balloon {
                target_bytes,
                period,
            })
        };
        assert_eq!(parse(""), balloon(0, None));
        assert_eq!(parse("64M"), balloon(64 << 20, None));
        assert_eq!(parse("64M,stats=5"), balloon(64 << 20, Some(5)));
        assert_eq!(parse(",stats=1"), balloon(0, Some(1)));
        for wrong in ["x", "2T", "1M,stats", "1M,stats=0", "1M,other=1", "-1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
