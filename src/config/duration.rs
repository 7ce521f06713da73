//! Spans of time as container engines write them: `1m30s`, `500ms` (Go, time.ParseDuration).

use std::time::Duration;

/// Units with their nanoseconds. One that begins with another one comes first.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
/// The longest one there, in nanoseconds.
const MAX: u128 = i64::MAX as u128;
/// What is accepted.
const WRITE: &str = "write numbers with units (ns, us, ms, s, m, h), as in 30s, 1m30s or 500ms";

/// Parse a span of time that is not negative.
///
/// # Errors
/// The text is none: what is accepted.
pub fn parse(text: &str) -> Result<Duration, String> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut all = 0;
    if rest != "0" {
        if rest.is_empty() {
            return Err(WRITE.into());
        }
        while !rest.is_empty() {
            let (nanoseconds, behind) = part(rest).ok_or(WRITE)?;
            all += nanoseconds;
            if all > MAX {
                return Err("it is longer than 292 years".into());
            }
            rest = behind;
        }
    }
    if negative && all > 0 {
        return Err("it cannot be negative".into());
    }
    // It is at most MAX.
    Ok(Duration::from_nanos(all as u64))
}

/// The number with its unit at the beginning of `text`, in nanoseconds, and what follows.
fn part(text: &str) -> Option<(u128, &str)> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = text.split_at_checked(digits(text))?;
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at_checked(digits(rest))?,
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let letters = rest.find(|it: char| it.is_ascii_digit() || it == '.');
    let (unit, rest) = rest.split_at_checked(letters.unwrap_or(rest.len()))?;
    let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let scale = u128::from(*scale);
    let whole: u128 = match whole {
        "" => 0,
        // Longer than any that is accepted, and short enough to be multiplied.
        long if long.trim_start_matches('0').len() > 20 => MAX + 1,
        text => text.parse().ok()?,
    };
    let mut nanoseconds = whole * scale;
    let mut unit = scale;
    for digit in fraction.bytes() {
        unit /= 10;
        nanoseconds += u128::from(digit - b'0') * unit;
    }
    Some((nanoseconds, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_go_accepts_is_accepted() {
        let ms = |text: &str| parse(text).map(|time| time.as_micros());
        assert_eq!(ms("0"), Ok(0));
        assert_eq!(ms("-0"), Ok(0));
        assert_eq!(ms("1.5s"), Ok(1_500_000));
        assert_eq!(ms("+1m30s"), Ok(90_000_000));
        assert_eq!(ms(".5ms1us"), Ok(501));
        assert_eq!(ms("2h45m"), Ok(9_900_000_000));
        assert_eq!(ms("3µs"), Ok(3));
        for wrong in [
            "", "-", "30", "s", "1d", "1 s", ".s", "1.5.5s", "1s2", "s1", "1S",
        ] {
            assert_eq!(parse(wrong), Err(WRITE.into()), "{wrong}");
        }
        assert_eq!(parse("-1s"), Err("it cannot be negative".into()));
        for long in ["9999999h", "99999999999999999999999999999999999999999999h"] {
            assert_eq!(parse(long), Err("it is longer than 292 years".into()));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-+0-9.nuµmsh]{0,60}|.*") {
            if let Ok(time) = parse(&text) {
                prop_assert!(time.as_nanos() <= MAX);
            }
        }

        #[test]
        fn parts_are_added(hours in 0u64..1000, seconds in 0u64..100_000, ns in 0u64..1_000_000_000) {
            let text = format!("{hours}h{seconds}.{ns:09}s");
            let expected = Duration::new(hours * 3600 + seconds, ns as u32);
            prop_assert_eq!(parse(&text), Ok(expected));
        }
    }
}
