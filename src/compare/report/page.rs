//! A comparison as a page for a browser: one file that loads nothing and runs nothing.
//!
//! [`maud`] escapes every text; should one not be escaped, the policy in the head forbids its effects.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart;
use super::comparison::{Report, Row};
use super::participant::Participant;
use super::quantity::{range, value};
use super::words::{self, CONTRADICTS, NOTHING, Shown, class, clean, conditions, side};
use crate::compare::figure::{Cell, Figure, Unit};
use crate::compare::subject::Kind;

/// No resources and no scripts (Content Security Policy Level 3).
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
const STYLE: &str = include_str!("page.css");
/// Rows whose headlines stand at the top of the page.
const IN_SHORT: [&str; 4] = ["startup time", "resource usage", "isolation", "footprint"];
const SIDES: [Kind; 3] = [Kind::Process, Kind::Container, Kind::Machine];

pub fn render(report: &Report) -> String {
    let title = "Container or virtual machine: what is the difference?";
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { (title) " Measured " (day(report)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (patterns())
                (head(report))
                main {
                    (warnings(report))
                    (in_short(report))
                    @for (number, row) in report.rows.iter().enumerate() {
                        (show(report, row, &format!("row-{}", number + 1)))
                    }
                    (subjects(report))
                    (again(report))
                }
                footer {
                    p { "Made with " code { "hull compare" } " " (clean(&report.host.hull))
                        ". This page loads nothing and runs nothing; the JSON of --json has every sample." }
                }
            }
        }
    };
    page.into_string()
}

fn patterns() -> Markup {
    html! {
        svg.patterns aria-hidden="true" width="0" height="0" {
            defs {
                pattern #hatch width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                    rect.hatch-ground width="6" height="6" {}
                    rect.hatch-line width="3" height="6" {}
                }
            }
        }
    }
}

fn day(report: &Report) -> String {
    let date = clean(&report.host.date);
    date.split('T').next().unwrap_or_default().into()
}

fn head(report: &Report) -> Markup {
    let takes_part = report.columns().count();
    html! {
        header {
            p.kicker { "Measured " time datetime=(clean(&report.host.date)) { (day(report)) } " by hull" }
            h1 { "What is the difference between a container and a virtual machine?" }
            p.lede {
                "The standard answer is a table of claims. This page compares each claim with measurements of the same \
                 program as a plain process, in containers and in virtual machines: " (takes_part)
                " subjects taking turns on one machine, " (words::runs(report.runs)) " each."
            }
            p.host { (words::machine(&report.host)) ". KVM: " (words::kvm(&report.host)) "." }
        }
    }
}

fn warnings(report: &Report) -> Markup {
    html! {
        @if !report.warnings.is_empty() {
            section.warnings aria-labelledby="warnings" {
                h2 #warnings { "Reasons for doubt" }
                ul { @for warning in &report.warnings { li { (clean(warning)) } } }
            }
        }
    }
}

fn in_short(report: &Report) -> Markup {
    let mut rows: Vec<&Row> = report.rows.iter().collect();
    rows.retain(|row| IN_SHORT.contains(&row.name.as_str()));
    html! {
        @if !rows.is_empty() {
            section aria-labelledby="in-short" {
                h2 #in-short { "In short" }
                div.tiles { @for row in rows { (tile(report, row)) } }
                p.small { "The best subject of each side by its median; all subjects are listed below." }
            }
        }
    }
}

fn tile(report: &Report, row: &Row) -> Markup {
    html! {
        div.tile {
            h3 { (clean(&row.name)) }
            p.small { (words::headline_name(row)) }
            dl {
                @for kind in SIDES {
                    @if let Some(best) = words::best(report, row, kind) {
                        div class=(class(Some(kind))) {
                            dt {
                                (swatch(kind)) (side(Some(kind)))
                                @if kind != Kind::Process { " " span.name { (clean(&best.name)) } }
                            }
                            dd { (words::headline(row, &best.name)) }
                        }
                    }
                }
            }
        }
    }
}

fn swatch(kind: Kind) -> Markup {
    html! {
        svg.swatch aria-hidden="true" width="14" height="12" {
            rect class=(format!("bar {}", class(Some(kind)))) x="1" y="1" width="12" height="10" {}
        }
    }
}

fn show(report: &Report, row: &Row, id: &str) -> Markup {
    let figures = row.figures.iter().enumerate();
    let charts = figures.filter_map(|(number, figure)| {
        chart::render(report, figure, &format!("{id}-chart-{}", number + 1))
    });
    let charts: Vec<Markup> = charts.collect();
    html! {
        section.row aria-labelledby=(id) data-row=(clean(&row.name)) {
            h2 id=(id) { (clean(&row.name)) }
            dl.claims {
                div { dt { "Claimed: container" } dd { (clean(&row.claim_container)) } }
                div { dt { "Claimed: virtual machine" } dd { (clean(&row.claim_machine)) } }
            }
            p.verdict {
                @if row.verdict.contradicts {
                    strong.against { (CONTRADICTS) }
                } @else {
                    strong { "Measured" }
                }
                " " (clean(&row.verdict.text))
            }
            @if charts.is_empty() {
                p.method { strong { "How it was measured. " } (clean(&row.method)) }
            } @else {
                figure {
                    (legend(report))
                    div.charts { @for chart in charts { (chart) } }
                    figcaption.method { strong { "How it was measured. " } (clean(&row.method)) }
                }
            }
            (table(report, row, id))
        }
    }
}

fn legend(report: &Report) -> Markup {
    let takes_part = |kind: &&Kind| report.side(**kind).next().is_some();
    html! {
        p.legend aria-hidden="true" {
            @for kind in SIDES.iter().filter(takes_part) {
                span { (swatch(*kind)) (side(Some(*kind))) }
            }
            span { "bar or point: median" }
            span { "whisker: minimum to 99th percentile" }
        }
    }
}

fn table(report: &Report, row: &Row, id: &str) -> Markup {
    let mut notes: Vec<String> = Vec::new();
    let columns: Vec<&Participant> = report.columns().collect();
    let mut line = |figure: &Figure| {
        html! {
            tr {
                th scope="row" { (clean(&figure.name)) }
                @for one in &columns { (cell(figure, &one.name, &mut notes)) }
            }
        }
    };
    let lines: Vec<Markup> = row.figures.iter().map(&mut line).collect();
    let caption = format!("{id}-table");
    html! {
        div.scroll role="region" aria-labelledby=(caption) tabindex="0" {
            table {
                caption id=(caption) { "The figures: " (clean(&row.name)) }
                thead {
                    tr {
                        th scope="col" { "figure" }
                        @for one in &columns {
                            th scope="col" { (clean(&one.name)) span.kind { (side(one.kind)) } }
                        }
                    }
                }
                tbody { @for line in lines { (line) } }
            }
        }
        @if !notes.is_empty() {
            ul.notes { @for (number, note) in notes.iter().enumerate() { li { "[" (number + 1) "] " (note) } } }
        }
    }
}

fn cell(figure: &Figure, subject: &str, notes: &mut Vec<String>) -> Markup {
    let empty = Cell::default();
    let cell = figure.cell(subject).unwrap_or(&empty);
    let shown = words::shown(figure, subject);
    let class = match cell.passed {
        Some(true) => "pass",
        Some(false) => "fail",
        None if shown.prose => "prose",
        None => "number",
    };
    let numbers = shown.notes.iter();
    let numbers: Vec<usize> = numbers
        .map(|note| words::note_number(notes, note.clone()))
        .collect();
    html! {
        td class=(class) data-figure=(clean(&figure.name)) data-subject=(clean(subject)) data-value=(data(cell, &shown)) {
            span.value { (shown.value) }
            @if let Some(ratio) = &shown.ratio { " " span.ratio { (ratio) } }
            @if let Some(summary) = cell.summary.filter(|one| one.least < one.p99) {
                span.range { (range(figure.unit, summary.least, summary.p99)) }
            }
            @for number in numbers { " " sup { "[" (number) "]" } }
        }
    }
}

/// The value of a cell for programs that read the page: the number of the JSON, "pass" or "fail", a text, or
/// nothing.
fn data(cell: &Cell, shown: &Shown) -> String {
    match (cell.passed, cell.summary) {
        (Some(passed), _) => words::outcome(passed).into(),
        (None, Some(summary)) => summary.median.to_string(),
        (None, None) if cell.text.is_none() => String::new(),
        _ => shown.value.clone(),
    }
}

fn subjects(report: &Report) -> Markup {
    let mut out: Vec<&Participant> = report.subjects.iter().collect();
    out.retain(|one| !one.takes_part());
    html! {
        section aria-labelledby="subjects" {
            h2 #subjects { "Participants" }
            div.scroll role="region" aria-labelledby="subjects-table" tabindex="0" {
                table.subjects {
                    caption #subjects-table { "Subjects, their versions and files" }
                    thead { tr { @for head in ["subject", "side", "version", "files", "notes"] { th scope="col" { (head) } } } }
                    tbody { @for one in report.columns() { (subject(one)) } }
                }
            }
            @if !out.is_empty() {
                h3 { "Left out" }
                ul.out {
                    @for one in out {
                        li { b { (clean(&one.name)) } ": " (one.left_out.as_deref().map(clean).unwrap_or_default()) }
                    }
                }
            }
        }
    }
}

fn subject(one: &Participant) -> Markup {
    html! {
        tr {
            th scope="row" { (clean(&one.name)) }
            td.prose { (side(one.kind)) }
            td.prose { (one.version.as_deref().map_or_else(|| NOTHING.into(), clean)) }
            td.prose {
                @for part in one.parts.iter().flatten() {
                    div { (clean(&part.what)) " " (value(Unit::Bytes, part.bytes as f64))
                        span.range { (clean(&part.path.display().to_string())) } }
                }
            }
            td.prose { @for caveat in &one.caveats { div { (clean(caveat)) } } }
        }
    }
}

fn again(report: &Report) -> Markup {
    html! {
        section aria-labelledby="again" {
            h2 #again { "Measure it yourself" }
            pre tabindex="0" { code { (words::command_line(&report.command)) } }
            dl.conditions {
                @for (name, text) in conditions(report) {
                    div { dt { (name) } dd { (text) } }
                }
                @for workload in &report.workloads {
                    div { dt { (clean(&workload.name)) } dd { code { (words::command_line(&workload.words)) } } }
                }
            }
            p.small {
                "Figures are medians. A ratio, such as 2.00x, is to the first subject of its line, and shown only \
                 if its 95 % range excludes 1. \"~\" marks a value that was computed from other figures. Absolute \
                 times of one machine say little about another: compare within this page."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{report, report_of};
    use super::*;
    use proptest::prelude::*;

    /// How often the page contains each character that makes tags and attributes.
    fn special(text: &str) -> Vec<usize> {
        let page = render(&report_of(text));
        ['<', '>', '"']
            .iter()
            .map(|c| page.matches(*c).count())
            .collect()
    }

    #[test]
    fn the_page_refers_to_no_other_file() {
        let page = render(&report());
        for foreign in [
            "http:", "https:", "<script", "<img", "<link", "url(h", "@import", "src=",
        ] {
            assert!(!page.contains(foreign), "{foreign} is on the page");
        }
        assert!(page.contains("content=\"default-src 'none'; style-src 'unsafe-inline';"));
    }

    #[test]
    fn headings_are_in_order() {
        let page = render(&report());
        let mut level = 0;
        for part in page.split("<h").skip(1) {
            let next = part.chars().next().and_then(|c| c.to_digit(10));
            let Some(next) = next else { continue };
            assert!(next <= level + 1, "h{next} after h{level}");
            level = next;
        }
    }

    proptest! {
        // Each case renders a whole report.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_text_adds_tags_or_attributes(text in "[a-z]\\PC*[a-z]|[a-z<>&\"'/=]{1,40}") {
            let harmless = text.replace(['<', '>', '&', '"', '\''], "x");
            prop_assert_eq!(special(&text), special(&harmless));
        }
    }
}
