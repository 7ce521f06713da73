//! `hull version`: which hull this is, and what it carries and reads.

use serde::Serialize;

use super::output::{print, print_json};
use crate::{guest, snapshot};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull version --json | jq -r .guest_kernel")]
pub struct Version {
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Found {
    version: &'static str,
    guest_kernel: Option<&'static str>,
    snapshot_format: u32,
}

impl Version {
    /// Print the version of hull, of the kernel inside it, and of the snapshots that it writes.
    pub fn execute(self) -> anyhow::Result<()> {
        let found = Found {
            version: env!("CARGO_PKG_VERSION"),
            guest_kernel: guest::RELEASE,
            snapshot_format: snapshot::VERSION,
        };
        if self.json {
            return print_json(&found);
        }
        let kernel = found.guest_kernel.unwrap_or("none in this program");
        let text = format!(
            "hull {}\nguest kernel: {kernel}\nsnapshot format: {}\n",
            found.version, found.snapshot_format
        );
        print(text.as_bytes())
    }
}
