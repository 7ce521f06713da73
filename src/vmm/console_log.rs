//! The end of the guest's console output, for messages about a panic.

use std::collections::VecDeque;

/// Size of the kept output, in bytes.
const KEPT: usize = 16 << 10;
/// Lines shown in a message.
const SHOWN: usize = 12;
/// The prefix of the line of a Linux panic (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";
/// What a kernel says that will never do anything again: after a panic without a restart
/// (kernel/panic.c), and after a halt (kernel/reboot.c).
const LAST_WORDS: [&str; 2] = ["---[ end Kernel panic", "reboot: System halted"];
/// What it says of a process that it has killed for want of memory (mm/oom_kill.c). That it killed one
/// of a limited group says nothing of the machine.
const OUT_OF_MEMORY: &str = " Out of memory: Killed process ";
/// Longest line that is looked at, in bytes.
const MAX_LINE: usize = 512;

/// What the user is to know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The kernel killed this process because the machine has no memory left; the first one.
    OutOfMemory(String),
    /// The kernel does nothing any more.
    Halted,
}

/// The last bytes of the console.
#[derive(Default)]
pub struct ConsoleLog {
    tail: VecDeque<u8>,
    /// Whether there was output.
    any: bool,
    /// The line that has no end yet.
    line: Vec<u8>,
    news: Vec<News>,
    /// Whether a lack of memory was reported.
    out_of_memory: bool,
}

impl ConsoleLog {
    /// Add output. Returns whether it is the first.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let first = !self.any && !bytes.is_empty();
        self.any |= first;
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..excess);
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = MAX_LINE.saturating_sub(self.line.len());
            self.line.extend(part.iter().take(room));
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.read(&String::from_utf8_lossy(&line));
            }
        }
        first
    }

    /// Take what the user is to know of.
    pub fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    fn read(&mut self, line: &str) {
        if LAST_WORDS.iter().any(|words| line.contains(words)) {
            self.news.push(News::Halted);
        }
        if let Some((_, process)) = line.split_once(OUT_OF_MEMORY)
            && !std::mem::replace(&mut self.out_of_memory, true)
        {
            // PID (NAME) total-vm:...
            let name = process
                .split_once('(')
                .and_then(|(_, name)| name.split_once(')'));
            let name = name.map_or("a process", |(name, _)| name);
            self.news.push(News::OutOfMemory(printable(name)));
        }
    }

    /// The reason of a kernel panic, if there was one: the text behind the prefix.
    pub fn panic_reason(&self) -> Option<String> {
        let text = self.text();
        let mut lines = text.lines().rev();
        let line = lines.find(|line| line.contains(PANIC) && !line.contains(LAST_WORDS[0]))?;
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
    fn a_lack_of_memory_and_a_halt_are_news_once_and_in_pieces() {
        let mut log = ConsoleLog::default();
        log.push(b"[   3.1] Out of memory: Killed process 57 (tail) total-vm:12kB");
        assert_eq!(log.take_news(), []);
        log.push(b", anon-rss:1kB\r\n[ 4.0] Out of memory: Killed process 58 (sh) x\n");
        assert_eq!(log.take_news(), [News::OutOfMemory("tail".into())]);
        log.push(b"[   5.1] reboot: System halted\r\n");
        assert_eq!(log.take_news(), [News::Halted]);
        assert_eq!(log.take_news(), []);
    }

    #[test]
    fn a_panic_is_found_in_what_is_kept() {
        let mut log = ConsoleLog::default();
        assert!(log.push(b"[    0.1] hello\r\n"));
        assert_eq!(log.panic_reason(), None);
        assert!(!log.push(&b"x\n".repeat(KEPT)));
        log.push(
            b"[    1.2] Kernel panic - not syncing: No \x1b[31minit found.\r\n\
              [    1.3] ---[ end Kernel panic - not syncing: x ]---\r\n[    1.3] ---\r\n",
        );
        assert_eq!(log.panic_reason().as_deref(), Some("No [31minit found."));
        assert_eq!(log.last_lines().len(), SHOWN);
        assert_eq!(
            log.last_lines().last().map(String::as_str),
            Some("[    1.3] ---")
        );
    }
}
