//! `hull rmi`: removes images.

use super::output::print;
use crate::image::{Store, full_name};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull rmi alpine                            the name, and what only it has
  hull rmi 1f0c5d                            all names of the image with this ID
  hull rmi --all                             all images

A machine that runs keeps the files of its image until it ends.")]
pub struct Rmi {
    /// Names, or the first digits of IDs.
    #[arg(required_unless_present = "all", value_name = "IMAGE")]
    images: Vec<String>,
    /// All images.
    #[arg(long, conflicts_with = "images")]
    all: bool,
}

impl Rmi {
    pub fn execute(self) -> anyhow::Result<()> {
        let store = Store::open()?;
        let mut chosen = if self.all { store.images() } else { Vec::new() };
        for text in &self.images {
            chosen.extend(store.find(text, &full_name(text))?);
        }
        store.remove(&chosen)?;
        let names: String = chosen
            .iter()
            .map(|image| format!("{}\n", image.name))
            .collect();
        print(names.as_bytes())
    }
}
