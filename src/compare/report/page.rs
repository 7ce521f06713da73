//! A report as a page for a browser: one file that asks for nothing else and runs nothing.
//!
//! Every text is put in by [`maud`], which escapes it; the policy in the head forbids what would be left.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart;
use super::saved::{Participant, Report, Row};
use super::words::{self, NOTHING, Shown, clean, side};
use crate::compare::figure::{Cell, Figure, Unit};
use crate::compare::subject::Kind;

/// Nothing is loaded and nothing is run (Content Security Policy Level 3).
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
const STYLE: &str = include_str!("page.css");
/// Rows whose first figures answer the question in short.
const IN_SHORT: [&str; 4] = ["startup time", "resource usage", "isolation", "footprint"];
const SIDES: [Kind; 3] = [Kind::Process, Kind::Container, Kind::Machine];

/// The page of `report`.
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
                    (conditions(report))
                }
                footer {
                    p { "Made by " code { "hull compare" } " " (clean(&report.host.hull))
                        ". This page loads nothing and runs nothing; its JSON has every sample." }
                }
            }
        }
    };
    page.into_string()
}

/// What the bars of a side are filled with, for all charts.
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
    let runs = match report.runs {
        1 => "once".into(),
        runs => format!("{runs} times"),
    };
    html! {
        header {
            p.kicker { "Measured " time datetime=(clean(&report.host.date)) { (day(report)) } " by hull" }
            h1 { "What is the difference between a container and a virtual machine?" }
            p.lede {
                "The standard answer is a table of claims. Here each claim stands beside what was measured: the same \
                 program as a plain process, in containers and in virtual machines, " (takes_part)
                " subjects in turns, " (runs) " each, on one machine."
            }
            p.host { (words::machine(report)) ". KVM: " (words::kvm(report)) "." }
        }
    }
}

fn warnings(report: &Report) -> Markup {
    html! {
        @if !report.warnings.is_empty() {
            section.warnings aria-labelledby="warnings" {
                h2 #warnings { "Before you believe it" }
                ul { @for warning in &report.warnings { li { (clean(warning)) } } }
            }
        }
    }
}

/// The few numbers that answer the question.
fn in_short(report: &Report) -> Markup {
    let rows = report
        .rows
        .iter()
        .filter(|row| IN_SHORT.contains(&row.name.as_str()));
    let rows: Vec<&Row> = rows.collect();
    html! {
        @if !rows.is_empty() {
            section aria-labelledby="in-short" {
                h2 #in-short { "In short" }
                div.tiles { @for row in rows { (tile(report, row)) } }
                p.small { "The best of each side by the median; all subjects are below." }
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
                        div class=(class(kind)) {
                            dt {
                                (swatch(kind)) (side(kind))
                                @if kind != Kind::Process { " " span.who { (clean(&best.name)) } }
                            }
                            dd { (words::headline(row, &best.name)) }
                        }
                    }
                }
            }
        }
    }
}

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Process => "process",
        Kind::Container => "container",
        Kind::Machine => "machine",
    }
}

/// What the bars of a side look like.
fn swatch(kind: Kind) -> Markup {
    html! {
        svg.swatch aria-hidden="true" width="14" height="12" {
            rect class=(format!("bar {}", class(kind))) x="1" y="1" width="12" height="10" {}
        }
    }
}

fn show(report: &Report, row: &Row, id: &str) -> Markup {
    let charts = row
        .figures
        .iter()
        .enumerate()
        .filter_map(|(number, figure)| {
            chart::render(report, figure, &format!("{id}-chart-{}", number + 1))
        });
    let charts: Vec<Markup> = charts.collect();
    html! {
        section.row aria-labelledby=(id) data-row=(clean(&row.name)) {
            h2 id=(id) { (clean(&row.name)) }
            dl.claims {
                div { dt { "They say: container" } dd { (clean(&row.claim_container)) } }
                div { dt { "They say: virtual machine" } dd { (clean(&row.claim_machine)) } }
            }
            p.verdict {
                @match row.verdict.contradicts {
                    true => strong.against { "Against the standard answer" },
                    false => strong { "Measured" },
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
    let takes_part = |kind: &&Kind| report.columns().any(|one| one.kind == **kind);
    html! {
        p.legend aria-hidden="true" {
            @for kind in SIDES.iter().filter(takes_part) {
                span { (swatch(*kind)) (side(*kind)) }
            }
            span { "bar or point: median" }
            span { "whisker: least to 99th percentile" }
        }
    }
}

/// The figures of a row, by subjects.
fn table(report: &Report, row: &Row, id: &str) -> Markup {
    let mut notes: Vec<String> = Vec::new();
    let columns: Vec<&Participant> = report.columns().collect();
    let lines: Vec<Markup> = row
        .figures
        .iter()
        .map(|figure| {
            html! {
                tr {
                    th scope="row" { (clean(&figure.name)) }
                    @for one in &columns { (cell(figure, &one.name, &mut notes)) }
                }
            }
        })
        .collect();
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
    let numbers: Vec<usize> = shown
        .notes
        .iter()
        .map(|note| note_number(notes, note))
        .collect();
    html! {
        td class=(class) data-figure=(clean(&figure.name)) data-subject=(clean(subject)) data-value=(data(cell, &shown)) {
            span.value { (shown.value) }
            @if let Some(ratio) = &shown.ratio { " " span.ratio { (ratio) } }
            @if let Some(summary) = cell.summary.filter(|one| one.least < one.p99) {
                span.range { (words::range(figure.unit, summary.least, summary.p99)) }
            }
            @for number in numbers { " " sup { "[" (number) "]" } }
        }
    }
}

/// What a cell is for those who read the page by a program: the number of the JSON, "pass" or "fail", a
/// text, or nothing.
fn data(cell: &Cell, shown: &Shown) -> String {
    match (cell.passed, cell.summary) {
        (Some(passed), _) => words::outcome(passed).into(),
        (None, Some(summary)) => summary.median.to_string(),
        (None, None) if cell.text.is_none() => String::new(),
        _ => shown.value.clone(),
    }
}

/// From 1; a note that several cells have stands once.
fn note_number(notes: &mut Vec<String>, note: &str) -> usize {
    let known = notes.iter().position(|one| one == note);
    known.unwrap_or_else(|| {
        notes.push(note.into());
        notes.len() - 1
    }) + 1
}

fn subjects(report: &Report) -> Markup {
    let out: Vec<&Participant> = report
        .subjects
        .iter()
        .filter(|one| one.left_out.is_some())
        .collect();
    html! {
        section aria-labelledby="subjects" {
            h2 #subjects { "Who took part" }
            div.scroll role="region" aria-labelledby="subjects-table" tabindex="0" {
                table.subjects {
                    caption #subjects-table { "Subjects, their versions and files" }
                    thead { tr { @for head in ["subject", "side", "version", "files", "to know"] { th scope="col" { (head) } } } }
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
                @for part in &one.parts {
                    div { (clean(&part.what)) " " (words::value(Unit::Bytes, part.bytes as f64))
                        span.range { (clean(&part.path.display().to_string())) } }
                }
            }
            td.prose { @for caveat in &one.caveats { div { (clean(caveat)) } } }
        }
    }
}

/// Where, by what and how often: what somebody needs who wants to do it again.
fn conditions(report: &Report) -> Markup {
    html! {
        section aria-labelledby="again" {
            h2 #again { "Measure it yourself" }
            pre tabindex="0" { code { (words::command_line(&report.command)) } }
            dl.conditions {
                div { dt { "date" } dd { (clean(&report.host.date)) } }
                div { dt { "host" } dd { (words::machine(report)) } }
                div { dt { "KVM" } dd { (words::kvm(report)) } }
                div { dt { "hull" } dd { (clean(&report.host.hull)) } }
                div { dt { "runs" } dd { (report.runs) } }
                @for workload in &report.workloads {
                    div { dt { (clean(&workload.name)) } dd { code { (words::command_line(&workload.words)) } } }
                }
            }
            p.small {
                "Figures are medians. A ratio, such as 2.00x, is to the first subject of its line, and shown only \
                 where 95 of 100 draws of the runs agree that there is a difference. \"~\" marks what was computed \
                 from other figures. Absolute times of one machine say little of another: compare within this page."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{report, report_of};
    use super::*;
    use proptest::prelude::*;

    /// How often the page of that text has each of the characters that make tags and attributes.
    fn special(text: &str) -> Vec<usize> {
        let page = render(&report_of(text));
        ['<', '>', '"']
            .iter()
            .map(|c| page.matches(*c).count())
            .collect()
    }

    #[test]
    fn the_page_is_alone() {
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
        // A whole report each.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_text_makes_tags_or_attributes(text in "[a-z]\\PC*[a-z]|[a-z<>&\"'/=]{1,40}") {
            let harmless = text.replace(['<', '>', '&', '"', '\''], "x");
            prop_assert_eq!(special(&text), special(&harmless));
        }
    }
}
