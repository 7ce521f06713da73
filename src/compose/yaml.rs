//! YAML as a tree whose every value knows its line.
//!
//! The parser is an iterator of events, so that depth, size and aliases are bounded here: a value behind an alias
//! counts as often as it is named.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::error::FileError;

/// Most values of a file, with those behind aliases.
const MAX_VALUES: usize = 50_000;
/// Most values that lie in each other.
const MAX_DEPTH: usize = 32;

/// A value and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The line on which it begins, from 1.
    pub line: usize,
    /// What it is.
    pub kind: Kind,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: an empty value, `~` or `null`.
    Null,
    /// A text, number, date or boolean, as it is written; in quotes it is always a text.
    Scalar {
        /// What is written.
        text: String,
        /// Whether it was in quotes, or a block.
        quoted: bool,
    },
    /// A list.
    List(Vec<Value>),
    /// Keys with their values, in the order of the file.
    Map(Vec<Entry>),
}

/// A key of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its line.
    pub line: usize,
    /// What it stands for.
    pub value: Value,
}

/// Parse a file with one document.
///
/// # Errors
/// It is no YAML, has more than one document, a key twice, or is larger than any that people write.
pub fn parse(text: &str) -> Result<Value, FileError> {
    let mut tree = Tree::default();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let reason = format!("no YAML: {}", error.info());
            FileError::at(error.marker().line(), reason)
        })?;
        let line = span.start.line();
        if matches!(event, Event::DocumentStart(_)) {
            documents += 1;
            if documents > 1 {
                return Err(FileError::at(
                    line,
                    "a second document begins here; keep one",
                ));
            }
        }
        tree.add(event, line)?;
    }
    let empty = || FileError::at(1, "the file is empty; it has at least `services:`");
    tree.root.ok_or_else(empty)
}

/// The value that is being read.
#[derive(Default)]
struct Tree {
    /// Those that have begun, the outermost first.
    open: Vec<Open>,
    root: Option<Value>,
    /// Values with a name, and how many values each has.
    anchors: BTreeMap<usize, (Value, usize)>,
    count: usize,
}

/// A list or a map that has not ended.
struct Open {
    value: Value,
    anchor: usize,
    /// How many values there were before it.
    before: usize,
    /// The key for the next value of a map.
    key: Option<(String, usize)>,
}

impl Tree {
    fn add(&mut self, event: Event<'_>, line: usize) -> Result<(), FileError> {
        let begin = |kind| Value { line, kind };
        match event {
            Event::Scalar(text, style, anchor, _) => {
                self.count(1, line)?;
                let quoted = style != ScalarStyle::Plain;
                let kind = match &*text {
                    "" | "~" | "null" | "Null" | "NULL" if !quoted => Kind::Null,
                    text => Kind::Scalar {
                        text: text.into(),
                        quoted,
                    },
                };
                self.end(begin(kind), anchor, 1)
            }
            Event::SequenceStart(anchor, _) => self.open(begin(Kind::List(Vec::new())), anchor),
            Event::MappingStart(anchor, _) => self.open(begin(Kind::Map(Vec::new())), anchor),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => {
                    let count = self.count - open.before;
                    self.end(open.value, open.anchor, count)
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                // An alias of what it lies in is none yet.
                let named = self.anchors.get(&anchor).cloned();
                let (value, count) =
                    named.ok_or_else(|| FileError::at(line, "an alias of what it is part of"))?;
                self.count(count, line)?;
                self.end(value, 0, count)
            }
            _ => Ok(()),
        }
    }

    fn count(&mut self, more: usize, line: usize) -> Result<(), FileError> {
        self.count = self.count.saturating_add(more);
        match self.count > MAX_VALUES {
            true => Err(FileError::at(
                line,
                format!("more than {MAX_VALUES} values, with those behind aliases"),
            )),
            false => Ok(()),
        }
    }

    fn open(&mut self, value: Value, anchor: usize) -> Result<(), FileError> {
        let line = value.line;
        if self.open.len() >= MAX_DEPTH {
            return Err(FileError::at(
                line,
                format!("more than {MAX_DEPTH} values lie in each other"),
            ));
        }
        let before = self.count;
        self.count(1, line)?;
        self.open.push(Open {
            value,
            anchor,
            before,
            key: None,
        });
        Ok(())
    }

    /// Put a whole value, of `count` values, where it belongs.
    fn end(&mut self, value: Value, anchor: usize, count: usize) -> Result<(), FileError> {
        if anchor > 0 {
            self.anchors.insert(anchor, (value.clone(), count));
        }
        let Some(around) = self.open.last_mut() else {
            self.root = Some(value);
            return Ok(());
        };
        match (&mut around.value.kind, around.key.take()) {
            (Kind::List(list), _) => list.push(value),
            (Kind::Map(map), Some((key, line))) if key == "<<" => merge(map, &value, line)?,
            (Kind::Map(map), Some((key, line))) => insert(map, Entry { key, line, value })?,
            (Kind::Map(_), None) => {
                let line = value.line;
                let key = match value.kind {
                    Kind::Scalar { text, .. } => text,
                    _ => return Err(FileError::at(line, "a key is a text")),
                };
                around.key = Some((key, line));
            }
            _ => {}
        }
        Ok(())
    }
}

fn insert(map: &mut Vec<Entry>, entry: Entry) -> Result<(), FileError> {
    let Some(before) = map.iter().position(|it| it.key == entry.key) else {
        map.push(entry);
        return Ok(());
    };
    // What was merged before has lines of its own, in another map.
    match map.get(before).is_some_and(|it| it.line == MERGED) {
        true => {
            map.remove(before);
            map.push(entry);
            Ok(())
        }
        false => Err(FileError::at(
            entry.line,
            format!("{} stands here twice", entry.key),
        )),
    }
}

/// The line of a key that comes from `<<`, which the map itself may have again.
const MERGED: usize = 0;

/// `<<: *other`, or a list of others: their keys, unless the map has them (YAML 1.1, merge keys).
fn merge(map: &mut Vec<Entry>, from: &Value, line: usize) -> Result<(), FileError> {
    let all = match &from.kind {
        Kind::List(list) => list.as_slice(),
        _ => std::slice::from_ref(from),
    };
    for other in all {
        let Kind::Map(other) = &other.kind else {
            return Err(FileError::at(line, "<< merges maps"));
        };
        for entry in other {
            if !map.iter().any(|it| it.key == entry.key) {
                map.push(Entry {
                    line: MERGED,
                    ..entry.clone()
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
        path.split('.').fold(value, |value, key| match &value.kind {
            Kind::Map(map) => &map.iter().find(|it| it.key == key).expect(key).value,
            Kind::List(list) => &list[key.parse::<usize>().expect("a number")],
            other => panic!("{key}: {other:?}"),
        })
    }

    fn text(value: &Value) -> &str {
        match &value.kind {
            Kind::Scalar { text, .. } => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_know_their_lines() {
        let file = "a: 1\nb:\n  - x\n  - 'y'\nc: &d {e: f}\ng:\n  <<: *d\n  h: i\n  e: j\nk:\n";
        let tree = parse(file).expect("YAML");
        assert_eq!((text(at(&tree, "b.1")), at(&tree, "b.1").line), ("y", 4));
        assert_eq!(text(at(&tree, "c.e")), "f");
        assert_eq!(text(at(&tree, "g.e")), "j");
        assert_eq!(at(&tree, "k").kind, Kind::Null);
    }

    #[test]
    fn what_is_no_file_is_told_with_its_line() {
        let mut bomb = String::from("a0: &a0 [x]\n");
        for n in 1..30 {
            let before = format!("*a{}", n - 1);
            let list = [before.as_str(); 9].join(", ");
            bomb += &format!("a{n}: &a{n} [{list}]\n");
        }
        let deep = "[".repeat(100);
        for (file, part) in [
            ("", "line 1: the file is empty"),
            ("# nothing\n", "line 1: the file is empty"),
            ("a: 1\na: 2\n", "line 2: a stands here twice"),
            ("a: [1\nb: 2\n", "no YAML"),
            ("a: 1\n---\nb: 2\n", "line 2: a second document"),
            ("[a]: 1\n", "a key is a text"),
            ("a: &b [*b]\n", "an alias of what it is part of"),
            ("a: *b\n", "no YAML"),
            ("a:\n  <<: 1\n", "<< merges maps"),
            (&bomb, "more than 50000 values"),
            (&deep, "lie in each other"),
        ] {
            let refused = parse(file).expect_err(file).to_string();
            assert!(refused.contains(part), "{file:.40}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([a-c&*<:\\[\\]{}'\"|>#!-]|: |- |\n|  ){0,60}") {
            let _ = parse(&text);
        }
    }
}
