//! hull's standard streams in the event loop: what is typed, and what is to be written.

use std::collections::VecDeque;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use super::super::keys::{Command, HELP, Keys};
use super::super::outbox::Outbox;
use super::super::streams::{Output, Streams};
use crate::agent::{STDIN_WINDOW, WindowSize};

/// Bytes of standard input that are read ahead of the guest.
const MAX_TYPED: usize = STDIN_WINDOW;

/// The standard streams with their buffers.
pub struct Stdio {
    streams: Streams,
    pub stdout: Output,
    pub stderr: Output,
    stdin_open: bool,
    /// Bytes of standard input for which the guest had no room yet.
    typed: VecDeque<u8>,
    keys: Keys,
}

impl Stdio {
    pub fn new(streams: Streams) -> Self {
        Self {
            stdout: match streams.no_stdout {
                true => Output::closed(streams.stdout),
                false => Output::new(streams.stdout),
            },
            stderr: Output::new(streams.stderr),
            streams,
            stdin_open: true,
            typed: VecDeque::new(),
            keys: Keys::default(),
        }
    }

    /// Where input comes from, and whether it is a terminal in raw mode.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Whether more input may come.
    pub fn stdin_open(&self) -> bool {
        self.stdin_open
    }

    /// Bytes that may be read now, if the guest has room for `guest_room`. A terminal is read even
    /// while the guest takes nothing, for the keys that are hull's.
    pub fn stdin_room(&self, guest_room: Option<usize>) -> usize {
        let ahead = MAX_TYPED.saturating_sub(self.typed.len());
        match guest_room {
            // What waits here will take up that room.
            Some(room) if !self.streams.is_raw() => {
                ahead.min(room.saturating_sub(self.typed.len()))
            }
            _ => ahead,
        }
    }

    /// Follow the shell's job control: raw mode begins in the foreground and ends in the background.
    /// Returns whether it has begun.
    pub fn follow_foreground(&self) -> bool {
        match &self.streams.tty {
            None => false,
            Some(tty) if self.streams.in_background() => {
                tty.give_back();
                false
            }
            // It fails when the terminal is gone, which reading finds out.
            Some(tty) => tty.take().unwrap_or(false),
        }
    }

    /// Give the terminal back to the shell.
    pub fn give_terminal_back(&self) {
        if let Some(tty) = &self.streams.tty {
            tty.give_back();
        }
    }

    /// Read at most `room` bytes of standard input; the commands to hull among them. `up` says whether
    /// the guest's command could take Ctrl-C.
    pub fn read_stdin(&mut self, room: usize, up: bool) -> Vec<Command> {
        let mut typed = Vec::with_capacity(room.min(MAX_TYPED));
        match rustix::io::read(self.streams.stdin, spare_capacity(&mut typed)) {
            Ok(1..) if self.streams.is_raw() => {
                let (bytes, commands) = self.keys.filter(&typed, up);
                self.typed.extend(bytes);
                commands
            }
            Ok(1..) => {
                self.typed.extend(typed);
                Vec::new()
            }
            Err(Errno::AGAIN | Errno::INTR) => Vec::new(),
            Err(Errno::IO) if self.streams.in_background() => Vec::new(),
            // At the end, and where input can never be read: to the guest it is the same.
            _ => {
                self.stdin_open = false;
                Vec::new()
            }
        }
    }

    /// Give the guest what was typed; `put` takes what it has room for and returns how much.
    pub fn move_typed(&mut self, put: impl FnOnce(&[u8]) -> usize) {
        // In one piece: what is left over would wait for the next byte typed.
        let taken = put(self.typed.make_contiguous());
        self.typed.drain(..taken);
    }

    /// Whether the guest has been given all that was typed, and no more comes.
    pub fn input_ended(&self) -> bool {
        self.typed.is_empty() && !self.stdin_open
    }

    /// Whether both outputs have room.
    pub fn has_room(&self) -> bool {
        self.stdout.room() > 0 && self.stderr.room() > 0
    }

    /// Whether all output is written.
    pub fn is_written(&self) -> bool {
        self.stdout.pending().is_none() && self.stderr.pending().is_none()
    }

    /// The size of the terminal that is standard input, if it is one.
    pub fn window_size(&self) -> Option<WindowSize> {
        self.streams.window_size()
    }

    /// Write one line of hull's own to standard error.
    pub fn say(&mut self, line: &str) {
        let end = if self.streams.is_raw() { "\r\n" } else { "\n" };
        if self.stderr.in_line() {
            self.stderr.push(end.as_bytes());
        }
        self.stderr.push(format!("hull: {line}{end}").as_bytes());
    }

    /// List hull's keys on standard error.
    pub fn say_help(&mut self) {
        HELP.lines().for_each(|line| self.say(line));
    }

    /// Write as much of `explained` to standard error as there is room for.
    pub fn move_explanations(&mut self, explained: &Outbox) {
        let text = explained.take(self.stderr.room());
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(line) if self.streams.is_raw() => self.stderr.push(&[line, b"\r\n"].concat()),
                _ => self.stderr.push(line),
            }
        }
    }
}
