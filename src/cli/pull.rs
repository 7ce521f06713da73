//! `hull pull`: fetches images.

use super::from_image::fetch;
use super::output::print;
use crate::image::{How, Pull as When, Store};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull pull alpine                           docker.io/library/alpine:latest
  hull pull ghcr.io/x/y:tag                  of another registry
  hull pull --insecure localhost:5000/app    of a registry on this host
  docker save app | hull pull -              of docker

It is fetched again if its name means another image now; layers that are here
are not. A pull that was interrupted goes on. HULL_MIRRORS are URLs that are
asked before docker.io. Accounts are those of docker login and podman login.")]
pub struct Pull {
    /// What to fetch, as hull run --image has it.
    #[arg(required = true, value_name = "REF")]
    images: Vec<String>,
    /// A registry on this host is asked without TLS.
    #[arg(long)]
    insecure: bool,
}

impl Pull {
    pub fn execute(self) -> anyhow::Result<()> {
        let store = Store::open()?;
        let how = How {
            pull: When::Always,
            insecure: self.insecure,
        };
        for text in &self.images {
            let image = fetch(&store, text, how)?;
            print(format!("{}\n", image.name).as_bytes())?;
        }
        Ok(())
    }
}
