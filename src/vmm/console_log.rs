//! The end of the guest's console output, for messages about a panic.

use std::collections::VecDeque;

/// Size of the kept output, in bytes.
const KEPT: usize = 16 << 10;
/// Lines shown in a message.
const SHOWN: usize = 12;
/// The prefix of the line of a Linux panic (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";

/// The last bytes of the console.
#[derive(Default)]
pub struct ConsoleLog {
    tail: VecDeque<u8>,
    /// Whether there was output.
    any: bool,
}

impl ConsoleLog {
    /// Add output. Returns whether it is the first.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let first = !self.any && !bytes.is_empty();
        self.any |= first;
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..excess);
        first
    }

    /// The reason of a kernel panic, if there was one: the text behind the prefix.
    pub fn panic_reason(&self) -> Option<String> {
        let text = self.text();
        let line = text.lines().rev().find(|line| line.contains(PANIC))?;
        let (_, reason) = line.split_once(PANIC)?;
        Some(printable(reason.trim_start_matches([':', ' '])))
    }

    /// The last lines, without control characters.
    pub fn last_lines(&self) -> Vec<String> {
        let text = self.text();
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        let skipped = lines.len().saturating_sub(SHOWN);
        lines.into_iter().skip(skipped).map(printable).collect()
    }

    fn text(&self) -> String {
        let bytes: Vec<u8> = self.tail.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A guest's text without control characters, which a terminal would act on.
fn printable(text: &str) -> String {
    text.trim_end()
        .chars()
        .filter(|c| *c == '\t' || !c.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_in_what_is_kept() {
        let mut log = ConsoleLog::default();
        assert!(log.push(b"[    0.1] hello\r\n"));
        assert_eq!(log.panic_reason(), None);
        assert!(!log.push(&b"x\n".repeat(KEPT)));
        log.push(
            b"[    1.2] Kernel panic - not syncing: No \x1b[31minit found.\r\n[    1.3] ---\r\n",
        );
        assert_eq!(log.panic_reason().as_deref(), Some("No [31minit found."));
        assert_eq!(log.last_lines().len(), SHOWN);
        assert_eq!(
            log.last_lines().last().map(String::as_str),
            Some("[    1.3] ---")
        );
    }
}
