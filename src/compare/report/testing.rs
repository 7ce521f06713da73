//! The golden report, made up to have every kind of cell, on which the formats are tested.

use std::sync::LazyLock;

use serde_json::Value;

use super::comparison::Report;

pub const GOLDEN: &str = include_str!("../../../tests/golden/compare-v1.json");

pub fn report() -> Report {
    static REPORT: LazyLock<Report> =
        LazyLock::new(|| Report::read(GOLDEN.as_bytes()).expect("the golden is a report"));
    REPORT.clone()
}

/// The report with `text` after every text that is not a keyword of the format.
pub fn report_of(text: &str) -> Report {
    fn append(value: &mut Value, text: &str) {
        match value {
            Value::String(one) => one.push_str(text),
            Value::Array(all) => all.iter_mut().for_each(|one| append(one, text)),
            Value::Object(fields) => {
                let keywords = ["kind", "unit", "better"];
                let mut fields: Vec<_> = fields.iter_mut().collect();
                fields.retain(|(name, _)| !keywords.contains(&name.as_str()));
                fields.into_iter().for_each(|(_, one)| append(one, text));
            }
            _ => {}
        }
    }
    let mut value = serde_json::from_str(GOLDEN).expect("JSON");
    append(&mut value, text);
    serde_json::from_value(value).expect("a report")
}
