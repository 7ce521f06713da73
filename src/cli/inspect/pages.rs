//! A page walk.

use crate::cli::table::Table;
use crate::config::size;
use crate::inspect::pages::Walk;

/// The walk, a level a line.
pub fn draw(walk: &Walk) -> String {
    let symbol = walk.symbol.as_deref().map(|name| format!(" ({name})"));
    let mut text = format!(
        "vCPU {}: {}{}, {}, CR3 {}\n",
        walk.vcpu,
        walk.address,
        symbol.unwrap_or_default(),
        walk.mode,
        walk.cr3
    );
    let mut rows = Table::indented(2);
    if !walk.levels.is_empty() {
        rows.row(["table", "index", "entry at", "entry", "points to", "flags"]);
    }
    for level in &walk.levels {
        rows.row([
            level.table.clone(),
            format!("{:#05x}", level.index),
            format!("{:#x}", level.gpa.0),
            format!("{:016x}", level.entry.0),
            format!("{:#x}", level.target.0),
            level.flags.clone(),
        ]);
    }
    text += &rows.draw();
    match walk.gpa {
        Some(gpa) => {
            let size = walk
                .page_size
                .map(|size| format!("{} page, ", size::show(size)));
            let what = walk.what.as_deref().unwrap_or_default();
            text += &format!(
                "  lies at {gpa}: {what}\n  {}{}\n",
                size.unwrap_or_default(),
                walk.end
            );
        }
        None => text += &format!("  {}\n", walk.end),
    }
    text
}
