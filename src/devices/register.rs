//! A device's registers as an inspection shows them.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A register with its value, read without the side effects of a guest's read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// Its name in the data sheet or manual.
    pub name: Cow<'static, str>,
    /// Offset in its device, if it has an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Its value, zero-extended.
    pub value: Hex,
    /// Width in bits.
    pub bits: u8,
    /// What the value means; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub words: String,
}

impl Register {
    /// The register `name` of `bits` bits, at `offset` of its device.
    pub fn at(offset: u64, name: &'static str, bits: u8, value: u64) -> Self {
        Self {
            offset: Some(offset),
            ..Self::new(name, bits, value)
        }
    }

    /// A register without an address.
    pub fn new(name: impl Into<Cow<'static, str>>, bits: u8, value: u64) -> Self {
        Self {
            name: name.into(),
            offset: None,
            value: Hex(value),
            bits,
            words: String::new(),
        }
    }

    /// Add what its value means.
    pub fn meaning(mut self, words: impl Into<String>) -> Self {
        self.words = words.into();
        self
    }
}

/// The names of the bits that are set in `value`, in the order of `names`.
pub fn flags(value: u64, names: &[(u32, &str)]) -> String {
    let set = names.iter().filter(|(bit, _)| value >> bit & 1 == 1);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
}

/// A number that text and JSON show in hexadecimal: most readers of JSON lose precision above
/// 2^53.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x");
        let value = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        value
            .map(Self)
            .ok_or_else(|| de::Error::custom("not a hexadecimal number"))
    }
}
