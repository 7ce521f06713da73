//! A device of a configuration file as a table of its options, turned into the text that its flag
//! takes: both are then parsed by the same code.

use serde_json::{Map, Value};

use super::error::ConfigError;

/// What the table of one kind of device may hold, and how its flag writes it.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// The key in the file, for messages.
    name: &'static str,
    /// Keys whose values stand at the beginning of the text, without the keys.
    bare: &'static [&'static str],
    /// The other keys, in the order of the text: `key=value`, or only `key` if the value is true.
    options: &'static [&'static str],
    separator: char,
    /// What becomes of a separator inside a value.
    inside: Inside,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    Refused,
    /// It is written twice.
    Doubled,
    /// It stands as it is: the value is the last of the text, or the first one.
    Kept,
}

impl Table {
    /// A table whose text is separated by commas, which no value may contain.
    pub const fn new(
        name: &'static str,
        bare: &'static [&'static str],
        options: &'static [&'static str],
    ) -> Self {
        Self {
            name,
            bare,
            options,
            separator: ',',
            inside: Inside::Refused,
        }
    }

    /// As it is, with commas inside values written twice.
    pub const fn with_doubled_commas(self) -> Self {
        Self {
            inside: Inside::Doubled,
            ..self
        }
    }

    /// As it is; the last value may contain commas.
    pub const fn with_rest(self) -> Self {
        Self {
            inside: Inside::Kept,
            ..self
        }
    }

    /// As it is, separated by colons, which only the first value may contain.
    pub const fn with_colons(self) -> Self {
        Self {
            separator: ':',
            ..self
        }
    }

    /// The text that the flag takes. `place` says where the table is in the file.
    ///
    /// # Errors
    /// An unknown key, or a value that is no option's.
    pub fn text(&self, table: &Map<String, Value>, place: &str) -> Result<String, ConfigError> {
        let known = || self.bare.iter().chain(self.options).copied();
        for key in table.keys() {
            if !known().any(|known| known == key) {
                return Err(ConfigError::unknown_key(
                    &format!("{place}.{key}"),
                    key,
                    known(),
                ));
            }
        }
        let mut parts = Vec::new();
        for (index, key) in self.bare.iter().enumerate() {
            let value = table.get(*key);
            let value = value.map(|value| word(value, &format!("{place}.{key}")));
            let value = value.transpose()?.unwrap_or_default();
            let first = index == 0 && self.separator == ':';
            parts.push(if first {
                value
            } else {
                self.separated(value, place, key)?
            });
        }
        for key in self.options {
            let place = format!("{place}.{key}");
            let values = match table.get(*key) {
                None | Some(Value::Bool(false)) => continue,
                Some(Value::Bool(true)) => {
                    parts.push((*key).to_string());
                    continue;
                }
                Some(Value::Array(values)) => values.as_slice(),
                Some(value) => std::slice::from_ref(value),
            };
            for value in values {
                let value = self.separated(word(value, &place)?, &place, key)?;
                parts.push(format!("{key}={value}"));
            }
        }
        Ok(parts.join(&self.separator.to_string()))
    }

    fn separated(&self, value: String, place: &str, key: &str) -> Result<String, ConfigError> {
        match self.inside {
            Inside::Doubled => Ok(value.replace(',', ",,")),
            Inside::Kept if self.options.last() == Some(&key) => Ok(value),
            _ if value.contains(self.separator) => Err(ConfigError::Value {
                place: place.into(),
                reason: format!("the {key} of a {} has no '{}'", self.name, self.separator),
            }),
            _ => Ok(value),
        }
    }
}

/// A value as a flag has it.
fn word(value: &Value, place: &str) -> Result<String, ConfigError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(ConfigError::Value {
            place: place.into(),
            reason: "it is a string or a number".into(),
        }),
    }
}
