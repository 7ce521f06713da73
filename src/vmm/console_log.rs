//! The end of the guest's console output, for messages about a panic.

use std::collections::VecDeque;

/// Size of the kept output, in bytes.
const KEPT: usize = 64 << 10;
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
/// Parts of the lines by which Linux says what went wrong, some of them long before it panics.
const CAUSES: [&str; 12] = [
    "unpacking failed",
    "Failed to execute",
    "Cannot open root",
    "Unable to mount",
    "No filesystem could mount",
    "Out of memory",
    "BUG: ",
    "kernel BUG at",
    "Oops",
    "general protection fault",
    "invalid opcode",
    "RIP: ",
];
/// Beginnings of the lines with registers, stacks and the like, behind the time in brackets.
const DUMPS: [&str; 18] = [
    "?",
    "<",
    "Call Trace",
    "Modules linked in",
    "Hardware name",
    "CPU: ",
    "Code: ",
    "RSP: ",
    "RAX: ",
    "RDX: ",
    "RBP: ",
    "R10: ",
    "R13: ",
    "FS: ",
    "CS: ",
    "CR2: ",
    "DR0: ",
    "---[",
];

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
        let line = text.lines().rev().find(|line| is_panic(line))?;
        let (_, reason) = line.split_once(PANIC)?;
        Some(printable(reason.trim_start_matches([':', ' '])))
    }

    /// The lines that hold the cause of a panic, without control characters: those that name one
    /// anywhere, and the last before the panic. What follows is a stack.
    pub fn cause_of_panic(&self) -> Vec<String> {
        let text = self.text();
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let mut lines: Vec<&str> = lines.collect();
        let panic = lines.iter().rposition(|line| is_panic(line));
        lines.truncate(panic.map_or(0, |panic| panic + 1));
        lines.retain(|line| !is_dump(line));
        let is_cause = |line: &str| CAUSES.iter().any(|cause| line.contains(cause));
        let causes = lines.iter().filter(|line| is_cause(line)).count();
        // A cause keeps its place among the lines shown; the newest of the others fill the rest.
        let mut others_skipped = lines.len().saturating_sub(SHOWN.max(causes));
        let mut shown = Vec::new();
        for line in lines {
            if !is_cause(line) && others_skipped > 0 {
                others_skipped -= 1;
            } else {
                shown.push(printable(line));
            }
        }
        shown.drain(..shown.len().saturating_sub(SHOWN));
        shown
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

fn is_panic(line: &str) -> bool {
    line.contains(PANIC) && !line.contains(LAST_WORDS[0])
}

/// Whether a line is part of a dump of registers or of a stack.
fn is_dump(line: &str) -> bool {
    let text = match line.split_once("] ") {
        Some((time, text)) if time.starts_with('[') => text,
        _ => line,
    };
    let text = text.trim_start();
    // A function of a stack, as `panic+0x2a1/0x2f0`.
    let function = text.split_once("+0x").map_or("", |(name, _)| name);
    let is_function = !function.is_empty() && !function.contains(' ');
    is_function || DUMPS.iter().any(|dump| text.starts_with(dump))
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
    fn the_cause_of_a_panic_is_shown_and_not_its_stack() {
        let mut log = ConsoleLog::default();
        log.push(b"[    0.1] Initramfs unpacking failed: compression method gzip not configured\n");
        log.push(&b"[    0.2] loop: module loaded\n".repeat(300));
        let panic = "[    0.4] VFS: Cannot open root device \"\"\n\
             [    0.5] Kernel panic - not syncing: VFS: Unable to mount root fs\n";
        log.push(panic.as_bytes());
        log.push(
            b"[    0.5] CPU: 0 PID: 1 Comm: swapper/0\n[    0.5] Call Trace:\n[    0.5]  <TASK>\n",
        );
        log.push(&b"[    0.5]  panic+0x2a1/0x2f0\n".repeat(40));
        log.push(
            b"[    0.6] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs ]---\n",
        );
        let shown = log.cause_of_panic();
        assert_eq!(shown.len(), SHOWN);
        assert!(shown[0].contains("gzip not configured"), "{shown:?}");
        assert!(shown[SHOWN - 2].contains("Cannot open root"), "{shown:?}");
        let reason = log.panic_reason();
        assert_eq!(reason.as_deref(), Some("VFS: Unable to mount root fs"));
    }

    #[test]
    fn an_oops_is_the_cause_of_the_panic_after_it() {
        let mut log = ConsoleLog::default();
        let oops = "[ 1.0] BUG: kernel NULL pointer dereference, address: 0000000000000000\n\
             [ 1.0] #PF: supervisor read access in kernel mode\n\
             [ 1.0] Oops: Oops: 0000 [#1] SMP\n\
             [ 1.0] CPU: 0 UID: 0 PID: 1 Comm: init Not tainted 6.12\n\
             [ 1.0] RIP: 0010:do_it+0x3/0x10\n\
             [ 1.0] Code: 00 00\n[ 1.0] RSP: 0018:ff EFLAGS: 0\n[ 1.0] RAX: 0\n[ 1.0] Call Trace:\n\
             [ 1.0]  ? __die+0x20/0x60\n[ 1.0] Kernel panic - not syncing: Fatal exception\n";
        log.push(oops.as_bytes());
        let shown = log.cause_of_panic();
        assert_eq!(shown.len(), 5, "{shown:#?}");
        assert!(shown[3].ends_with("RIP: 0010:do_it+0x3/0x10"), "{shown:#?}");
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
