//! `hull man`: the manual pages, made from the flags' own descriptions.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Command;
use clap::builder::Resettable;
use clap_mangen::Man as Page;
use clap_mangen::roff::{Roff, bold, roman};

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
    pub fn execute(self, mut hull: Command) -> anyhow::Result<()> {
        hull.build();
        let Some(folder) = self.folder else {
            return super::output::print(&page(hull)?.1);
        };
        fs::create_dir_all(&folder)
            .and_then(|()| write_all(&hull, &folder))
            .with_context(|| format!("cannot write to {}", folder.display()))
    }
}

/// Write the page of `command` and those of the commands below it.
fn write_all(command: &Command, folder: &Path) -> io::Result<()> {
    for below in command.get_subcommands() {
        write_all(below, folder)?;
    }
    let (name, page) = page(command.clone())?;
    fs::write(folder.join(name), page)
}

/// The page of `command` and the name of its file.
fn page(command: Command) -> io::Result<(String, Vec<u8>)> {
    let notes = command.get_after_help().map(|notes| notes.to_string());
    let page = Page::new(command.after_help(Resettable::Reset));
    let mut roff = Vec::new();
    page.render(&mut roff)?;
    add_notes(&notes.unwrap_or_default()).to_writer(&mut roff)?;
    Ok((page.get_filename(), roff))
}

/// What stands below the flags in `--help`: paragraphs, the first word a heading if a colon ends
/// it, and examples in two columns.
fn add_notes(notes: &str) -> Roff {
    let mut roff = Roff::new();
    for paragraph in notes.split("\n\n") {
        match paragraph.split_once(':') {
            Some(("Examples", lines)) => {
                roff.control("SH", ["EXAMPLES"]);
                for line in lines.trim().lines() {
                    let (command, note) = line.trim().split_once("   ").unwrap_or((line, ""));
                    roff.control("TP", []);
                    roff.text([bold(command.trim())]);
                    roff.text([roman(note.trim())]);
                }
            }
            Some(("Exit status", text)) => {
                roff.control("SH", ["EXIT STATUS"]);
                roff.text([roman(text.trim().replace('\n', " "))]);
            }
            _ if paragraph.is_empty() => {}
            _ => {
                roff.control("SH", ["NOTES"]);
                roff.text([roman(paragraph.replace('\n', " "))]);
            }
        }
    }
    roff
}
