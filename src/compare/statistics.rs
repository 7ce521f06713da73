//! What many runs of the same thing say, together.
//!
//! Times of processes have a floor and a long tail: the figure is the median, with quartiles and
//! percentiles for its spread, and claims are ratios of medians within one run, with the range that a
//! bootstrap gives them.

use serde::{Deserialize, Serialize};

/// From this modified Z-score on, a run counts as an outlier (Iglewicz and Hoaglin, "How to Detect and
/// Handle Outliers", 1993).
const OUTLIER: f64 = 3.5;
/// What makes a median absolute deviation comparable to a standard deviation, of normal noise.
const MAD_TO_DEVIATION: f64 = 0.6745;
/// Draws of the bootstrap.
const DRAWS: usize = 2000;

/// Samples of one figure, all in one unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many samples there are.
    pub runs: usize,
    /// The least of them.
    pub least: f64,
    /// A quarter is no more than this.
    pub quartile_1: f64,
    /// The middle one; of an even number, the mean of the two.
    pub median: f64,
    /// A quarter is no less than this.
    pub quartile_3: f64,
    /// The least sample that 99 of 100 do not exceed: the most of all, below 100 samples.
    pub p99: f64,
    /// The most of them.
    pub most: f64,
    /// Their mean.
    pub mean: f64,
    /// Standard deviation of the sample, with n - 1; 0 of one sample.
    pub deviation: f64,
    /// Samples with a modified Z-score above 3.5. They are reported, never left out.
    pub outliers: usize,
}

impl Summary {
    /// Of all `samples`; `None` of none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let sorted = sorted(samples);
        let (&least, &most) = (sorted.first()?, sorted.last()?);
        let runs = sorted.len();
        let mean = sorted.iter().sum::<f64>() / runs as f64;
        let squares: f64 = sorted.iter().map(|sample| (sample - mean).powi(2)).sum();
        let median = median(&sorted)?;
        Some(Self {
            runs,
            least,
            quartile_1: quantile(&sorted, 0.25),
            median,
            quartile_3: quantile(&sorted, 0.75),
            p99: sorted[(runs * 99).div_ceil(100) - 1],
            most,
            mean,
            deviation: (squares / (runs.max(2) - 1) as f64).sqrt(),
            outliers: outliers(&sorted, median),
        })
    }

    /// Half of the samples lie within so much, as a share of the median.
    pub fn spread(&self) -> f64 {
        match self.median == 0.0 {
            true => 0.0,
            false => (self.quartile_3 - self.quartile_1) / self.median,
        }
    }
}

/// A ratio of medians, and between what it lies in 95 of 100 cases.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Of the medians.
    pub ratio: f64,
    /// The low end of the range.
    pub low: f64,
    /// The high end.
    pub high: f64,
}

impl Ratio {
    /// Of the medians of `one` and `other`, with the range that comes out when as many runs are drawn
    /// from those there were, with repetition, again and again (the percentile bootstrap; Efron and
    /// Tibshirani, 1993, 13). The same samples give the same range. `None` without samples, or if
    /// `other`'s median is 0.
    pub fn of(one: &[f64], other: &[f64]) -> Option<Self> {
        let of_medians = |one: &[f64], other: &[f64]| {
            let ratio = median(&sorted(one))? / median(&sorted(other))?;
            ratio.is_finite().then_some(ratio)
        };
        let ratio = of_medians(one, other)?;
        let mut random = xorshift();
        let mut draw = |from: &[f64]| -> Vec<f64> {
            let drawn = from.iter().map(|_| from[random() % from.len()]);
            drawn.collect()
        };
        let ratios: Vec<f64> = (0..DRAWS)
            .filter_map(|_| of_medians(&draw(one), &draw(other)))
            .collect();
        let ratios = sorted(&ratios);
        let end = ratios.len() / 40;
        Some(Self {
            ratio,
            low: *ratios.get(end)?,
            high: *ratios.get(ratios.len() - 1 - end)?,
        })
    }

    /// Whether it differs from 1 by more than chance.
    pub fn is_real(&self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { ratio, low, high } = self;
        write!(f, "{ratio:.2} (95 %: {low:.2} to {high:.2})")
    }
}

/// In order. NaN is last.
pub fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The middle of `sorted` samples; of an even number, the mean of the two.
fn median(sorted: &[f64]) -> Option<f64> {
    (!sorted.is_empty()).then(|| quantile(sorted, 0.5))
}

/// Between the two nearest of `sorted` samples, of which there is one at least (Hyndman and Fan, "Sample
/// Quantiles in Statistical Packages", 1996, definition 7).
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

fn outliers(sorted_samples: &[f64], middle: f64) -> usize {
    let deviations: Vec<f64> = sorted_samples.iter().map(|s| (s - middle).abs()).collect();
    let Some(mad) = median(&sorted(&deviations)).filter(|mad| *mad > 0.0) else {
        return 0;
    };
    let score = |deviation: &&f64| **deviation * MAD_TO_DEVIATION / mad > OUTLIER;
    deviations.iter().filter(score).count()
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn summary(samples: &[f64]) -> Summary {
        Summary::of(samples).expect("samples")
    }

    #[test]
    fn a_summary_is_as_computed_by_hand() {
        let of = summary(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((of.runs, of.least, of.most), (4, 1.0, 4.0));
        assert_eq!((of.median, of.mean, of.p99), (2.5, 2.5, 4.0));
        assert_eq!((of.quartile_1, of.quartile_3), (1.75, 3.25));
        // Squares of 1.5, 0.5, 0.5, 1.5 are 5 in all; by 3.
        assert!((of.deviation - (5.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((of.spread() - 0.6).abs() < 1e-12);
    }

    #[test]
    fn one_sample_is_all_there_is_and_none_is_nothing() {
        let of = summary(&[7.0]);
        assert_eq!((of.least, of.median, of.p99, of.most), (7.0, 7.0, 7.0, 7.0));
        assert_eq!((of.deviation, of.outliers), (0.0, 0));
        assert!(Summary::of(&[]).is_none());
        assert!(Ratio::of(&[], &[1.0]).is_none());
        assert!(Ratio::of(&[1.0], &[0.0]).is_none());
    }

    #[test]
    fn the_99th_percentile_leaves_one_in_a_hundred() {
        let samples: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(summary(&samples).p99, 198.0);
        assert_eq!(summary(&samples[..99]).p99, 99.0);
    }

    #[test]
    fn an_outlier_is_counted_and_kept() {
        // Median 10, deviations 1 0 1 0 90: their median is 1; 90 * 0.6745 is above 3.5.
        let of = summary(&[9.0, 10.0, 11.0, 10.0, 100.0]);
        assert_eq!((of.outliers, of.most), (1, 100.0));
        assert_eq!(summary(&[5.0, 5.0, 5.0]).outliers, 0);
    }

    #[test]
    fn a_ratio_without_spread_is_certain() {
        let ratio = Ratio::of(&[3.0; 5], &[2.0; 5]).expect("samples");
        assert_eq!((ratio.ratio, ratio.low, ratio.high), (1.5, 1.5, 1.5));
        assert!(ratio.is_real());
        assert!(!Ratio::of(&[2.0; 5], &[2.0; 5]).expect("samples").is_real());
        let noisy = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert!(!Ratio::of(&noisy, &noisy).expect("samples").is_real());
    }

    proptest! {
        #[test]
        fn figures_are_in_order(samples in prop::collection::vec(0.001_f64..1e6, 1..50)) {
            let of = summary(&samples);
            let order = [of.least, of.quartile_1, of.median, of.quartile_3, of.most];
            prop_assert!(order.is_sorted());
            prop_assert!(of.p99 >= of.quartile_3 && of.p99 <= of.most);
            prop_assert!(of.outliers < samples.len());
        }

        #[test]
        fn a_ratio_lies_in_its_range(
            one in prop::collection::vec(0.1_f64..1e3, 1..12),
            other in prop::collection::vec(0.1_f64..1e3, 1..12),
        ) {
            let ratio = Ratio::of(&one, &other).expect("samples");
            prop_assert!(ratio.low <= ratio.high);
            let all = |take: fn(f64, f64) -> f64| {
                let of = |samples: &[f64]| samples.iter().copied().reduce(take).expect("one");
                (of(&one), of(&other))
            };
            let (most, most_other) = all(f64::max);
            let (least, least_other) = all(f64::min);
            prop_assert!(ratio.low >= least / most_other && ratio.high <= most / least_other);
        }
    }
}
