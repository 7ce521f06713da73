//! A figure as horizontal bars, in SVG.
//!
//! Positions are in per cent and text sizes in pixels, so that a chart is readable on a phone, too. Patterns
//! tell the sides apart, and each bar has its name and value above it: nothing depends on colours alone.

use maud::{Markup, html};

use super::comparison::Report;
use super::participant::Participant;
use super::quantity::round;
use super::words::{self, clean};
use crate::compare::figure::{Figure, Unit};
use crate::compare::statistics::Summary;

const STEP: usize = 42;
/// Height of the name and the value above a bar, in pixels.
const BAR: usize = 19;
/// Height of a bar, in pixels.
const HEIGHT: usize = 12;
/// Height of the axis below a logarithmic scale, in pixels.
const AXIS: usize = 22;
/// With a larger ratio of maximum to minimum, the scale is logarithmic: on a linear scale, the bar of the
/// minimum would be thinner than a line.
const MAX_LINEAR: f64 = 100.0;
/// The number of tick labels for which a phone has room.
const MAX_LABELS: usize = 4;

enum Scale {
    Linear {
        most: f64,
    },
    /// From `base` to the power of `low` to `base` to the power of `high`.
    Logarithmic {
        base: f64,
        low: i32,
        high: i32,
    },
}

/// The chart of `figure`, if it has numbers. `id` is unique on the page.
pub fn render(report: &Report, figure: &Figure, id: &str) -> Option<Markup> {
    let scale = Scale::of(figure)?;
    let name = clean(&figure.name);
    let columns: Vec<_> = report.columns().collect();
    let bars = columns.len() * STEP;
    let ticks = scale.ticks(figure.unit);
    let height = bars + if ticks.is_empty() { 0 } else { AXIS };
    let (title, description) = (format!("{id}-title"), format!("{id}-description"));
    Some(html! {
        div.chart {
            p.chart-name {
                (name)
                @if !ticks.is_empty() { " " span.scale { (scale.words()) } }
            }
            svg role="img" aria-labelledby=(format!("{title} {description}")) width="100%" height=(height) {
                title id=(title) { (name) }
                desc id=(description) { (describe(report, figure, &scale)) }
                @for (x, anchor, label) in &ticks {
                    line.tick x1=(x) x2=(x) y1="16" y2=(bars + 4) {}
                    @if let Some(label) = label {
                        text.tick-name x=(x) y=(bars + 18) text-anchor=(anchor) { (label) }
                    }
                }
                @for (number, one) in columns.iter().enumerate() {
                    (bar(figure, one, &scale, number * STEP))
                }
            }
        }
    })
}

/// A subject's name and value, and below them its bar and its whisker.
fn bar(figure: &Figure, one: &Participant, scale: &Scale, top: usize) -> Markup {
    let subject = one.name.as_str();
    let cell = figure.cell(subject);
    let shown = words::shown(figure, subject);
    let extrapolated = cell.is_some_and(|cell| cell.extrapolated);
    let summary = cell.and_then(|cell| cell.summary);
    let side = if extrapolated {
        "guess"
    } else {
        words::class(one.kind)
    };
    let class = format!("bar {side}");
    html! {
        text.bar-name x="0" y=(top + 13) { (clean(subject)) }
        @if let Some(summary) = summary {
            text.bar-value x="100%" y=(top + 13) text-anchor="end"
                data-figure=(clean(&figure.name)) data-subject=(clean(subject)) data-value=(summary.median) {
                (shown.value)
                @if let Some(ratio) = &shown.ratio { tspan.bar-ratio { " (" (ratio) ")" } }
            }
            (mark(scale, &summary, &class, top + BAR))
        } @else {
            text.bar-value x="100%" y=(top + 13) text-anchor="end" { "not measured" }
        }
    }
}

/// The bar of a median, or a point on a logarithmic scale, which has no 0 to begin at; with a whisker from
/// the minimum to the 99th percentile.
fn mark(scale: &Scale, summary: &Summary, class: &str, top: usize) -> Markup {
    let at = |value: f64| scale.percent(value);
    let (least, most, median) = (at(summary.least), at(summary.p99), at(summary.median));
    let middle = top + HEIGHT / 2;
    html! {
        @match scale {
            Scale::Linear { .. } => {
                rect.track x="0" y=(top) width="100%" height=(HEIGHT) {}
                rect class=(class) x="0" y=(top) width=(median) height=(HEIGHT) {}
            }
            Scale::Logarithmic { .. } => {
                line.stem x1="0" x2=(median) y1=(middle) y2=(middle) {}
            }
        }
        @if summary.least < summary.p99 {
            line.halo x1=(least) x2=(most) y1=(middle) y2=(middle) {}
            line.whisker x1=(least) x2=(most) y1=(middle) y2=(middle) {}
            @for end in [&least, &most] {
                line.whisker x1=(end) x2=(end) y1=(middle - 4) y2=(middle + 4) {}
            }
        }
        @if let Scale::Logarithmic { .. } = scale {
            circle class=(class) cx=(median) cy=(middle) r=(HEIGHT / 2) {}
        }
    }
}

fn describe(report: &Report, figure: &Figure, scale: &Scale) -> String {
    let names = report.columns().map(|one| {
        let shown = words::shown(figure, &one.name);
        let name = clean(&one.name);
        match figure.cell(&one.name).and_then(|cell| cell.summary) {
            Some(_) => format!("{name} {}", shown.with_ratio()),
            None => format!("{name} not measured"),
        }
    });
    let names: Vec<String> = names.collect();
    let scale = match scale.words() {
        "" => "linear scale",
        words => words,
    };
    format!("Horizontal bars, {scale}: {}.", names.join(", "))
}

impl Scale {
    /// The scale for all numbers of `figure`; `None` if it has none.
    fn of(figure: &Figure) -> Option<Self> {
        let summaries = figure.cells.iter().filter_map(|cell| cell.summary);
        let summaries: Vec<Summary> = summaries.collect();
        let all = |take: fn(f64, f64) -> f64, of: fn(&Summary) -> f64| {
            summaries.iter().map(of).reduce(take)
        };
        let least = all(f64::min, |one| one.least.min(one.median))?;
        let most = all(f64::max, |one| one.p99.max(one.median))?;
        let far = least > 0.0 && most.is_finite() && most / least > MAX_LINEAR;
        if !far {
            return Some(Self::Linear { most });
        }
        let base: f64 = match figure.unit {
            Unit::Bytes | Unit::BytesPerSecond => 16.0,
            _ => 10.0,
        };
        // The logarithm of a subnormal minimum is out of range.
        let exponent = |value: f64| (value.ln() / base.ln()).clamp(-300.0, 300.0);
        let low = exponent(least).floor() as i32;
        let high = exponent(most).ceil() as i32;
        Some(Self::Logarithmic {
            base,
            low,
            high: high.max(low + 1),
        })
    }

    /// The position of `value`: "12.50%".
    fn percent(&self, value: f64) -> String {
        let share = match self {
            Self::Linear { most } if *most > 0.0 => value / most,
            Self::Linear { .. } => 0.0,
            Self::Logarithmic { base, low, high } => {
                (value.ln() / base.ln() - f64::from(*low)) / f64::from(high - low)
            }
        };
        let share = if share.is_nan() { 0.0 } else { share };
        format!("{:.2}%", share.clamp(0.0, 1.0) * 100.0)
    }

    /// The positions of the ticks and the anchors of their labels, with as many labels as there is room for.
    fn ticks(&self, unit: Unit) -> Vec<(String, &'static str, Option<String>)> {
        let Self::Logarithmic { base, low, high } = *self else {
            return Vec::new();
        };
        let every = (high - low)
            .unsigned_abs()
            .div_ceil(MAX_LABELS as u32)
            .max(1) as i32;
        let tick = |exponent: i32| {
            let value = base.powi(exponent);
            let anchor = match exponent {
                at if at == low => "start",
                at if at == high => "end",
                _ => "middle",
            };
            let is_named = (exponent - low) % every == 0;
            (
                self.percent(value),
                anchor,
                is_named.then(|| round(unit, value)),
            )
        };
        (low..=high).map(tick).collect()
    }

    fn words(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "",
            Self::Logarithmic { base, .. } if *base > 10.0 => {
                "logarithmic scale: each line is 16 times the one before"
            }
            Self::Logarithmic { .. } => "logarithmic scale: each line is 10 times the one before",
        }
    }
}
