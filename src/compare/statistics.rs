//! Summaries of samples, and ratios between them.
//!
//! Times of processes have a lower bound and a long tail. Therefore a figure is a median, with quartiles and
//! percentiles for its spread, and a comparison is a ratio of medians with its bootstrap range.

use serde::{Deserialize, Serialize};

/// A sample with a higher modified Z-score is an outlier (Iglewicz and Hoaglin, "How to Detect and
/// Handle Outliers", 1993).
const OUTLIER: f64 = 3.5;
/// Ratio of the median absolute deviation to the standard deviation of a normal distribution.
const MAD_TO_DEVIATION: f64 = 0.6745;
/// Number of resamples of the bootstrap.
const DRAWS: usize = 2000;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub runs: usize,
    pub least: f64,
    pub quartile_1: f64,
    /// The middle sample; of an even number, the mean of the two.
    pub median: f64,
    pub quartile_3: f64,
    /// The 99th percentile; with fewer than 100 samples, the maximum.
    pub p99: f64,
    pub most: f64,
    pub mean: f64,
    /// The sample standard deviation, with n - 1; 0 for one sample.
    pub deviation: f64,
    /// Number of samples with a modified Z-score above 3.5. They are kept in the summary.
    pub outliers: usize,
}

impl Summary {
    /// Returns `None` without samples.
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

    /// The interquartile range, as a fraction of the median.
    pub fn spread(&self) -> f64 {
        if self.median == 0.0 {
            0.0
        } else {
            (self.quartile_3 - self.quartile_1) / self.median
        }
    }
}

/// A ratio of medians with its 95 % range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    pub ratio: f64,
    pub low: f64,
    pub high: f64,
}

impl Ratio {
    /// The median of `one` divided by the median of `other`, with the range of the percentile bootstrap
    /// (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). The same samples give
    /// the same range. Returns `None` without samples, or if the median of `other` is 0.
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

    /// Whether the range excludes 1.
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

/// In ascending order, with NaN at the end.
pub fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn median(sorted: &[f64]) -> Option<f64> {
    (!sorted.is_empty()).then(|| quantile(sorted, 0.5))
}

/// Interpolates between the two nearest samples (Hyndman and Fan, "Sample Quantiles in Statistical
/// Packages", 1996, definition 7). `sorted` is not empty.
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

/// A generator with a fixed seed, so that the same samples have the same range.
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
    fn a_summary_agrees_with_a_calculation_by_hand() {
        let of = summary(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((of.runs, of.least, of.most), (4, 1.0, 4.0));
        assert_eq!((of.median, of.mean, of.p99), (2.5, 2.5, 4.0));
        assert_eq!((of.quartile_1, of.quartile_3), (1.75, 3.25));
        // The squares of 1.5, 0.5, 0.5 and 1.5 add up to 5; n - 1 is 3.
        assert!((of.deviation - (5.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((of.spread() - 0.6).abs() < 1e-12);
    }

    #[test]
    fn one_sample_is_every_quantile_and_no_sample_is_none() {
        let of = summary(&[7.0]);
        assert_eq!((of.least, of.median, of.p99, of.most), (7.0, 7.0, 7.0, 7.0));
        assert_eq!((of.deviation, of.outliers), (0.0, 0));
        assert!(Summary::of(&[]).is_none());
        assert!(Ratio::of(&[], &[1.0]).is_none());
        assert!(Ratio::of(&[1.0], &[0.0]).is_none());
    }

    #[test]
    fn the_99th_percentile_leaves_out_one_in_a_hundred() {
        let samples: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(summary(&samples).p99, 198.0);
        assert_eq!(summary(&samples[..99]).p99, 99.0);
    }

    #[test]
    fn an_outlier_is_counted_and_kept() {
        // Median 10, deviations 1 0 1 0 90, their median 1; 90 * 0.6745 is above 3.5.
        let of = summary(&[9.0, 10.0, 11.0, 10.0, 100.0]);
        assert_eq!((of.outliers, of.most), (1, 100.0));
        assert_eq!(summary(&[5.0, 5.0, 5.0]).outliers, 0);
    }

    #[test]
    fn a_ratio_without_spread_has_no_range() {
        let ratio = Ratio::of(&[3.0; 5], &[2.0; 5]).expect("samples");
        assert_eq!((ratio.ratio, ratio.low, ratio.high), (1.5, 1.5, 1.5));
        assert!(ratio.is_real());
        assert!(!Ratio::of(&[2.0; 5], &[2.0; 5]).expect("samples").is_real());
        let noisy = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert!(!Ratio::of(&noisy, &noisy).expect("samples").is_real());
    }

    proptest! {
        #[test]
        fn quantiles_are_in_order(samples in prop::collection::vec(0.001_f64..1e6, 1..50)) {
            let of = summary(&samples);
            let order = [of.least, of.quartile_1, of.median, of.quartile_3, of.most];
            prop_assert!(order.is_sorted());
            prop_assert!(of.p99 >= of.quartile_3 && of.p99 <= of.most);
            prop_assert!(of.outliers < samples.len());
        }

        #[test]
        fn the_range_of_a_ratio_is_within_the_samples(
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
