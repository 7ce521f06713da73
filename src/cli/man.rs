//! `hull man`: the manual pages, made from the flags' own descriptions.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::CommandFactory;
use clap_mangen::Man as Page;

/// The argument.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull man | man -l -                        read the page of hull
  hull man ~/.local/share/man/man1           then: man hull-run")]
pub struct Man {
    /// Write the pages of hull and of each command to this folder, which is made if it is missing.
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl Man {
    /// Print the page of hull, or write all pages.
    pub fn execute(self) -> anyhow::Result<()> {
        let hull = super::Cli::command();
        let Some(folder) = self.folder else {
            let mut page = Vec::new();
            Page::new(hull).render(&mut page)?;
            return super::print(&page);
        };
        fs::create_dir_all(&folder)
            .and_then(|()| clap_mangen::generate_to(hull, &folder))
            .with_context(|| format!("cannot write to {}", folder.display()))
    }
}
