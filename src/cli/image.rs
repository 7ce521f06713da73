//! `hull image inspect`: what is known of an image.

use serde::Serialize;

use super::lazy::Lazy;
use super::output::print_json;
use crate::image::{Configuration, Digest, Store, full_name};

/// What is done with an image.
#[derive(clap::Subcommand)]
pub enum Verb {
    /// Print what is known of images as JSON.
    Inspect(Lazy<Inspect>),
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull image inspect alpine                  by its name
  hull image inspect 1f0c5d                  by the first digits of its ID")]
pub struct Inspect {
    /// Names, or the first digits of IDs.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// An image as JSON.
#[derive(Serialize)]
struct Line {
    id: Digest,
    names: Vec<String>,
    manifest: Option<Digest>,
    bytes: u64,
    layers: Vec<Digest>,
    files: Vec<String>,
    configuration: Configuration,
}

impl Inspect {
    pub fn execute(self) -> anyhow::Result<()> {
        let store = Store::open()?;
        let mut lines = Vec::new();
        for text in &self.images {
            let found = store.find(text, &full_name(text))?;
            let Some(image) = found.first() else {
                continue;
            };
            let files = store.files(image);
            lines.push(Line {
                id: image.id.clone(),
                names: found.iter().map(|image| image.name.clone()).collect(),
                manifest: image.manifest.clone(),
                bytes: image.bytes,
                layers: image.layers.clone(),
                files: files
                    .iter()
                    .map(|file| file.display().to_string())
                    .collect(),
                configuration: serde_json::from_slice(&store.configuration(image)?)?,
            });
        }
        print_json(&lines)
    }
}
