//! `hull images`: lists images.

use std::time::UNIX_EPOCH;

use serde::Serialize;

use super::output::{print, print_json, say};
use super::table::{Table, ago};
use crate::config::size;
use crate::image::{Digest, Image, Store};

#[derive(clap::Args)]
#[command(after_help = "\
They lie in $XDG_CACHE_HOME/hull/images, or ~/.cache/hull/images; with
HULL_CACHE in the folder images there. HULL_IMAGES_SIZE is how much of the disk
they may take, 32G when it is not set: those that were not used for longest go
first. Layers that several images have are there once.")]
pub struct Images {
    /// Print the list as JSON.
    #[arg(long)]
    json: bool,
}

/// An image as JSON.
#[derive(Serialize)]
struct Line {
    name: String,
    id: Digest,
    manifest: Option<Digest>,
    layers: usize,
    bytes: u64,
    created: Option<String>,
    /// Seconds of Unix time.
    last_used: u64,
}

impl Images {
    pub fn execute(self) -> anyhow::Result<()> {
        let images = Store::open()?.images();
        if self.json {
            let lines: Vec<Line> = images.into_iter().map(line).collect();
            return print_json(&lines);
        }
        if images.is_empty() {
            say("no images yet");
            return Ok(());
        }
        let mut table = Table::default();
        table.row(["NAME", "ID", "LAYERS", "SIZE", "LAST USED"]);
        for image in &images {
            table.row([
                image.name.clone(),
                image.id.short().into(),
                image.layers.len().to_string(),
                size::show(image.bytes),
                ago(image.last_used.elapsed().unwrap_or_default()),
            ]);
        }
        print(table.draw().as_bytes())
    }
}

fn line(image: Image) -> Line {
    let last_used = image.last_used.duration_since(UNIX_EPOCH);
    Line {
        name: image.name,
        id: image.id,
        manifest: image.manifest,
        layers: image.layers.len(),
        bytes: image.bytes,
        created: image.created,
        last_used: last_used.map_or(0, |it| it.as_secs()),
    }
}
