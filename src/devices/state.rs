//! Saved state of a device: bytes that only the device understands.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// A device cannot be saved now, or cannot continue from the given state; the text continues after
/// the device's name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct StateError(pub String);

/// The bytes of a device's state.
///
/// # Errors
/// postcard cannot encode the data, such as a map of unknown length.
pub fn encode(state: &impl Serialize) -> Result<Vec<u8>, StateError> {
    postcard::to_allocvec(state).map_err(|error| StateError(format!("cannot be saved: {error}")))
}

/// The state in `bytes`; its values are not checked yet.
///
/// # Errors
/// It is not such a state, or bytes are left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StateError> {
    match postcard::take_from_bytes(bytes) {
        Ok((state, [])) => Ok(state),
        Ok((_, rest)) => Err(StateError(format!(
            "has {} bytes of state more than this hull knows",
            rest.len()
        ))),
        Err(error) => Err(StateError(format!(
            "has a state that this hull does not understand: {error}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_encoded_is_decoded() {
        let bytes = encode(&(7u32, "seven")).expect("encoded");
        assert_eq!(decode::<(u32, String)>(&bytes), Ok((7, "seven".into())));
        assert!(decode::<(u32, String)>(&bytes[..bytes.len() - 1]).is_err());
        assert!(decode::<u32>(&bytes).is_err());
        assert!(decode::<u32>(&[]).is_err());
    }
}
