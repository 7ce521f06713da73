//! From what the user typed to an image in the store.

use std::path::Path;

use super::add::Progress;
use super::error::ImageError;
use super::reference::Reference;
use super::store::{Image, Store};
use super::{engine, local, registry};

/// When an image is fetched from its registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pull {
    /// If it is not in the store.
    #[default]
    Missing,
    /// In any case: its name may mean another image now.
    Always,
    /// In no case.
    Never,
}

/// How an image is fetched.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// When.
    pub pull: Pull,
    /// Registries on this host are asked without TLS.
    pub insecure: bool,
}

/// What an image is typed as.
enum Source<'a> {
    /// A file or folder, behind which `:NAME` may stand.
    Path(&'a str),
    /// An archive on standard input.
    Stream,
    /// An image that another engine has: its program, and the name.
    Engine(&'static str, &'a str),
    /// A name at a registry.
    Registry(Reference),
}

impl<'a> Source<'a> {
    fn parse(text: &'a str) -> Result<Self, ImageError> {
        const PATHS: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];
        const ENGINES: [(&str, &str); 2] = [
            ("docker-daemon:", "docker"),
            ("containers-storage:", "podman"),
        ];
        if text == "-" {
            return Ok(Self::Stream);
        }
        if let Some(path) = PATHS.iter().find_map(|prefix| text.strip_prefix(prefix)) {
            return Ok(Self::Path(path));
        }
        for (prefix, program) in ENGINES {
            if let Some(name) = text.strip_prefix(prefix) {
                return Ok(Self::Engine(program, name));
            }
        }
        if text.starts_with(['/', '.']) {
            return Ok(Self::Path(text));
        }
        let text = text.strip_prefix("docker://").unwrap_or(text);
        text.parse().map(Self::Registry).map_err(|reason| {
            let hint = match Path::new(text).exists() {
                true => format!("; for the file, write ./{text}"),
                false => String::new(),
            };
            ImageError::Reference {
                reason: format!("{reason}{hint}"),
            }
        })
    }
}

/// The name in full under which the store has the image that is typed as `text`.
pub fn full_name(text: &str) -> String {
    match Source::parse(text) {
        Ok(Source::Registry(reference)) => reference.to_string(),
        Ok(Source::Path(path)) => {
            let full = std::fs::canonicalize(path);
            full.map_or_else(|_| path.into(), |full| full.display().to_string())
        }
        _ => text.into(),
    }
}

/// The image that is typed as `text`, added to the store unless it is there.
///
/// # Errors
/// There is none, or it cannot be had.
pub fn get(
    store: &Store,
    text: &str,
    how: How,
    progress: &mut Progress,
) -> Result<Image, ImageError> {
    let image = match Source::parse(text)? {
        Source::Path(path) => local::from_path(store, path, progress)?,
        Source::Stream => local::from_stream(store, &mut std::io::stdin(), text, progress)?,
        Source::Engine(program, name) => engine::save(store, program, name, text, progress)?,
        Source::Registry(reference) => {
            let name = reference.to_string();
            if how.pull != Pull::Always
                && let Some(image) = store.image(&name)
            {
                return Ok(image);
            }
            if how.pull == Pull::Never {
                return Err(ImageError::Unknown { name });
            }
            registry::pull(store, &reference, how.insecure, progress)?
        }
    };
    store.evict(&image.name);
    Ok(image)
}
