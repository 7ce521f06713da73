//! `hull guest`: the kernel and initramfs inside this program.

use std::path::PathBuf;

use clap::Subcommand;

use crate::guest;

/// What to do with the guest.
#[derive(Subcommand)]
pub enum Guest {
    /// Write vmlinux, initramfs.cpio and System.map to a folder.
    Export {
        /// The folder, made if it is missing; files in it are replaced.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

impl Guest {
    pub fn execute(self) -> anyhow::Result<()> {
        match self {
            Guest::Export { folder } => {
                let mut list = String::new();
                for (path, size) in guest::export(&guest::required()?, &folder)? {
                    list += &format!("{size:>10} {}\n", path.display());
                }
                super::output::print(list.as_bytes())
            }
        }
    }
}
