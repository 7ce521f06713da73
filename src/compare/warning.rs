//! Reasons to distrust a figure.

use std::fmt;

use crate::compare::measure::host::Host;
use crate::compare::statistics::Summary;

/// Fewer runs than this are too few for a median.
pub const MIN_RUNS: usize = 5;
/// A figure with a higher [`Summary::spread`] is noisy.
const MAX_SPREAD: f64 = 0.25;

/// Shown in every output: text, JSON and page.
#[derive(Clone, Debug, PartialEq)]
pub enum Warning {
    /// There were fewer than [`MIN_RUNS`].
    FewRuns(usize),
    /// The interquartile range is above [`MAX_SPREAD`].
    Noisy {
        figure: String,
        spread: f64,
    },
    Outliers {
        figure: String,
        outliers: usize,
        runs: usize,
    },
    DebugBuild,
    /// KVM on this machine emulates the kernels of its guests.
    SoftwareKvm,
    /// This machine is emulated by the named program.
    Emulated(String),
    /// This machine is a virtual machine under the named hypervisor.
    Nested(String),
}

impl Warning {
    /// The warnings that concern all figures of `runs` runs on `host`.
    pub fn of_run(host: &Host, runs: usize) -> Vec<Self> {
        let mut warnings = Vec::new();
        if runs < MIN_RUNS {
            warnings.push(Self::FewRuns(runs));
        }
        if cfg!(debug_assertions) {
            warnings.push(Self::DebugBuild);
        }
        if host.software_kvm {
            warnings.push(Self::SoftwareKvm);
        }
        match (&host.hypervisor, host.emulated) {
            (Some(name), true) => warnings.push(Self::Emulated(name.clone())),
            (Some(name), false) => warnings.push(Self::Nested(name.clone())),
            (None, _) => {}
        }
        warnings
    }

    /// The warning, if any, that follows from the samples of `figure`.
    pub fn of_figure(figure: &str, summary: &Summary) -> Option<Self> {
        let figure = figure.to_owned();
        if summary.runs >= 3 && summary.spread() > MAX_SPREAD {
            return Some(Self::Noisy {
                figure,
                spread: summary.spread(),
            });
        }
        (summary.outliers > 0).then_some(Self::Outliers {
            figure,
            outliers: summary.outliers,
            runs: summary.runs,
        })
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FewRuns(1) => write!(f, "one run says little; use --runs 10"),
            Self::FewRuns(runs) => write!(f, "{runs} runs are few; use --runs 10 or more"),
            Self::Noisy { figure, spread } => write!(
                f,
                "{figure}: noisy, the middle half of the runs spans {:.0} % of the median",
                spread * 100.0
            ),
            Self::Outliers {
                figure,
                outliers,
                runs,
            } => write!(
                f,
                "{figure}: {outliers} of {runs} runs are far from the others (kept)"
            ),
            Self::DebugBuild => {
                write!(f, "this hull is a debug build: it is slower than a release")
            }
            Self::SoftwareKvm => write!(
                f,
                "KVM on this machine emulates the kernels of its guests: virtual machines are many \
                 times slower than on hardware"
            ),
            Self::Emulated(by) => write!(
                f,
                "this machine is emulated ({by}): compare its figures with each other, not with \
                 those of real machines"
            ),
            Self::Nested(by) => write!(
                f,
                "this machine is a virtual machine ({by}): exits of its guests cost more than on \
                 hardware"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_one_warning_noise_before_outliers() {
        let of = |samples: &[f64]| {
            let summary = Summary::of(samples).expect("samples");
            Warning::of_figure("it", &summary)
        };
        assert_eq!(of(&[1.0; 9]), None);
        assert_eq!(of(&[1.0, 9.0]), None, "two runs have no spread");
        assert!(matches!(of(&[1.0, 2.0, 3.0]), Some(Warning::Noisy { .. })));
        let one_off = [10.0, 10.0, 10.1, 9.9, 10.0, 10.1, 9.9, 30.0];
        assert!(matches!(
            of(&one_off),
            Some(Warning::Outliers {
                outliers: 1,
                runs: 8,
                ..
            })
        ));
    }
}
