//! One of the host's commands: its process, its streams, and what the host is to be told of it.

use hull_agent::frame::{self, HEADER, MAX_PAYLOAD};
use hull_agent::{
    Buffer, Exit, FromGuest, MAX_PROCESSES, Output, STDIN_WINDOW, output_cost, output_window,
};

use crate::streams::Streams;
use crate::sys;

/// Bytes of the outbox reserved for any one message but output.
pub const RESERVE: usize = 256;
/// Output is read only if the outbox has room for this many bytes.
pub const MIN_READ: usize = 4096;
/// After the end of a command: how many bytes of output init still reads from processes that it has left
/// behind.
pub const MAX_LAST_BYTES: usize = 1 << 20;
/// Input is acknowledged in portions of this many bytes, or when all of it has left the buffer.
const MIN_ACK: u32 = STDIN_WINDOW as u32 / 2;
const END_OF_TRANSMISSION: u8 = 4;
/// Ctrl-Z, the suspend character unless a program has set another.
const SUSPEND: u8 = 0x1a;

/// Input that a command has not taken yet.
pub type Input = Buffer<{ STDIN_WINDOW + 1 }>;
/// Messages that the channel has not taken yet.
pub type Outbox = Buffer<{ HEADER + MAX_PAYLOAD + RESERVE }>;

/// The commands beside the main one, with their input. All zero at the start, so that they take no memory
/// before they are used.
pub struct Others {
    commands: [Running; MAX_PROCESSES - 1],
    inputs: [Input; MAX_PROCESSES - 1],
}

impl Others {
    /// None of them.
    pub const fn new() -> Self {
        Self {
            commands: [const { Running::NONE }; MAX_PROCESSES - 1],
            inputs: [const { Input::new() }; MAX_PROCESSES - 1],
        }
    }

    /// The command with this number, 1 or more.
    pub fn at(&mut self, process: u8) -> Option<(&mut Running, &mut Input)> {
        let index = usize::from(process).checked_sub(1)?;
        Some((self.commands.get_mut(index)?, self.inputs.get_mut(index)?))
    }
}

/// A command of the host.
pub struct Running {
    /// Whether the number is taken.
    pub used: bool,
    /// Its process, 0 before it runs.
    pub child: i32,
    /// How it ended, if `ended`: a status of wait(2), or -1 with `failed`.
    pub ended: bool,
    wait_status: i32,
    /// Whether it could not be started: `Exit::Error`, `NotFound` or `NotExecutable`, and the errno.
    failed: bool,
    failure: (u8, u32),
    pub streams: Streams,
    /// The input ends after what is in the buffer.
    pub input_closed: bool,
    /// Bytes of input that have left the buffer and are not acknowledged yet.
    acked: u32,
    /// Output that the host has not acknowledged, in the measure of [`output_cost`].
    unacked: usize,
    /// Bytes of output read so far.
    pub taken: usize,
    /// How many of them were, when it ended.
    taken_at_end: usize,
    /// Outputs that have no reader on the host.
    unread: (bool, bool),
    /// The user is to be given the terminal back.
    suspend: bool,
    /// The host is to be told that it runs.
    pub started: bool,
    /// The user has sent a signal that ends programs.
    pub told_to_end: bool,
}

impl Running {
    /// None; all zero.
    pub const NONE: Self = Self {
        used: false,
        child: 0,
        ended: false,
        wait_status: 0,
        failed: false,
        failure: (0, 0),
        streams: Streams {
            input: 0,
            output: 0,
            error: 0,
            terminal: false,
        },
        input_closed: false,
        acked: 0,
        unacked: 0,
        taken: 0,
        taken_at_end: 0,
        unread: (false, false),
        suspend: false,
        started: false,
        told_to_end: false,
    };

    /// One that does not run yet, on no streams.
    pub const fn new() -> Self {
        Self {
            streams: Streams {
                input: -1,
                output: -1,
                error: -1,
                terminal: false,
            },
            ..Self::NONE
        }
    }

    /// It could not be started.
    pub fn fail(&mut self, exit: Exit) {
        self.ended = true;
        self.failed = true;
        self.failure = match exit {
            Exit::NotFound(errno) => (0, errno),
            Exit::NotExecutable(errno) => (1, errno),
            Exit::Error(errno) => (2, errno),
            Exit::Exited(_) | Exit::Signalled(_) => (2, 0),
        };
    }

    /// It ended with this status of wait(2).
    pub fn end(&mut self, status: i32) {
        self.ended = true;
        self.wait_status = status;
        self.taken_at_end = self.taken;
    }

    /// Whether enough was read of those that it has left behind.
    pub fn has_enough(&self) -> bool {
        self.ended && self.taken - self.taken_at_end >= MAX_LAST_BYTES
    }

    /// How it ended, once it has.
    pub fn exit(&self) -> Option<Exit> {
        if !self.ended {
            return None;
        }
        let (kind, errno) = self.failure;
        Some(match (self.failed, kind, self.wait_status & 0x7f) {
            (true, 0, _) => Exit::NotFound(errno),
            (true, 1, _) => Exit::NotExecutable(errno),
            (true, ..) => Exit::Error(errno),
            (false, _, 0) => Exit::Exited((self.wait_status >> 8) as u8),
            (false, _, signal) => Exit::Signalled(signal as u8),
        })
    }

    /// Whether it has an output that may still be read.
    pub fn has_output(&self) -> bool {
        self.streams.output >= 0 || self.streams.error >= 0
    }

    /// Whether the host has room for output of `process`, which this is.
    pub fn has_credit(&self, process: u8) -> bool {
        self.unacked + output_cost(MIN_READ) <= output_window(process)
    }

    /// The host has room for that much more output.
    pub fn credit(&mut self, cost: u32) {
        self.unacked = self.unacked.saturating_sub(cost as usize);
    }

    /// Send `signal` to its process group; after its end, to those that it has left behind.
    pub fn signal(&mut self, signal: u32) {
        if self.child != 0 {
            sys::kill_group(self.child, signal);
            self.told_to_end |= sys::ENDING_SIGNALS.contains(&signal);
        }
    }

    /// Take input for it. `None` if the host has sent more than it may.
    pub fn type_in(&mut self, input: &mut Input, bytes: &[u8]) -> Option<()> {
        if self.child != 0 && self.streams.input < 0 {
            // Not acknowledged: no more is taken than the command could have read.
            return Some(());
        }
        if !bytes.contains(&SUSPEND) || !self.streams.suspend_nothing(self.child) {
            return input.push(bytes).then_some(());
        }
        self.suspend = true;
        for part in bytes.split_inclusive(|byte| *byte == SUSPEND) {
            let typed = part.strip_suffix(&[SUSPEND]).unwrap_or(part);
            self.acked += (part.len() - typed.len()) as u32;
            input.push(typed).then_some(())?;
        }
        Some(())
    }

    /// Write input to it, as far as possible without blocking, and close it after the last byte.
    pub fn feed(&mut self, input: &mut Input) {
        let fd = self.streams.input;
        if fd < 0 {
            if self.child != 0 {
                input.consume(usize::MAX);
            }
            return;
        }
        if !input.data().is_empty() {
            let len = match sys::write(fd, input.data()) {
                Ok(len) => len,
                Err(sys::EAGAIN | sys::EINTR) => 0,
                Err(_) => {
                    self.drop_input();
                    return self.feed(input);
                }
            };
            input.consume(len);
            self.acked += len as u32;
        }
        if self.input_closed && input.data().is_empty() {
            self.end_input();
        }
    }

    /// Close the pipe. On a terminal the end of input is a Ctrl-D.
    fn end_input(&mut self) {
        self.input_closed = false;
        if self.streams.terminal {
            let _ = sys::write(self.streams.input, &[END_OF_TRANSMISSION]);
        } else {
            self.drop_input();
        }
    }

    /// The input has no reader any more. A terminal is closed with the output.
    fn drop_input(&mut self) {
        if !self.streams.terminal {
            sys::close(self.streams.input);
        }
        self.streams.input = -1;
    }

    /// An output has no reader on the host any more.
    pub fn close_output(&mut self, output: Output) {
        match output {
            Output::Stdout => self.unread.0 = true,
            Output::Stderr => self.unread.1 = true,
        }
    }

    /// Read no more of outputs without a reader.
    pub fn end_unread(&mut self) {
        if self.unread.0 {
            self.end_output();
        }
        if self.unread.1 {
            self.end_error();
        }
    }

    /// Read its output into a frame in the outbox.
    pub fn take_output(&mut self, process: u8, outbox: &mut Outbox) {
        if !self.take(self.streams.output, FromGuest::STDOUT, process, outbox) {
            self.end_output();
        }
    }

    /// As [`Running::take_output`], of its standard error.
    pub fn take_error(&mut self, process: u8, outbox: &mut Outbox) {
        if !self.take(self.streams.error, FromGuest::STDERR, process, outbox) {
            self.end_error();
        }
    }

    /// Read no more of the output: a process that writes there gets SIGPIPE or EPIPE. A terminal hangs
    /// up.
    fn end_output(&mut self) {
        if self.streams.output >= 0 {
            sys::close(self.streams.output);
            self.streams.output = -1;
            if self.streams.terminal {
                self.streams.input = -1;
            }
        }
    }

    fn end_error(&mut self) {
        if self.streams.error >= 0 {
            sys::close(self.streams.error);
            self.streams.error = -1;
        }
    }

    /// Close all streams.
    pub fn close(&mut self) {
        if self.streams.input >= 0 {
            self.drop_input();
        }
        self.end_output();
        self.end_error();
    }

    /// Read output directly into a frame in the outbox. `false` at the end of the output.
    fn take(&mut self, fd: sys::Fd, kind: u8, process: u8, outbox: &mut Outbox) -> bool {
        // The second stream in a turn may find the outbox full, or the credit used up.
        let credit = output_window(process).saturating_sub(self.unacked + output_cost(0));
        let room = outbox.room().saturating_sub(RESERVE + HEADER);
        let most = room.min(credit).min(MAX_PAYLOAD);
        let Some((head, space)) = outbox.space().split_at_mut_checked(HEADER) else {
            return true;
        };
        match sys::read(fd, space.get_mut(..most).unwrap_or_default()) {
            Ok(0) => most == 0,
            Ok(len) => {
                head.copy_from_slice(&frame::header(kind, process, len));
                outbox.filled(HEADER + len);
                self.taken += len;
                self.unacked += output_cost(len);
                true
            }
            Err(sys::EAGAIN | sys::EINTR) => true,
            Err(_) => false,
        }
    }

    /// The next thing that the host is to be told of it, but its end; each is told once.
    pub fn news(&mut self, input: &Input) -> Option<FromGuest<'static>> {
        if core::mem::take(&mut self.started) {
            return Some(FromGuest::Started);
        }
        // After the command's end an acknowledgement would only invite more input.
        if self.acked > 0 && (self.acked >= MIN_ACK || input.data().is_empty()) && !self.ended {
            return Some(FromGuest::StdinAck(core::mem::take(&mut self.acked)));
        }
        core::mem::take(&mut self.suspend).then_some(FromGuest::Suspend)
    }
}
