//! How the benches print what they measured.
#![allow(dead_code)] // each bench uses some of it

/// Least, middle and most of what `runs` runs gave.
pub fn row(name: &str, times: &[f64], runs: usize) {
    let lost = match runs - times.len() {
        0 => String::new(),
        lost => format!("  ({lost} did not end)"),
    };
    let sorted = sorted(times);
    match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(least), Some(middle), Some(most)) => {
            println!("  {name:<42} {least:>9.1} / {middle:>9.1} / {most:>9.1}{lost}");
        }
        _ => println!("  {name:<42} never{lost}"),
    }
}

/// The ratio of the middles, and of the leasts, which other work on the machine disturbs less.
pub fn ratio(name: &str, one: &[f64], other: &[f64]) {
    let (one, other) = (sorted(one), sorted(other));
    let of = |at: fn(usize) -> usize| Some(one.get(at(one.len()))? / other.get(at(other.len()))?);
    if let (Some(middle), Some(least)) = (of(|len| len / 2), of(|_| 0)) {
        println!("  {name:<42} {middle:.2} (of the leasts {least:.2})");
    }
}

pub fn sorted(times: &[f64]) -> Vec<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}
