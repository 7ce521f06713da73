//! `hull guest`: the kernel and initramfs inside this program.

use std::path::PathBuf;

use super::lazy::Lazy;
use super::output::print;
use crate::guest;

/// `hull guest`.
#[derive(clap::Subcommand)]
pub enum Verb {
    /// Write vmlinux, initramfs.cpio and System.map to a folder.
    Export(Lazy<Export>),
}

/// `hull guest export`.
#[derive(clap::Args)]
pub struct Export {
    /// The folder, made if it is missing; files in it are replaced.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Export {
    pub fn execute(self) -> anyhow::Result<()> {
        let mut list = String::new();
        for (path, size) in guest::export(&guest::required()?, &self.folder)? {
            list += &format!("{size:>10} {}\n", path.display());
        }
        print(list.as_bytes())
    }
}
