use super::super::bench::Settings;
use super::*;

fn host() -> Host {
    Host {
        date: "2026-01-01T00:00:00Z".into(),
        hull: "0.1.0".into(),
        processor: "a processor".into(),
        cpus: 2,
        memory: 8 << 30,
        kernel: "6.12".into(),
        kvm: Some("hardware, SVM".into()),
        software_kvm: false,
        mitigates: false,
        hypervisor: None,
        emulated: false,
    }
}

/// A report with one figure of hull.
fn report(samples: &[f64], better: Better) -> Report {
    let figure = Figure::of_samples(Unit::Milliseconds, better, &[("hull", samples)]);
    Report {
        format: FORMAT,
        topic: "exit".into(),
        command: Vec::new(),
        host: host(),
        settings: Settings {
            runs: samples.len(),
            timeout: 60,
            rivals: Vec::new(),
            bzimage: None,
            steady: false,
        },
        method: String::new(),
        subjects: Vec::new(),
        warnings: Vec::new(),
        figures: vec![figure],
    }
}

fn verdict(old: &[f64], new: &[f64], better: Better) -> Verdict {
    let changes = Changes::between(report(old, better), report(new, better)).expect("one topic");
    changes.changes[0].verdict
}

#[test]
fn a_change_is_real_if_its_range_excludes_1() {
    // Without spread the range is the ratio itself: 1.5 one way, 0.67 the other.
    let (two, three) = ([2.0; 5], [3.0; 5]);
    assert_eq!(verdict(&two, &three, Better::Less), Verdict::Worse);
    assert_eq!(verdict(&three, &two, Better::Less), Verdict::Improved);
    assert_eq!(verdict(&two, &three, Better::More), Verdict::Improved);
    assert_eq!(verdict(&three, &two, Better::More), Verdict::Worse);
    assert_eq!(verdict(&two, &two, Better::Less), Verdict::NotReal);
    // The medians are 3 and 3.5, the runs between 1 and 6.
    let noisy = [1.0, 2.0, 3.0, 4.0, 5.0];
    let same = [1.5, 2.5, 3.5, 4.5, 5.5];
    assert_eq!(verdict(&noisy, &same, Better::Less), Verdict::NotReal);
}

#[test]
fn the_ratio_is_of_the_new_median_to_the_old() {
    let (old, new) = (
        report(&[2.0; 5], Better::Less),
        report(&[3.0; 5], Better::Less),
    );
    let changes = Changes::between(old, new).expect("one topic");
    let change = &changes.changes[0];
    assert_eq!((change.old, change.new), (2.0, 3.0));
    assert_eq!(change.ratio.map(|ratio| ratio.ratio), Some(1.5));
    assert!(changes.is_worse());
}

#[test]
fn few_runs_or_another_machine_leave_a_change_unknown() {
    let few = verdict(&[2.0; 4], &[3.0; 9], Better::Less);
    assert_eq!(few, Verdict::Unknown);
    let mut other = report(&[3.0; 9], Better::Less);
    other.host.kernel = "6.18".into();
    let changes = Changes::between(report(&[2.0; 9], Better::Less), other).expect("one topic");
    assert_eq!(changes.changes[0].verdict, Verdict::Unknown);
    assert!(!changes.is_worse());
    let warning = &changes.warnings[0];
    assert!(
        warning.ends_with("they differ in kernel (6.12, then 6.18)"),
        "{warning}"
    );
}

#[test]
fn another_date_and_slightly_different_memory_are_the_same_machine() {
    let mut later = host();
    later.date = "2026-02-02T00:00:00Z".into();
    later.hull = "0.2.0".into();
    later.memory -= 100 << 20;
    assert_eq!(differences(&host(), &later), Vec::<String>::new());
    later.memory = 4 << 30;
    assert_eq!(
        differences(&host(), &later),
        ["memory (8.00 GiB, then 4.00 GiB)"]
    );
}

#[test]
fn topics_must_agree_and_a_figure_of_one_report_has_no_change() {
    let mut boot = report(&[1.0; 5], Better::Less);
    boot.topic = "boot".into();
    let error = Changes::between(boot, report(&[1.0; 5], Better::Less)).expect_err("two topics");
    assert!(
        error
            .to_string()
            .starts_with("the old report is about `boot`"),
        "{error}"
    );
    let mut renamed = report(&[1.0; 5], Better::Less);
    renamed.figures[0].name = "that".into();
    let changes = Changes::between(report(&[1.0; 5], Better::Less), renamed).expect("one topic");
    assert!(changes.changes.is_empty());
}
