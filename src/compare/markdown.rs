//! The report for a README.

use super::report::Report;

/// As a section.
pub fn render(report: &Report) -> String {
    super::table::render(report, 80, false)
}
