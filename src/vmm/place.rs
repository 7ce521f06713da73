//! Places in the guest and lines of its console, as parts of messages.

use crate::symbols;

/// A place in the guest, such as `RIP 0x1000 (symbol+0x10)`.
pub fn place(rip: u64, symbols: Option<&symbols::Source>) -> String {
    let symbols = symbols.map(symbols::Source::load).unwrap_or_default();
    match symbols.lookup(rip) {
        Some((name, offset)) => format!("RIP {rip:#x} ({name}+{offset:#x})"),
        None => format!("RIP {rip:#x}"),
    }
}

/// The console's last lines, as the end of a message.
pub fn quote(lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut text = "\n  last lines of the console:".to_string();
    for line in lines {
        text += "\n    ";
        text += line;
    }
    text
}
