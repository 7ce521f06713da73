//! What follows `rate=` of a disk or a network: how fast it may be.

use super::run::size;
use crate::disk::{Limit, Limits};

/// What `rate=` takes, for messages.
pub const RATE: &str = "rate=BYTES[/BURST] a second, rate=Nops[/BURST], or both with a + between";

/// Parse `BYTES[/BURST]`, `Nops[/BURST]`, or both with a `+` in between. A burst that is left out
/// is what passes in a second.
pub fn parse(text: &str) -> Result<Limits, String> {
    let mut limits = Limits::default();
    for part in text.split('+') {
        let (number, burst) = match part.split_once('/') {
            Some((number, burst)) => (number, Some(burst)),
            None => (part, None),
        };
        let (number, place) = match number.strip_suffix("ops") {
            Some(number) => (number, &mut limits.operations),
            None => (number, &mut limits.bytes),
        };
        let count = |text| size(text).filter(|&count| (1..=1 << 50).contains(&count));
        let limit = count(number).and_then(|per_second| {
            let burst = burst.map_or(Some(per_second), count)?;
            Some(Limit { per_second, burst })
        });
        match (limit, place) {
            (Some(limit), place @ None) => *place = Some(limit),
            _ => return Err(format!("rate={text}: it is {RATE}, such as 10M/1M+500ops")),
        }
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_bytes_or_operations_or_both_once() {
        let limit = |per_second, burst| Some(Limit { per_second, burst });
        let limits = parse("10M/1M+500ops").expect("parsed");
        assert_eq!(limits.bytes, limit(10 << 20, 1 << 20));
        assert_eq!(limits.operations, limit(500, 500));
        let limits = parse("3ops/7").expect("parsed");
        assert_eq!((limits.bytes, limits.operations), (None, limit(3, 7)));
        for wrong in [
            "", "0", "ops", "1M+2M", "1/0", "1/2/3", "1ops+", "-1", "99999T",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
