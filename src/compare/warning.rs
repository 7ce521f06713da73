//! What speaks against believing a figure.

use std::fmt;

use crate::compare::measure::host::Host;
use crate::compare::statistics::Summary;

/// With fewer runs than this, a median says little.
pub const FEW: usize = 5;
/// A spread (see [`Summary::spread`]) from which on a figure is noisy.
const NOISY: f64 = 0.25;

/// Said in every output: terminal, JSON and page.
#[derive(Clone, Debug, PartialEq)]
pub enum Warning {
    /// Fewer than [`FEW`] runs.
    FewRuns(usize),
    /// The middle half of a figure's samples differs by more than a quarter.
    Noisy {
        /// Of what.
        figure: String,
        /// The range of the middle half, as a share of the median.
        spread: f64,
    },
    /// Some runs took far longer or shorter than the others.
    Outliers {
        /// Of what.
        figure: String,
        /// How many runs.
        outliers: usize,
        /// Of how many.
        runs: usize,
    },
    /// hull is not built for speed.
    DebugBuild,
    /// The KVM of this machine emulates the guest's kernel.
    SoftwareKvm,
    /// The machine itself is emulated, by this program.
    Emulated(String),
    /// The machine itself is a virtual one.
    Nested(String),
}

impl Warning {
    /// What holds for all that is measured here by `runs` runs.
    pub fn of_run(host: &Host, runs: usize) -> Vec<Self> {
        let mut warnings = Vec::new();
        if runs < FEW {
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

    /// What the samples of `figure` say against themselves.
    pub fn of_figure(figure: &str, summary: &Summary) -> Option<Self> {
        let figure = figure.to_owned();
        if summary.runs >= 3 && summary.spread() > NOISY {
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
            Self::FewRuns(1) => write!(f, "one run alone: it may be any; ask for --runs 10"),
            Self::FewRuns(runs) => write!(f, "{runs} runs are few: ask for --runs 10 or more"),
            Self::Noisy { figure, spread } => write!(
                f,
                "{figure}: noisy, half of the runs differ by {:.0} % of the median",
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
                "this machine's KVM emulates the kernels of its guests: virtual machines are many \
                 times slower than on hardware"
            ),
            Self::Emulated(by) => write!(
                f,
                "this machine is itself emulated ({by}): compare figures with each other, not with \
                 those of real machines"
            ),
            Self::Nested(by) => write!(
                f,
                "this machine is itself a virtual machine ({by}): exits of its guests cost more than \
                 on hardware"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_told_once_by_its_worst() {
        let of = |samples: &[f64]| {
            let summary = Summary::of(samples).expect("samples");
            Warning::of_figure("it", &summary)
        };
        assert_eq!(of(&[1.0; 9]), None);
        assert_eq!(of(&[1.0, 9.0]), None, "two runs have no spread to speak of");
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
