//! Images that another engine has: it writes them as `docker save` does.

use std::io::Read;
use std::process::{Command, Stdio};

use super::add::Progress;
use super::error::ImageError;
use super::local::Stream;
use super::store::{Image, Store};

/// Most bytes of an engine's message that are kept.
const MAX_MESSAGE: u64 = 4096;

/// Add the image `name` of the engine `program`, docker or podman; `full` is its name in the store.
///
/// # Errors
/// The engine is not there, or has no such image.
pub fn save(
    store: &Store,
    program: &'static str,
    name: &str,
    full: &str,
    progress: &mut Progress,
) -> Result<Image, ImageError> {
    let refused = |reason: String| ImageError::Engine {
        program,
        name: name.into(),
        reason,
    };
    // A name that begins with a dash would be a flag.
    let mut child = Command::new(program)
        .args(["save", "--", name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| refused(error.to_string()))?;
    let Some(mut stream) = child.stdout.take() else {
        return Err(refused("it has no output".into()));
    };
    let collected = Stream::collect(store, &mut stream);
    drop(stream);
    let mut message = String::new();
    if let Some(errors) = child.stderr.take() {
        let _ = errors.take(MAX_MESSAGE).read_to_string(&mut message);
    }
    let status = child.wait().map_err(|error| refused(error.to_string()))?;
    // What it wrote before it failed is no image.
    match status.success() {
        true => collected?.add(store, full, progress),
        false => Err(refused(message.trim().into())),
    }
}
