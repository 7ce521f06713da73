//! The agent: runs one command for the host, sends its streams in frames, and reports its status.
//!
//! One loop over five descriptors: each iteration polls, then handles what is ready. Only the poll
//! waits. Flow control: the command's output is read only while the outbox has room, and input is
//! acknowledged when the command's pipe has accepted it, so the inbox never blocks.

use core::ffi::CStr;

use hull_agent::frame::{self, HEADER, MAX_PAYLOAD};
use hull_agent::{
    Buffer, Command, Exit, FromGuest, FromHost, MAX_COMMAND, Output, STDIN_WINDOW, VERSION,
    WindowSize,
};

use crate::channel::{ATTEMPTS, INTERVAL_MS, Termios};
use crate::process::{Plan, Pointers};
use crate::provide::provide;
use crate::resume::Files;
use crate::setup;
use crate::sys::{self, Errno, Fd, PollFd, Reboot, Timespec};
use crate::user::User;

/// Bytes of the outbox reserved for StdinAck, Suspend, Error and Exit.
const RESERVE: usize = 256;
/// Output is read only if the outbox has room for this many bytes.
const MIN_READ: usize = 4096;
/// After the end of a command on a terminal: how many bytes of output, and for how long, init still
/// reads from processes that hold the terminal.
const MAX_LAST_BYTES: usize = 1 << 20;
const LAST_OUTPUT_MS: i64 = 100;
/// After the end of a command on pipes: how many bytes of output init still reads from processes that it
/// left behind, and for how long they may be silent.
const MAX_LEFT_BEHIND_BYTES: usize = 64 << 20;
const LEFT_BEHIND_SILENCE_MS: i64 = 10_000;
/// Input is acknowledged in portions of this many bytes, or when all of it has left the buffer.
const MIN_ACK: u32 = STDIN_WINDOW as u32 / 2;
const END_OF_TRANSMISSION: u8 = 4;
/// Ctrl-Z, the suspend character unless a program has set another.
const SUSPEND: u8 = 0x1a;

/// The large buffers. All are zero at the start, so that they take no space in the file and no memory
/// before they are used.
pub struct Memory {
    inbox: Buffer<{ HEADER + MAX_PAYLOAD }>,
    outbox: Buffer<{ HEADER + MAX_PAYLOAD + RESERVE }>,
    stdin: Buffer<{ STDIN_WINDOW + 1 }>,
    command: [u8; MAX_COMMAND],
    /// Also used by the shell, without an agent.
    pub pointers: Pointers,
}

impl Memory {
    /// All buffers empty.
    pub const fn new() -> Self {
        Self {
            inbox: Buffer::new(),
            outbox: Buffer::new(),
            stdin: Buffer::new(),
            command: [0; MAX_COMMAND],
            pointers: [0; _],
        }
    }
}

/// Why the loop ends early.
enum Stop {
    /// The channel is closed.
    HostGone,
    /// A program in the guest asked PID 1 to power off or restart.
    Asked(Reboot),
    /// The host sent an invalid message.
    InvalidMessage,
}

/// The ends of the command's streams that init holds; -1 where there is none.
struct Streams {
    input: Fd,
    output: Fd,
    error: Fd,
    /// Input and output are one terminal.
    terminal: bool,
}

impl Streams {
    /// Whether the suspend character, typed now, would stop no process: the terminal makes a signal of
    /// it, and in its foreground is the session's leader `child`, whose process group is orphaned, so
    /// that its default action is to ignore it. A shell that has job control or edits its lines wants
    /// the character.
    fn suspend_nothing(&self, child: i32) -> bool {
        const ISIG_ICANON: u32 = 1 | 2;
        let (mut modes, mut foreground) = (Termios::default(), 0i32);
        self.terminal
            && self.input >= 0
            && sys::ioctl_into(self.input, sys::TCGETS, &mut modes).is_ok()
            && modes.local & ISIG_ICANON == ISIG_ICANON
            && sys::ioctl_into(self.input, sys::TIOCGPGRP, &mut foreground).is_ok()
            && foreground == child
    }
}

#[derive(Default)]
struct Unread {
    output: bool,
    error: bool,
}

struct Agent<'a> {
    channel: Fd,
    signals: Fd,
    memory: &'a mut Memory,
    command_len: usize,
    command_complete: bool,
    /// For a restore.
    files: Files,
    /// The first reason why the command cannot run.
    refused: Option<Errno>,
    streams: Streams,
    /// The command's process, 0 before it runs.
    child: i32,
    status: Option<Exit>,
    /// What a program asked PID 1 to do.
    asked: Option<Reboot>,
    /// The input ends after what is in the buffer.
    input_closed: bool,
    /// Bytes of input that have left the buffer and are not acknowledged yet.
    acked: u32,
    /// Bytes of output read so far.
    taken: usize,
    /// Outputs that have no reader on the host.
    unread: Unread,
    /// The user is to be given the terminal back.
    suspend: bool,
    /// The user has sent a signal that ends programs.
    told_to_end: bool,
    goodbye: bool,
}

/// Run the host's command. `prepare` is called before the command is requested, so that a template
/// saved at that moment includes its work.
///
/// Returns how the guest must end.
pub fn serve(channel: Fd, signals: Fd, memory: &mut Memory, prepare: fn() -> Files) -> Reboot {
    let mut agent = Agent {
        channel,
        signals,
        memory,
        command_len: 0,
        command_complete: false,
        files: Files::NONE,
        refused: None,
        streams: Streams {
            input: -1,
            output: -1,
            error: -1,
            terminal: false,
        },
        child: 0,
        status: None,
        asked: None,
        input_closed: false,
        acked: 0,
        taken: 0,
        unread: Unread::default(),
        suspend: false,
        told_to_end: false,
        goodbye: false,
    };
    match agent.run(prepare) {
        Ok(()) | Err(Stop::HostGone) => Reboot::PowerOff,
        Err(Stop::Asked(reboot)) => reboot,
        Err(Stop::InvalidMessage) => {
            let _ = agent.say(FromGuest::Error(
                b"the guest's init cannot read hull's messages",
            ));
            let _ = agent.finish(Exit::Error(0));
            Reboot::PowerOff
        }
    }
}

impl Agent<'_> {
    fn run(&mut self, prepare: fn() -> Files) -> Result<(), Stop> {
        self.greet()?;
        self.files = prepare();
        self.say(FromGuest::Ready)?;
        self.flush()?;
        while !self.command_complete {
            self.turn(None)?;
            if let Some(reboot) = self.asked {
                return Err(Stop::Asked(reboot));
            }
        }
        let started = match self.refused {
            Some(Errno(errno)) => Err(Exit::Error(errno as u32)),
            None => self.start(),
        };
        let exit = match started {
            Ok(()) => self.follow()?,
            Err(exit) => exit,
        };
        self.finish(exit)
    }

    /// Send Hello. The host may open its end of a port later than init; until then every write fails.
    fn greet(&mut self) -> Result<(), Stop> {
        self.say(FromGuest::Hello { version: VERSION })?;
        for _ in 0..ATTEMPTS {
            self.flush()?;
            if self.memory.outbox.data().is_empty() {
                return Ok(());
            }
            sys::sleep_ms(INTERVAL_MS);
        }
        Err(Stop::HostGone)
    }

    fn start(&mut self) -> Result<(), Exit> {
        let bytes = self.memory.command.get(..self.command_len);
        let command = Command::decode(bytes.unwrap_or_default()).map_err(|_| Exit::Error(0))?;
        let failed = |Errno(errno)| Exit::Error(errno as u32);
        let (streams, stdio) = match command.header.tty {
            Some(window) => terminal(window).map_err(failed)?,
            None => pipes().map_err(failed)?,
        };
        let cwd: &CStr = command.cwd();
        let user = Some(command.user())
            .filter(|user| !user.is_empty())
            .map(User::find);
        let started = match user.transpose() {
            Ok(user) => {
                let (argv, env) = (command.argv(), command.env());
                let pointers = &mut self.memory.pointers;
                let (terminal, user) = (streams.terminal, user.as_ref());
                let plan = Plan::new(pointers, argv, env, cwd, stdio, terminal, user);
                plan.ok_or(Exit::Error(0))?.start()
            }
            Err(Errno(errno)) => {
                let text =
                    b"there is no such user or group in the guest's /etc/passwd and /etc/group";
                let _ = put(&mut self.memory.outbox, FromGuest::Error(text));
                Err(Exit::NotExecutable(errno as u32))
            }
        };
        let [a, b, c] = stdio;
        sys::close(a);
        if !streams.terminal {
            sys::close(b);
            sys::close(c);
        }
        self.streams = streams;
        self.child = started?;
        // What arrived with the command: that an output has no reader, and input.
        if self.unread.output {
            self.end_output();
        }
        if self.unread.error {
            self.end_error();
        }
        self.feed();
        Ok(())
    }

    /// Run until the command has ended or a program has asked PID 1 to end the machine, and the output
    /// written before has been sent.
    fn follow(&mut self) -> Result<Exit, Stop> {
        while self.status.is_none() && self.asked.is_none() {
            self.turn(None)?;
        }
        if !self.streams.terminal && self.asked.is_none() && !self.told_to_end {
            self.linger()?;
        }
        self.take_last_output()?;
        if let Some(exit) = self.status {
            return Ok(exit);
        }
        self.empty_outbox()?;
        Err(self.asked.map_or(Stop::HostGone, Stop::Asked))
    }

    /// Send what was written before the end of a terminal's session, or of the machine: other processes
    /// may hold the output for ever.
    fn take_last_output(&mut self) -> Result<(), Stop> {
        let mut grace = Timespec::from_ms(LAST_OUTPUT_MS);
        let enough = self.taken + MAX_LAST_BYTES;
        while (self.streams.output >= 0 || self.streams.error >= 0) && self.taken < enough {
            let timeout = self.takes_output().then_some(&mut grace);
            if self.turn(timeout)? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// As the reader of a pipe does, wait for the processes that the command has left behind with its
    /// output, unless they are silent: a daemon would keep the machine for ever.
    fn linger(&mut self) -> Result<(), Stop> {
        let enough = self.taken + MAX_LEFT_BEHIND_BYTES;
        let (mut silence, mut taken) = (Timespec::from_ms(LEFT_BEHIND_SILENCE_MS), self.taken);
        while (self.streams.output >= 0 || self.streams.error >= 0) && self.taken < enough {
            let timeout = self.takes_output().then_some(&mut silence);
            if self.turn(timeout)? == 0 || self.told_to_end || self.asked.is_some() {
                break;
            }
            // poll counts the time down.
            if self.taken > taken {
                (silence, taken) = (Timespec::from_ms(LEFT_BEHIND_SILENCE_MS), self.taken);
            }
        }
        Ok(())
    }

    fn empty_outbox(&mut self) -> Result<(), Stop> {
        self.flush()?;
        while !self.memory.outbox.data().is_empty() {
            self.turn(None)?;
        }
        Ok(())
    }

    fn finish(&mut self, exit: Exit) -> Result<(), Stop> {
        self.streams.output = -1;
        self.streams.error = -1;
        if sys::pid() == 1 {
            sys::sync();
            // The host may end the machine as soon as it has the status.
            setup::leave_root();
        }
        self.say(FromGuest::Exit(exit))?;
        self.empty_outbox()?;
        // As long as it takes: a slow reader of the output on the host delays the Goodbye.
        while !self.goodbye {
            self.turn(None)?;
        }
        Ok(())
    }

    /// Wait, then handle what is ready. Returns the number of ready descriptors.
    fn turn(&mut self, timeout: Option<&mut Timespec>) -> Result<usize, Stop> {
        let wanted = |fd, events, wanted| PollFd {
            fd: if wanted { fd } else { -1 },
            events,
            revents: 0,
        };
        let Streams {
            input,
            output,
            error,
            ..
        } = self.streams;
        let room = self.takes_output();
        let blocked = !self.memory.outbox.data().is_empty();
        let channel = if blocked {
            sys::POLLIN | sys::POLLOUT
        } else {
            sys::POLLIN
        };
        let mut fds = [
            wanted(self.channel, channel, true),
            wanted(self.signals, sys::POLLIN, true),
            wanted(input, sys::POLLOUT, !self.memory.stdin.data().is_empty()),
            wanted(output, sys::POLLIN, room),
            wanted(error, sys::POLLIN, room),
        ];
        let ready = match sys::poll(&mut fds, timeout) {
            Ok(ready) => ready,
            Err(sys::EINTR) => 1,
            Err(_) => return Err(Stop::HostGone),
        };
        let [channel, signals, input, output, error] = fds.map(|fd| fd.revents);
        if channel & (sys::POLLIN | sys::POLLHUP | sys::POLLERR) != 0 {
            self.receive()?;
        }
        if input != 0 {
            self.feed();
        }
        if output != 0 {
            self.take_output();
        }
        if error != 0 {
            self.take_error();
        }
        if signals != 0 {
            self.signal();
        }
        // After the command's end an acknowledgement would only invite more input.
        if self.acked > 0
            && (self.acked >= MIN_ACK || self.memory.stdin.data().is_empty())
            && self.status.is_none()
            && self.memory.outbox.room() >= RESERVE
        {
            self.say(FromGuest::StdinAck(self.acked))?;
            self.acked = 0;
        }
        if self.suspend && self.memory.outbox.room() >= RESERVE {
            self.say(FromGuest::Suspend)?;
            self.suspend = false;
        }
        self.flush()?;
        Ok(ready)
    }

    fn takes_output(&self) -> bool {
        self.memory.outbox.room() >= RESERVE + HEADER + MIN_READ
    }

    /// Put a message into the outbox.
    fn say(&mut self, message: FromGuest<'_>) -> Result<(), Stop> {
        put(&mut self.memory.outbox, message)
    }

    /// Write the outbox to the channel, as far as possible without blocking.
    fn flush(&mut self) -> Result<(), Stop> {
        let outbox = &mut self.memory.outbox;
        while !outbox.data().is_empty() {
            match sys::write(self.channel, outbox.data()) {
                Ok(len @ 1..) => outbox.consume(len),
                Ok(0) | Err(sys::EAGAIN | sys::EINTR) => break,
                Err(_) => return Err(Stop::HostGone),
            }
        }
        Ok(())
    }

    /// Read from the channel, and handle complete frames.
    fn receive(&mut self) -> Result<(), Stop> {
        match sys::read(self.channel, self.memory.inbox.space()) {
            Ok(0) => return Err(Stop::HostGone),
            Ok(len) => self.memory.inbox.filled(len),
            Err(sys::EAGAIN | sys::EINTR) => return Ok(()),
            Err(_) => return Err(Stop::HostGone),
        }
        let Memory {
            inbox,
            outbox,
            stdin,
            command,
            ..
        } = &mut *self.memory;
        while let Some(frame) = frame::first(inbox.data()).map_err(|_| Stop::InvalidMessage)? {
            let wire_len = frame.wire_len();
            match FromHost::decode(frame).map_err(|_| Stop::InvalidMessage)? {
                message @ (FromHost::ExecPart(bytes) | FromHost::Exec(bytes)) => {
                    let end = self.command_len + bytes.len();
                    let target = command.get_mut(self.command_len..end);
                    let target = target.filter(|_| !self.command_complete);
                    target.ok_or(Stop::InvalidMessage)?.copy_from_slice(bytes);
                    self.command_len = end;
                    self.command_complete = matches!(message, FromHost::Exec(_));
                }
                FromHost::Stdin(bytes) => {
                    if self.child != 0 && self.streams.input < 0 {
                        // Not acknowledged: no more is taken than the command could have read.
                    } else if bytes.contains(&SUSPEND) && self.streams.suspend_nothing(self.child) {
                        self.suspend = true;
                        for part in bytes.split_inclusive(|byte| *byte == SUSPEND) {
                            let typed = part.strip_suffix(&[SUSPEND]).unwrap_or(part);
                            self.acked += (part.len() - typed.len()) as u32;
                            if !stdin.push(typed) {
                                return Err(Stop::InvalidMessage);
                            }
                        }
                    } else if !stdin.push(bytes) {
                        return Err(Stop::InvalidMessage);
                    }
                }
                FromHost::StdinClose => self.input_closed = true,
                FromHost::Resize(window) => {
                    if self.streams.terminal && self.streams.input >= 0 {
                        resize(self.streams.input, window);
                    }
                }
                FromHost::Signal(signal) => {
                    // After the command's end, those that it has left behind.
                    if self.child != 0 {
                        sys::kill_group(self.child, signal.into());
                        self.told_to_end |= sys::ENDING_SIGNALS.contains(&signal.into());
                    }
                }
                FromHost::Goodbye => self.goodbye = true,
                FromHost::OutputClose(Output::Stdout) => self.unread.output = true,
                FromHost::OutputClose(Output::Stderr) => self.unread.error = true,
                message @ (FromHost::Interface(_) | FromHost::Mount(_)) => {
                    // One reason is enough to refuse a command.
                    if self.refused.is_none() {
                        let provided = provide(&message, &self.files, outbox);
                        self.refused = provided.err().filter(|_| self.child == 0);
                    }
                }
                message @ FromHost::Resumed(_) => {
                    let provided = provide(&message, &self.files, outbox);
                    self.refused = self.refused.or(provided.err().filter(|_| self.child == 0));
                    if !self.command_complete {
                        put(outbox, FromGuest::Ready)?;
                    }
                }
            }
            inbox.consume(wire_len);
        }
        if self.unread.output {
            self.end_output();
        }
        if self.unread.error {
            self.end_error();
        }
        self.feed();
        Ok(())
    }

    /// Write input to the command, as far as possible without blocking, and close it after the last byte.
    fn feed(&mut self) {
        let stdin = &mut self.memory.stdin;
        let input = self.streams.input;
        if input < 0 {
            if self.child != 0 {
                stdin.consume(usize::MAX);
            }
            return;
        }
        if !stdin.data().is_empty() {
            let len = match sys::write(input, stdin.data()) {
                Ok(len) => len,
                Err(sys::EAGAIN | sys::EINTR) => 0,
                Err(_) => {
                    self.drop_input();
                    return self.feed();
                }
            };
            self.memory.stdin.consume(len);
            self.acked += len as u32;
        }
        if self.input_closed && self.memory.stdin.data().is_empty() {
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

    fn take_output(&mut self) {
        if !self.take(self.streams.output, FromGuest::STDOUT) {
            self.end_output();
        }
    }

    fn take_error(&mut self) {
        if !self.take(self.streams.error, FromGuest::STDERR) {
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

    /// Read output directly into a frame in the outbox. `false` at the end of the output.
    fn take(&mut self, fd: Fd, kind: u8) -> bool {
        let outbox = &mut self.memory.outbox;
        let most = (outbox.room().saturating_sub(RESERVE + HEADER)).min(MAX_PAYLOAD);
        let Some((head, space)) = outbox.space().split_at_mut_checked(HEADER) else {
            return true;
        };
        match sys::read(fd, space.get_mut(..most).unwrap_or_default()) {
            // The second stream in a turn finds the outbox full.
            Ok(0) => most == 0,
            Ok(len) => {
                head.copy_from_slice(&frame::header(kind, len));
                outbox.filled(HEADER + len);
                self.taken += len;
                true
            }
            Err(sys::EAGAIN | sys::EINTR) => true,
            Err(_) => false,
        }
    }

    fn signal(&mut self) {
        match sys::next_signal(self.signals) {
            sys::SIGCHLD => {
                while let Some((pid, status)) = sys::reap() {
                    if pid == self.child {
                        self.status = Some(exit_of(status));
                    }
                }
            }
            signal => self.asked = self.asked.or(asked(signal)),
        }
    }
}

/// Put a message into an outbox.
fn put<const N: usize>(outbox: &mut Buffer<N>, message: FromGuest<'_>) -> Result<(), Stop> {
    let len = message.encode(outbox.space()).ok_or(Stop::HostGone)?;
    outbox.filled(len);
    Ok(())
}

/// What a signal to PID 1 means, by busybox's convention: SIGUSR1 halts, SIGUSR2 powers off, SIGTERM
/// restarts. A halted guest has no use, so it is powered off too.
pub fn asked(signal: u32) -> Option<Reboot> {
    match signal {
        sys::SIGUSR1 | sys::SIGUSR2 => Some(Reboot::PowerOff),
        sys::SIGTERM => Some(Reboot::Restart),
        _ => None,
    }
}

/// wait(2)'s status.
fn exit_of(status: i32) -> Exit {
    match status & 0x7f {
        0 => Exit::Exited((status >> 8) as u8),
        signal => Exit::Signalled(signal as u8),
    }
}

fn pipes() -> sys::Result<(Streams, [Fd; 3])> {
    let (stdin, input) = sys::pipe()?;
    let (output, stdout) = sys::pipe()?;
    let (error, stderr) = sys::pipe()?;
    sys::set_nonblocking(input)?;
    let streams = Streams {
        input,
        output,
        error,
        terminal: false,
    };
    Ok((streams, [stdin, stdout, stderr]))
}

/// A pseudoterminal: pts(4).
fn terminal(window: WindowSize) -> sys::Result<(Streams, [Fd; 3])> {
    let flags = sys::O_RDWR | sys::O_NOCTTY | sys::O_CLOEXEC;
    let main = sys::open(c"/dev/ptmx", flags | sys::O_NONBLOCK)?;
    sys::ioctl_with(main, sys::TIOCSPTLCK, &0i32)?;
    let side = sys::ioctl(main, sys::TIOCGPTPEER, flags as usize)? as Fd;
    resize(main, window);
    let streams = Streams {
        input: main,
        output: main,
        error: -1,
        terminal: true,
    };
    Ok((streams, [side; 3]))
}

fn resize(terminal: Fd, WindowSize { rows, cols }: WindowSize) {
    // struct winsize; the kernel sends SIGWINCH.
    let _ = sys::ioctl_with(terminal, sys::TIOCSWINSZ, &[rows, cols, 0, 0]);
}
