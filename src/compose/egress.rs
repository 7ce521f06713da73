//! What may leave the machines of a service or a network: keys of hull's own.

use super::error::FileError;
use super::reader::Reader;
use super::yaml::Value;
use crate::net::policy::{Allow, MAX_ALLOWED};

/// Destinations, as `--allow` has them.
pub const ALLOW: &str = "x-hull-allow";
/// As `--deny-private`.
pub const DENY_PRIVATE: &str = "x-hull-deny-private";

/// The destinations of [`ALLOW`].
///
/// # Errors
/// One is none, with its line; or there are none, or too many.
pub fn allowed(reader: &Reader<'_>, value: &Value) -> Result<Vec<Allow>, FileError> {
    let texts = reader.texts(value, ALLOW)?;
    if texts.is_empty() {
        let reason =
            format!("{ALLOW} names no destination; internal: true lets nothing leave a network");
        return Err(FileError::at(value.line, reason));
    }
    if texts.len() > MAX_ALLOWED {
        let reason = format!(
            "{ALLOW} names {} destinations, and {MAX_ALLOWED} are the most",
            texts.len()
        );
        return Err(FileError::at(value.line, reason));
    }
    let parse = |text: &super::reader::Text| {
        let allow = text.text.parse();
        allow.map_err(|reason: String| FileError::at(text.line, format!("{ALLOW}: {reason}")))
    };
    texts.iter().map(parse).collect()
}
