//! Numbers with their units, as a reader sees them: three digits, in the unit that gives the shortest number.

use crate::compare::figure::Unit;

pub fn value(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Seconds => time(value),
        Unit::Milliseconds => time(value / 1e3),
        Unit::Microseconds => time(value / 1e6),
        Unit::Bytes => bytes(value),
        Unit::BytesPerSecond => format!("{}/s", bytes(value)),
        Unit::PerSecond => format!("{}/s", decimal(value)),
        Unit::Share if value == 0.0 => "0 %".into(),
        Unit::Share => format!("{} %", digits(value * 100.0)),
        Unit::Count | Unit::Text => count(value),
    }
}

/// "1.90 to 2.25 ms"; with both units if they differ.
pub fn range(unit: Unit, least: f64, most: f64) -> String {
    let (from, to) = (value(unit, least), value(unit, most));
    match (from.split_once(' '), to.split_once(' ')) {
        (Some((number, one)), Some((_, other))) if one == other => format!("{number} to {to}"),
        _ => format!("{from} to {to}"),
    }
}

/// [`value`] of a round number, without trailing zeros.
pub fn round(unit: Unit, number: f64) -> String {
    let text = value(unit, number);
    match text.split_once(' ') {
        Some((digits, name)) if digits.contains('.') && !digits.contains('e') => {
            let digits = digits.trim_end_matches('0').trim_end_matches('.');
            format!("{digits} {name}")
        }
        _ => text,
    }
}

fn time(seconds: f64) -> String {
    let units = [(1e-9, "ns"), (1e-6, "us"), (1e-3, "ms"), (1.0, "s")];
    scaled(seconds, 1e3, &units)
}

fn bytes(bytes: f64) -> String {
    const KIB: f64 = 1024.0;
    let units = [
        (KIB, "KiB"),
        (KIB.powi(2), "MiB"),
        (KIB.powi(3), "GiB"),
        (KIB.powi(4), "TiB"),
    ];
    if bytes.abs() < KIB {
        format!("{} B", count(bytes))
    } else {
        scaled(bytes, KIB, &units)
    }
}

fn decimal(value: f64) -> String {
    if value.abs() < 1e4 {
        count(value)
    } else {
        let units = [(1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")];
        scaled(value, 1e3, &units)
    }
}

/// In the first of `units` in which it is less than `step`, or else in the last.
fn scaled(value: f64, step: f64, units: &[(f64, &str)]) -> String {
    // A number that rounds to `step` belongs to the next unit.
    let fits = |size: &f64| value.abs() / size < step - 0.5;
    let found = units.iter().find(|(size, _)| value != 0.0 && fits(size));
    match found.or(units.last()) {
        Some((size, name)) if value != 0.0 => format!("{} {name}", digits(value / size)),
        Some((_, name)) => format!("0 {name}"),
        None => digits(value),
    }
}

/// A whole number with thousands separators; of any other number, three digits.
fn count(value: f64) -> String {
    if value.fract() != 0.0 || value.abs() >= 1e15 {
        return digits(value);
    }
    let plain = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in plain.chars().enumerate() {
        if at > 0 && (plain.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{text}")
}

/// Three digits, or more before the point.
pub fn digits(value: f64) -> String {
    match value.abs() {
        value_abs if value_abs >= 99.95 => format!("{value:.0}"),
        value_abs if value_abs >= 9.995 => format!("{value:.1}"),
        value_abs if value_abs >= 0.01 || value_abs == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        for (unit, number, text) in [
            (Unit::Milliseconds, 2.0, "2.00 ms"),
            (Unit::Milliseconds, 49.12, "49.1 ms"),
            (Unit::Milliseconds, 999.7, "1.00 s"),
            (Unit::Milliseconds, 9123.0, "9.12 s"),
            (Unit::Microseconds, 0.5, "500 ns"),
            (Unit::Seconds, 0.0, "0 s"),
            (Unit::Seconds, 4000.0, "4000 s"),
            (Unit::Bytes, 512.0, "512 B"),
            (Unit::Bytes, 1.5 * 1048576.0, "1.50 MiB"),
            (Unit::BytesPerSecond, 2048.0, "2.00 KiB/s"),
            (Unit::PerSecond, 1_234_567.0, "1.23 M/s"),
            (Unit::Count, 1_234_567.0, "1,234,567"),
            (Unit::Count, -12.0, "-12"),
            (Unit::Count, 2.5, "2.50"),
            (Unit::Share, 0.123, "12.3 %"),
        ] {
            assert_eq!(value(unit, number), text, "{unit:?} {number}");
        }
    }

    #[test]
    fn a_range_has_its_unit_once() {
        assert_eq!(range(Unit::Milliseconds, 1.9, 2.25), "1.90 to 2.25 ms");
        assert_eq!(range(Unit::Milliseconds, 900.0, 2000.0), "900 ms to 2.00 s");
        assert_eq!(range(Unit::Count, 1.0, 2.0), "1 to 2");
        assert_eq!(round(Unit::Milliseconds, 10.0), "10 ms");
        assert_eq!(round(Unit::Milliseconds, 100.0), "100 ms");
    }

    proptest! {
        #[test]
        fn any_number_has_a_text(number in any::<f64>()) {
            for unit in [Unit::Seconds, Unit::Bytes, Unit::Count, Unit::PerSecond, Unit::Share] {
                prop_assert!(!value(unit, number).is_empty());
            }
        }
    }
}
