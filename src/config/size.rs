//! Sizes in bytes, as they are typed and printed: the only parser and the only formatter. All units
//! are binary: K, M, G and T are powers of 1024.

/// What [`parse`] takes, for messages.
pub const FORM: &str = "bytes, or a number with K, M, G or T";

/// Parse plain bytes, or a number with a unit: `K`, `KiB`, `M`, `MiB`, `G`, `GiB`, `T` or `TiB` in
/// either case. A size that does not fit a u64 is [`u64::MAX`], which is above every limit.
pub fn parse(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(digits);
    let scale: u64 = match unit.to_ascii_uppercase().as_str() {
        _ if digits.is_empty() => return None,
        "" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        "T" | "TIB" => 1 << 40,
        _ => return None,
    };
    // There are only digits, so a number that does not parse is too large.
    let number = digits.parse().unwrap_or(u64::MAX);
    Some(number.saturating_mul(scale))
}

/// That `text` was read as bytes, if it probably lacks a unit. Continues a message.
pub fn as_bytes(text: &str) -> String {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(1..1_000_000u32) if digits => {
            format!("; without a unit it is in bytes, so write {text}M for MiB")
        }
        _ => String::new(),
    }
}

/// For people: in the largest unit of which there is at least one, with one decimal unless it is 0.
/// The rest is cut off.
pub fn show(bytes: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in UNITS {
        let whole = bytes >> shift;
        if whole > 0 {
            let tenth = ((bytes - (whole << shift)) * 10) >> shift;
            return match tenth {
                0 => format!("{whole} {unit}"),
                _ => format!("{whole}.{tenth} {unit}"),
            };
        }
    }
    format!("{bytes} B")
}

/// Exactly, in the largest unit that divides it: [`parse`] gives the same number again.
pub fn exact(bytes: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let divides = |(shift, _): &(u32, &str)| bytes != 0 && bytes.trailing_zeros() >= *shift;
    match UNITS.into_iter().find(divides) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4194304", 4 << 20),
            ("128M", 128 << 20),
            ("4GiB", 4 << 30),
            ("70k", 70 << 10),
            ("1tib", 1 << 40),
            ("99999999999999999999", u64::MAX),
            ("99999999T", u64::MAX),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for none in ["", "M", "-1", "+1", "1.5G", "12Q", "1 M", "1é", "abc"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }

    #[test]
    fn printed_sizes_have_a_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (256 << 20, "256 MiB"),
            (3 << 40, "3 TiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(show(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn an_exact_size_is_read_back(number in any::<u64>(), shift in 0..50u32) {
            let bytes = number >> shift << shift;
            prop_assert_eq!(parse(&exact(bytes)), Some(bytes));
        }
    }
}
