//! `hull logs --network`: what left a machine, and what was refused.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};

use anyhow::{Context, bail};

use super::output::print;
use crate::fleet::kept::Kept;
use crate::net::policy::{Line, Reason, Told, Verdict};

/// Most bytes that are read: more than a machine writes in a run.
const MAX_READ: u64 = 8 << 20;

/// Print what is known of the machine `kept`.
///
/// # Errors
/// There are no rules on what leaves it, or its journal cannot be read.
pub fn show(kept: &Kept) -> anyhow::Result<()> {
    let name = &kept.record.name;
    let file = match File::open(kept.network()) {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "machine {name} has no rules on what leaves it, and all does; --allow or --deny-private of hull run has some"
        ),
        file => file.context("its network's log cannot be read")?,
    };
    // Not as a table, which would be broken at the width of a terminal: names are long.
    let mut text = line([
        "TIME",
        "COUNT",
        "PROTOCOL",
        "VERDICT",
        "DESTINATION",
        "NAME",
    ]);
    for it in latest(BufReader::new(file.take(MAX_READ))) {
        let row = row(it);
        text += &line(row.each_ref().map(String::as_str));
    }
    print(text.as_bytes())
}

fn line([time, count, protocol, verdict, destination, name]: [&str; 6]) -> String {
    format!("{time:<24}  {count:<6}  {protocol:<8}  {verdict:<24}  {destination:<21}  {name}\n")
}

/// The last line on each thing, in the order in which they were first told.
fn latest(text: impl BufRead) -> Vec<Line> {
    let (mut lines, mut places): (Vec<Line>, HashMap<Told, usize>) = Default::default();
    let parsed = text.lines().map_while(Result::ok);
    // One that was cut off is passed over.
    for line in parsed.filter_map(|line| serde_json::from_str::<Line>(&line).ok()) {
        let place = *places.entry(line.told.clone()).or_insert(lines.len());
        match lines.get_mut(place) {
            Some(before) => *before = line,
            None => lines.push(line),
        }
    }
    lines
}

fn row(line: Line) -> [String; 6] {
    let Told {
        protocol,
        to,
        port,
        name,
        verdict,
    } = line.told;
    let to = to.map(|to| to.to_string());
    let destination = match (to, port) {
        (Some(to), Some(port)) => format!("{to}:{port}"),
        (to, _) => to.unwrap_or_else(|| "-".into()),
    };
    let verdict = match verdict {
        Verdict::Allowed => "allowed",
        Verdict::Refused(Reason::NotAllowed) => "refused: not allowed",
        Verdict::Refused(Reason::Private) => "refused: private",
        Verdict::Refused(Reason::Unknown) => "refused: not looked into",
        Verdict::Refused(Reason::Forged) => "refused: another sender",
    };
    [
        line.time,
        // Told again at 10, 100 and so on: there may have been more since.
        format!("{}+", line.count),
        protocol,
        verdict.into(),
        destination,
        name.unwrap_or_else(|| "-".into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_shown_once_with_its_last_count() {
        let line = |count, port| {
            format!(
                "{{\"time\":\"2026-11-30T07:00:00.000Z\",\"count\":{count},\"protocol\":\"tcp\",\
                 \"to\":\"192.0.2.1\",\"port\":{port},\"name\":null,\"verdict\":{{\"refused\":\"not-allowed\"}}}}\n"
            )
        };
        let text = [line(1, 80), line(1, 443), line(10, 80), "{\"ti".into()].concat();
        let rows: Vec<_> = latest(text.as_bytes()).into_iter().map(row).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!(
            rows[0][1..5],
            ["10+", "tcp", "refused: not allowed", "192.0.2.1:80"]
        );
        assert_eq!(rows[1][4], "192.0.2.1:443");
    }
}
