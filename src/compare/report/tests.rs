//! The format of the JSON is stable.

use std::collections::BTreeSet;

use serde_json::Value;

use super::comparison::{FORMAT, Report};
use super::testing::{GOLDEN, report};
use crate::compare::figure::Figure;

/// The golden is read and written again without a change; a format with other fields needs another golden.
#[test]
fn the_golden_is_written_as_it_was_read() {
    assert_eq!(
        FORMAT, 1,
        "a new format has another golden, beside the old one"
    );
    let written = serde_json::to_string_pretty(&report()).expect("written") + "\n";
    assert!(written == GOLDEN, "is a reader of the old format misled?");
}

/// The statistics of the golden are what this hull computes from its samples. Some of its figures have no
/// ratios.
#[test]
fn the_statistics_of_the_golden_are_those_of_its_samples() {
    for figure in report().rows.into_iter().flat_map(|row| row.figures) {
        let cells = figure.cells.clone();
        let computed = Figure::new(figure.name, figure.unit, figure.better, cells);
        let cells = computed.cells.iter().zip(&figure.cells);
        // Extrapolated cells have a summary and no samples.
        for (computed, golden) in cells.filter(|(_, golden)| !golden.samples.is_empty()) {
            assert_eq!(computed.summary, golden.summary);
            assert!(golden.ratio.is_none() || computed.ratio == golden.ratio);
        }
    }
}

/// Every field of the golden. A report can be read without those that end in `?`.
const FIELDS: &[&str] = &[
    "/command",
    "/format",
    "/host",
    "/host/cpus",
    "/host/date",
    "/host/emulated",
    "/host/hull",
    "/host/hypervisor?",
    "/host/kernel",
    "/host/kvm?",
    "/host/memory",
    "/host/mitigates?",
    "/host/processor",
    "/host/software_kvm",
    "/rows",
    "/rows/claim_container",
    "/rows/claim_machine",
    "/rows/figures",
    "/rows/figures/better",
    "/rows/figures/cells",
    "/rows/figures/cells/extrapolated?",
    "/rows/figures/cells/note?",
    "/rows/figures/cells/passed?",
    "/rows/figures/cells/ratio?",
    "/rows/figures/cells/ratio/high",
    "/rows/figures/cells/ratio/low",
    "/rows/figures/cells/ratio/ratio",
    "/rows/figures/cells/samples?",
    "/rows/figures/cells/subject",
    "/rows/figures/cells/summary?",
    "/rows/figures/cells/summary/deviation",
    "/rows/figures/cells/summary/least",
    "/rows/figures/cells/summary/mean",
    "/rows/figures/cells/summary/median",
    "/rows/figures/cells/summary/most",
    "/rows/figures/cells/summary/outliers",
    "/rows/figures/cells/summary/p99",
    "/rows/figures/cells/summary/quartile_1",
    "/rows/figures/cells/summary/quartile_3",
    "/rows/figures/cells/summary/runs",
    "/rows/figures/cells/text?",
    "/rows/figures/name",
    "/rows/figures/unit",
    "/rows/method",
    "/rows/name",
    "/rows/verdict",
    "/rows/verdict/contradicts",
    "/rows/verdict/text",
    "/runs",
    "/subjects",
    "/subjects/caveats",
    "/subjects/kind",
    "/subjects/left_out?",
    "/subjects/name",
    "/subjects/parts",
    "/subjects/parts/bytes",
    "/subjects/parts/path",
    "/subjects/parts/what",
    "/subjects/version?",
    "/warnings",
    "/workloads",
    "/workloads/name",
    "/workloads/words",
];

/// A field that is removed or renamed, or whose unit or meaning changes, makes figures wrong between two
/// versions of hull without an error: raise [`FORMAT`], and keep reading the old one. A new field that
/// readers may miss (`#[serde(default)]`, `?` here) needs no new format.
#[test]
fn a_change_of_fields_is_a_new_format_unless_readers_may_miss_it() {
    let report = serde_json::to_value(report()).expect("written");
    let mut paths = BTreeSet::new();
    collect(&report, "", &mut paths);
    let marked = paths.iter().map(|path| {
        let mut without = report.clone();
        remove(&mut without, path);
        let json = serde_json::to_vec(&without).expect("written");
        let mark = if Report::read(&json).is_ok() { "?" } else { "" };
        format!("{path}{mark}")
    });
    assert_eq!(marked.collect::<Vec<_>>(), FIELDS);
    // An old hull ignores a field that it does not know.
    let mut with = report.clone();
    with["rows"][0]["figures"][0]["cells"][0]["new"] = 1.into();
    let json = serde_json::to_vec(&with).expect("written");
    assert!(Report::read(&json).is_ok());
}

fn collect(value: &Value, above: &str, paths: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = format!("{above}/{name}");
                collect(value, &path, paths);
                paths.insert(path);
            }
        }
        Value::Array(all) => all.iter().for_each(|one| collect(one, above, paths)),
        _ => {}
    }
}

/// Removes a field wherever it is.
fn remove(value: &mut Value, path: &str) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(|one| remove(one, path)),
        Value::Object(fields) => match path[1..].split_once('/') {
            None => {
                fields.remove(&path[1..]);
            }
            Some((name, below)) => {
                if let Some(value) = fields.get_mut(name) {
                    remove(value, &format!("/{below}"));
                }
            }
        },
        _ => {}
    }
}

/// What [`Report::read`] says of the golden after `change`.
fn error_after(change: fn(&mut Value)) -> String {
    let mut value = serde_json::to_value(report()).expect("written");
    change(&mut value);
    let json = serde_json::to_vec(&value).expect("written");
    Report::read(&json).expect_err("no report").to_string()
}

#[test]
fn what_is_not_a_report_is_refused() {
    let error = |text: &str| {
        Report::read(text.as_bytes())
            .expect_err("no report")
            .to_string()
    };
    assert!(error("<html>").starts_with("it is not JSON, or was cut off: expected value"));
    assert!(error(&GOLDEN[..GOLDEN.len() / 2]).contains("cut off: EOF while parsing"));
    for other in [
        "1",
        "[]",
        "{}",
        r#"{"format": "x", "rows": []}"#,
        r#"{"format": 1}"#,
    ] {
        assert!(error(other).starts_with("it is not a report of"), "{other}");
    }
}

#[test]
fn a_newer_format_is_refused() {
    let error = error_after(|report| report["format"] = (FORMAT + 1).into());
    assert!(
        error.starts_with("its format is 2, and this hull ("),
        "{error}"
    );
}

#[test]
fn damage_is_reported_with_its_place() {
    let error = error_after(|report| report["host"]["cpus"] = "many".into());
    assert!(
        error.contains("damaged: invalid type: string \"many\""),
        "{error}"
    );
    let error =
        error_after(|report| report["rows"][2]["figures"][0]["cells"][1]["subject"] = "x".into());
    let expected = "it is damaged: \"echo, exec to first output byte\" has a cell of \"x\", which is not \
                    among its subjects";
    assert_eq!(error, expected);
}
