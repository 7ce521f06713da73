//! Reasons to distrust a figure.

use crate::compare::measure::host::Host;
use crate::compare::statistics::Summary;

/// Fewer runs than this are too few for a median.
pub const MIN_RUNS: usize = 5;
/// A figure with a higher [`Summary::spread`] is noisy.
const MAX_SPREAD: f64 = 0.25;

/// The warning, if any, that follows from the number of runs.
pub fn of_runs(runs: usize) -> Option<String> {
    match runs {
        1 => Some("one run says little; use --runs 10".into()),
        few if few < MIN_RUNS => Some(format!("{few} runs are few; use --runs 10 or more")),
        _ => None,
    }
}

/// The warnings that concern all figures from `host`.
pub fn of_host(host: &Host) -> Vec<String> {
    let mut warnings = Vec::new();
    if cfg!(debug_assertions) {
        warnings.push("this hull is a debug build: it is slower than a release".into());
    }
    if host.software_kvm {
        let text = "KVM on this machine emulates the kernels of its guests: virtual machines are many times \
                    slower than on hardware";
        warnings.push(text.into());
    }
    if host.mitigates {
        let text = "this host's kernel mitigates flaws of its processor, and the kernel of the guests does not \
                    (mitigations=off): system calls of processes and containers cost more for it";
        warnings.push(text.into());
    }
    warnings.extend(host.hypervisor.as_ref().map(|by| {
        if host.emulated {
            format!(
                "this machine is emulated ({by}): compare its figures with each other, not with those of real \
                 machines"
            )
        } else {
            format!(
                "this machine is a virtual machine ({by}): exits of its guests cost more than on hardware"
            )
        }
    }));
    warnings
}

/// The warning, if any, that follows from the samples of `figure`.
pub fn of_figure(figure: &str, summary: &Summary) -> Option<String> {
    let Summary { runs, outliers, .. } = summary;
    if *runs >= 3 && summary.spread() > MAX_SPREAD {
        return Some(format!(
            "{figure}: noisy, the middle half of the runs spans {:.0} % of the median",
            summary.spread() * 100.0
        ));
    }
    (*outliers > 0)
        .then(|| format!("{figure}: {outliers} of {runs} runs are far from the others (kept)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_one_warning_noise_before_outliers() {
        let of = |samples: &[f64]| {
            let summary = Summary::of(samples).expect("samples");
            of_figure("it", &summary).unwrap_or_default()
        };
        assert_eq!(of(&[1.0; 9]), "");
        assert_eq!(of(&[1.0, 9.0]), "", "two runs have no spread");
        assert!(of(&[1.0, 2.0, 3.0]).starts_with("it: noisy, "));
        let one_off = [10.0, 10.0, 10.1, 9.9, 10.0, 10.1, 9.9, 30.0];
        assert!(of(&one_off).starts_with("it: 1 of 8 runs are far"));
    }
}
