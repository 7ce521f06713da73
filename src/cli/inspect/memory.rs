//! The memory map as a picture.

use crate::config::size;
use crate::inspect::map::{Area, Kind, Memory};

/// Characters inside of the box.
const INSIDE: usize = 12;

/// The picture, the highest address on top.
pub fn draw(memory: &Memory) -> String {
    let mut text = format!(
        "{} of RAM, {} of it resident on the host\n\n",
        size::show(memory.bytes),
        size::show(memory.resident)
    );
    let edge = "-".repeat(INSIDE);
    let mut above = memory.areas.last().map_or(0, |area| area.end.0);
    text += &format!("{above:>14x} +{edge}+\n");
    for area in memory.areas.iter().rev() {
        text += &format!("               |{}| {}\n", inside(area), what(area));
        above = area.start.0;
        text += &format!("{above:>14x} +{edge}+\n");
    }
    text +=
        "\n## RAM   :: put there by hull before the first instruction   == a device's registers\n";
    text
}

/// What fills the box.
fn inside(area: &Area) -> String {
    match area.kind {
        Kind::Ram => "#",
        Kind::Loaded => ":",
        Kind::Device => "=",
        Kind::Hole => " ",
    }
    .repeat(INSIDE)
}

fn what(area: &Area) -> String {
    let size = size::show(area.end.0 - area.start.0);
    let resident = area
        .resident
        .map(|there| format!(", {} resident", size::show(there)));
    format!("{} ({size}{})", area.what, resident.unwrap_or_default())
}
