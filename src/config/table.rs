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
    separators: Separators,
}

/// What separates the parts of a device's text.
#[derive(Clone, Copy, Debug)]
pub enum Separators {
    /// Commas, which no value may contain.
    Commas,
    /// Commas; one inside a value is written twice.
    DoubledCommas,
    /// Commas, which only the last value may contain.
    CommasButInLast,
    /// Colons, which only the first value may contain.
    ColonsButInFirst,
}

impl Table {
    /// The table of the device that is called `name` in messages.
    pub const fn new(
        name: &'static str,
        bare: &'static [&'static str],
        options: &'static [&'static str],
        separators: Separators,
    ) -> Self {
        Self {
            name,
            bare,
            options,
            separators,
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
            let keeps = index == 0 && matches!(self.separators, Separators::ColonsButInFirst);
            parts.push(if keeps {
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
        Ok(parts.join(&self.separator().to_string()))
    }

    fn separator(&self) -> char {
        match self.separators {
            Separators::ColonsButInFirst => ':',
            _ => ',',
        }
    }

    fn separated(&self, value: String, place: &str, key: &str) -> Result<String, ConfigError> {
        match self.separators {
            Separators::DoubledCommas => Ok(value.replace(',', ",,")),
            Separators::CommasButInLast if self.options.last() == Some(&key) => Ok(value),
            _ if value.contains(self.separator()) => Err(ConfigError::Value {
                at: String::new(),
                place: place.into(),
                reason: format!("the {key} of a {} has no '{}'", self.name, self.separator()),
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
            at: String::new(),
            place: place.into(),
            reason: "it is a string or a number".into(),
        }),
    }
}
