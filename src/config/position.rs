//! Where in a file's text a key is, for messages. TOML is parsed once more to a tree with places. The JSON
//! parser gives the place of an error that a visitor returns, so it runs with one that returns an error at
//! the key.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use toml::de::{DeTable, DeValue};

/// A step on the way to a value.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// Line and column, from 1 on, of `place` in a JSON or TOML `text`, such as `disk[1].cache`. `last` is
/// the last key of it as it is written, if that is unknown: it may hold any character.
pub fn find(text: &str, json: bool, place: &str, last: Option<&str>) -> Option<(usize, usize)> {
    let known = last.map_or(Some(place), |last| place.strip_suffix(last))?;
    let mut way = steps(known.strip_suffix('.').unwrap_or(known))?;
    way.extend(last.map(Step::Key));
    if json {
        let mut from = serde_json::Deserializer::from_str(text);
        let error = Seek(&way).deserialize(&mut from).err()?;
        return Some((error.line(), error.column()));
    }
    let at = in_toml(text, &way)?;
    let before = text.get(..at)?;
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    Some((line, column))
}

/// Byte at which the key or value begins that `way` leads to.
fn in_toml(text: &str, way: &[Step]) -> Option<usize> {
    let whole = DeValue::Table(DeTable::parse(text).ok()?.into_inner());
    let (mut value, mut at) = (&whole, 0);
    for step in way {
        (value, at) = match step {
            Step::Key(key) => {
                let mut keys = value.as_table()?.iter();
                let (name, value) = keys.find(|(name, _)| name.get_ref() == key)?;
                (value.get_ref(), name.span().start)
            }
            Step::Index(index) => {
                let item = value.as_array()?.get(*index)?;
                (item.get_ref(), item.span().start)
            }
        };
    }
    Some(at)
}

fn steps(place: &str) -> Option<Vec<Step<'_>>> {
    let mut steps = Vec::new();
    for part in place.split('.').filter(|part| !part.is_empty()) {
        let (key, index) = match part.split_once('[') {
            Some((key, index)) => (key, Some(index.strip_suffix(']')?.parse().ok()?)),
            None => (part, None),
        };
        steps.push(Step::Key(key));
        steps.extend(index.map(Step::Index));
    }
    Some(steps)
}

/// Fails where the way leads to, and succeeds if it leads nowhere.
struct Seek<'a>(&'a [Step<'a>]);

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what the way leads to")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match self.0 {
                [Step::Key(wanted), rest @ ..] if *wanted == key => {
                    if rest.is_empty() {
                        return Err(A::Error::custom("here"));
                    }
                    map.next_value_seed(Seek(rest))?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let [Step::Index(index), rest @ ..] = self.0 else {
            return Err(A::Error::custom("here"));
        };
        for _ in 0..*index {
            list.next_element::<IgnoredAny>()?;
        }
        list.next_element_seed(Seek(rest))?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    // The way ends at a value of a list.
    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Err(E::custom("here"))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Err(E::custom("here"))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Err(E::custom("here"))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Err(E::custom("here"))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Err(E::custom("here"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_have_a_place() {
        let json =
            "{\n  \"cpus\": 1,\n  \"disk\": [\"a\", {\n    \"path\": \"b\",\n    \"c.d\": 1}]\n}";
        let toml = "cpus = 1\ndisk = [\"a\", { path = \"b\", 'c.d' = 1 }]\n\n[[net]]\nuser = 1\n";
        for (json, text, place, last, line) in [
            (true, json, "cpus", None, 2),
            (true, json, "disk[1].c.d", Some("c.d"), 5),
            (true, json, "disk[0]", None, 3),
            (false, toml, "disk[1].c.d", Some("c.d"), 2),
            (false, toml, "disk[0]", None, 2),
            (false, toml, "net[0].user", None, 5),
        ] {
            let found = find(text, json, place, last).unwrap_or_else(|| panic!("{place}"));
            assert_eq!(found.0, line, "{place} of {text}");
            assert!(found.1 > 0);
        }
        assert_eq!(find(json, true, "memory", None), None);
        assert_eq!(find(json, true, "disk[9]", None), None);
        assert_eq!(find("no TOML", false, "disk", None), None);
    }
}
