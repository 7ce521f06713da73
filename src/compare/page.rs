//! The report as a page of HTML.

use super::report::Report;

/// One file, which needs no other.
pub fn render(report: &Report) -> String {
    super::table::render(report, 80, false)
}
