//! Reads a report from its JSON.

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum ReportError {
    #[error("it is not JSON, or was cut off: {0}")]
    NotJson(serde_json::Error),
    #[error("it is not a report of `{0}`: it has no format and no {1}")]
    NotReport(&'static str, &'static str),
    #[error(
        "its format is {0}, and this hull ({version}) reads up to {1}: use the hull that wrote it or a newer one",
        version = env!("CARGO_PKG_VERSION")
    )]
    TooNew(u64, u32),
    #[error("it is damaged: {0}")]
    Damaged(serde_json::Error),
    /// A participant lacks what every participant of this report has.
    #[error("it is damaged: the subject {0:?} has no {1}")]
    Incomplete(String, &'static str),
    #[error("it is damaged: {0:?} has a cell of {1:?}, which is not among its subjects")]
    UnknownSubject(String, String),
}

/// The report of `command`, which has `field` and a format up to `max`.
pub fn read<T: DeserializeOwned>(
    json: &[u8],
    command: &'static str,
    field: &'static str,
    max: u32,
) -> Result<T, ReportError> {
    let value: Value = serde_json::from_slice(json).map_err(ReportError::NotJson)?;
    let format = value.get("format").and_then(Value::as_u64);
    match (format, value.get(field)) {
        (Some(format), _) if format > max.into() => Err(ReportError::TooNew(format, max)),
        (Some(_), Some(_)) => serde_json::from_value(value).map_err(ReportError::Damaged),
        _ => Err(ReportError::NotReport(command, field)),
    }
}
