//! hull's own work before the first instruction, as named spans on the machine's clock.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::sync::lock;
use crate::trace::{self, Trace};

/// A stretch of hull's own work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    /// What was done, in a few words.
    pub name: &'static str,
    /// Whether it ran in parallel, on a thread of its own.
    pub aside: bool,
    /// From when, on the machine's clock.
    pub start: Duration,
    /// Until when, on the machine's clock.
    pub end: Duration,
}

/// The machine's clock, and hull's spans on it. Spans of two threads may overlap.
#[derive(Debug)]
pub struct Timeline {
    started: Instant,
    spans: Mutex<Vec<Span>>,
}

impl Timeline {
    /// A clock that starts at `started`, in the past.
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            spans: Mutex::new(Vec::new()),
        }
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Do `work`, recorded as the span `name`.
    pub fn span<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let start = self.now();
        let done = work();
        self.add(Span {
            name,
            aside: false,
            start,
            end: self.now(),
        });
        done
    }

    /// As [`Timeline::span`], for work on another thread.
    pub fn span_aside<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let start = self.now();
        let done = work();
        self.add(Span {
            name,
            aside: true,
            start,
            end: self.now(),
        });
        done
    }

    /// Add a span that was measured elsewhere.
    pub fn add(&self, span: Span) {
        lock(&self.spans).push(span);
    }

    /// Record the spans so far in a trace.
    pub fn record(&self, trace: &Trace) {
        for span in self.spans() {
            let phase = trace::Event::Phase {
                name: span.name.into(),
                since: trace::nanoseconds(span.start),
                aside: span.aside,
            };
            trace.record_at(trace::nanoseconds(span.end), phase);
        }
    }

    /// The spans so far, sorted by start.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = lock(&self.spans).clone();
        spans.sort_by_key(|span| span.start);
        spans
    }
}
