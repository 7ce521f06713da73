//! The end of the guest's console output: what a panic said.

use std::collections::VecDeque;

/// Bytes of console output that are kept.
const KEPT: usize = 16 << 10;
/// Lines shown of a panic.
const SHOWN: usize = 12;
/// How Linux begins a panic (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";

/// The last bytes of the console.
#[derive(Default)]
pub struct ConsoleLog {
    tail: VecDeque<u8>,
    /// When the first byte came.
    any: bool,
}

impl ConsoleLog {
    /// More output; true for the first.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let first = !self.any && !bytes.is_empty();
        self.any |= first;
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..excess);
        first
    }

    /// What the kernel panicked for, if it did: the text behind the words that begin a panic.
    pub fn panic_reason(&self) -> Option<String> {
        let text = self.text();
        let line = text.lines().rev().find(|line| line.contains(PANIC))?;
        let (_, reason) = line.split_once(PANIC)?;
        Some(printable(reason.trim_start_matches([':', ' '])))
    }

    /// The last lines, without what a terminal would act on.
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

/// A guest's text must not move the cursor of the terminal that shows it in a message.
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
