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

/// A ratio of middles, and between what it lies.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    pub ratio: f64,
    pub low: f64,
    pub high: f64,
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { ratio, low, high } = self;
        write!(f, "{ratio:>9.2}  (95 %: {low:.2} to {high:.2})")
    }
}

/// The ratio of the middles, with the range that holds it in 95 of 100 cases: what comes out when
/// as many runs are drawn from those there were, with repetition, again and again (the percentile
/// bootstrap). Few runs give a wide range, or by chance a narrow one: ask for ten or more.
pub fn bounded_ratio(one: &[f64], other: &[f64]) -> Option<Ratio> {
    const DRAWS: usize = 2000;
    let ratio = middle(one)? / middle(other)?;
    let mut random = xorshift();
    let mut ratios = Vec::with_capacity(DRAWS);
    for _ in 0..DRAWS {
        let mut draw = |from: &[f64]| {
            let drawn = from.iter().map(|_| from[random() % from.len()]);
            middle(&drawn.collect::<Vec<_>>())
        };
        ratios.push(draw(one)? / draw(other)?);
    }
    let ratios = sorted(&ratios);
    Some(Ratio {
        ratio,
        low: ratios[DRAWS / 40],
        high: ratios[DRAWS - DRAWS / 40 - 1],
    })
}

/// The middle one; of an even number, the mean of the two.
pub fn middle(times: &[f64]) -> Option<f64> {
    let sorted = sorted(times);
    let half = sorted.len() / 2;
    let upper = *sorted.get(half)?;
    Some(match sorted.len() % 2 {
        0 => (sorted[half - 1] + upper) / 2.0,
        _ => upper,
    })
}

/// The same numbers each time, so that the same figures have the same range.
fn xorshift() -> impl FnMut() -> usize {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize
    }
}
