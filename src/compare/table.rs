//! The report for a terminal.

use super::report::Report;

/// Of at most so many columns of text, where that can be.
pub fn render(report: &Report, _width: usize, _coloured: bool) -> String {
    let mut lines = Vec::new();
    for row in &report.rows {
        lines.push(row.name.clone());
        for figure in &row.figures {
            lines.push(format!("  {}", figure.name));
            for cell in &figure.cells {
                let median = cell.summary.map(|summary| summary.median);
                lines.push(format!(
                    "    {:<16} {:?} {:?} {:?} {:?}",
                    cell.subject, median, figure.unit, cell.text, cell.note
                ));
            }
        }
        lines.push(format!("  {}", row.verdict.text));
    }
    for out in &report.subjects {
        if let Some(reason) = &out.left_out {
            lines.push(format!("left out: {}: {reason}", out.name));
        }
    }
    lines.extend(
        report
            .warnings
            .iter()
            .map(|text| format!("warning: {text}")),
    );
    lines.join("\n") + "\n"
}
