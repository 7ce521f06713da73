//! That the JSON stays what it is.

use std::collections::BTreeSet;

use serde_json::Value;

use super::saved::{FORMAT, Report};
use super::testing::report;

/// The golden is what this hull writes of this report, and reads again.
#[test]
fn the_format_is_that_of_the_golden() {
    let golden = include_str!("../../../tests/golden/compare-v1.json");
    let written = serde_json::to_string_pretty(&report()).expect("written") + "\n";
    if std::env::var_os("HULL_GOLDEN").is_some_and(|what| what == "write") {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/compare-v1.json");
        std::fs::write(path, &written).expect("the golden is written");
        return;
    }
    assert_eq!(
        FORMAT, 1,
        "a new format has a golden of its own, beside the old one"
    );
    let read = Report::read(golden.as_bytes()).expect("the golden is a report");
    assert_eq!(read, report(), "the golden is read as what it was");
    assert!(
        written == golden,
        "HULL_GOLDEN=write writes it anew; is a reader of the old one misled?"
    );
}

/// Every field of the golden; a report without one that ends in `?` can be read all the same.
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

/// Where a field that is gone, renamed, of another unit or of another meaning is read by an old hull or of
/// an old report, figures are wrong and nobody is told: raise [`FORMAT`], and keep what is read of the old
/// one. A new field that readers may miss (`#[serde(default)]`, `?` here) needs no new format.
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
    // What an old hull does with a field that it does not know.
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

/// Take a field out wherever it is.
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
