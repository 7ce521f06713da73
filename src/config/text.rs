//! Serde of strings of the operating system: text where people read it, bytes elsewhere.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use serde::de::Deserializer;
use serde::ser::{Error, Serializer};
use serde::{Deserialize, Serialize};

pub fn serialize<S: Serializer>(text: &OsStr, to: S) -> Result<S::Ok, S::Error> {
    if !to.is_human_readable() {
        return text.as_bytes().serialize(to);
    }
    match text.to_str() {
        Some(text) => text.serialize(to),
        None => Err(S::Error::custom(format!("{text:?} is not UTF-8"))),
    }
}

pub fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<OsString, D::Error> {
    if from.is_human_readable() {
        String::deserialize(from).map(OsString::from)
    } else {
        Vec::deserialize(from).map(OsString::from_vec)
    }
}

/// The same of several.
pub mod list {
    use std::ffi::OsString;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Text(#[serde(with = "super")] OsString);

    pub fn serialize<S: Serializer>(list: &[OsString], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(list.iter().map(|text| Text(text.clone())))
    }

    pub fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<OsString>, D::Error> {
        let list: Vec<Text> = Vec::deserialize(from)?;
        Ok(list.into_iter().map(|text| text.0).collect())
    }
}
