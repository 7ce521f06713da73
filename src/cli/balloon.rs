//! What follows `--balloon`: how much memory the guest is to do without.

use std::time::Duration;

use super::run::size;
pub use crate::vmm::Balloon;

/// Parse `[SIZE][,stats=SECONDS]`.
pub fn parse(text: &str) -> Result<Balloon, String> {
    let (target, options) = text.split_once(',').unwrap_or((text, ""));
    let target_bytes = match target {
        "" => 0,
        target => size(target)
            .filter(|bytes| *bytes <= 1 << 40)
            .ok_or("a balloon has 0 to 1T; bytes, or a number with K, M, G or T")?,
    };
    let period = match options.split_once('=') {
        None if options.is_empty() => None,
        Some(("stats", seconds)) => {
            let seconds = seconds.parse().ok().filter(|n| (1..=86_400).contains(n));
            let seconds = seconds.ok_or("stats= is 1 to 86400 seconds")?;
            Some(Duration::from_secs(seconds))
        }
        _ => {
            return Err(format!(
                "'{options}' is no option of a balloon; there is stats=SECONDS"
            ));
        }
    };
    Ok(Balloon {
        target_bytes,
        period,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_has_a_size_and_a_period_or_neither() {
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
