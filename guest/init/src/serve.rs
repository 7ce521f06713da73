//! The agent: runs commands for the host, sends their streams in frames, and reports how they end. The end
//! of the main command, process 0, is that of the machine.
//!
//! One loop over the channel, the signals and three descriptors a command: each iteration polls, then
//! handles what is ready. Only the poll waits. Flow control: a command's output is read only while the
//! outbox has room and the host credit for it, and its input is acknowledged when its pipe has accepted
//! it, so the inbox never blocks.

use hull_agent::frame::{self, HEADER, MAX_PAYLOAD};
use hull_agent::{
    Buffer, Command, Exit, FromGuest, FromHost, MAX_COMMAND, MAX_PROCESSES, SAID, VERSION,
};

use crate::channel::{ATTEMPTS, INTERVAL_MS};
use crate::process::{Plan, Pointers};
use crate::provide::provide;
use crate::resume::Files;
use crate::root;
use crate::running::{Input, MAX_LAST_BYTES, MIN_READ, Others, Outbox, RESERVE, Running};
use crate::setup;
use crate::streams::{self, pipes, resize};
use crate::sys::{self, Errno, Fd, PollFd, Reboot, Timespec};
use crate::user::User;

/// After the end of the main command on a terminal: for how long init still reads output from processes
/// that hold the terminal.
const LAST_OUTPUT_MS: i64 = 100;
/// After the end of the main command on pipes: how many bytes of output init still reads from processes
/// that it left behind, and for how long they may be silent.
const MAX_LEFT_BEHIND_BYTES: usize = 64 << 20;
const LEFT_BEHIND_SILENCE_MS: i64 = 10_000;
/// Descriptors to poll: the channel, the signals, and three of each command.
const FEW: usize = 2 + 3;
const MANY: usize = 2 + 3 * MAX_PROCESSES;

/// The large buffers. All are zero at the start, so that they take no space in the file and no memory
/// before they are used.
pub struct Memory {
    inbox: Buffer<{ HEADER + MAX_PAYLOAD }>,
    outbox: Outbox,
    stdin: Input,
    command: [u8; MAX_COMMAND],
    others: Others,
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
            others: Others::new(),
            pointers: [0; _],
        }
    }

    /// Space for a process that runs no commands.
    pub fn scratch(&mut self) -> &mut [u8] {
        self.command.get_mut(..1 << 16).unwrap_or_default()
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

struct Agent<'a> {
    channel: Fd,
    signals: Fd,
    memory: &'a mut Memory,
    main: Running,
    /// The highest number of a command that runs.
    highest: u8,
    /// The number of the command of which a part has arrived, and its bytes.
    arriving: Option<u8>,
    command_len: usize,
    /// For a restore.
    files: Files,
    /// The first reason why the main command cannot run.
    refused: Option<Errno>,
    /// What a program asked PID 1 to do.
    asked: Option<Reboot>,
    goodbye: bool,
}

/// Run the host's commands. `prepare` is called before the first is requested, so that a template
/// saved at that moment includes its work.
///
/// Returns how the guest must end.
pub fn serve(channel: Fd, signals: Fd, memory: &mut Memory, prepare: fn() -> Files) -> Reboot {
    let mut agent = Agent {
        channel,
        signals,
        memory,
        main: Running::new(),
        highest: 0,
        arriving: None,
        command_len: 0,
        files: Files::NONE,
        refused: None,
        asked: None,
        goodbye: false,
    };
    match agent.run(prepare) {
        Ok(()) | Err(Stop::HostGone) => Reboot::PowerOff,
        Err(Stop::Asked(reboot)) => reboot,
        Err(Stop::InvalidMessage) => {
            let _ = agent.say(FromGuest::Error(
                b"the guest's init cannot read hull's messages",
            ));
            let _ = agent.finish(Exit::Error(SAID));
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
        while !self.main.used {
            self.turn(None)?;
            if let Some(reboot) = self.asked {
                return Err(Stop::Asked(reboot));
            }
        }
        let exit = self.follow()?;
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

    /// Start the command that has arrived as `process`.
    fn start(&mut self, process: u8) {
        let bytes = self.memory.command.get(..self.command_len);
        let bytes = bytes.unwrap_or_default();
        let (pointers, outbox) = (&mut self.memory.pointers, &mut self.memory.outbox);
        let running = match process {
            0 => &mut self.main,
            _ => match self.memory.others.at(process) {
                Some((running, _)) => running,
                None => return,
            },
        };
        *running = Running::new();
        running.used = true;
        self.highest = self.highest.max(process);
        let sealed = if process == 0 { root::seal() } else { Ok(()) };
        let refused = self.refused.filter(|_| process == 0).or(sealed.err());
        let started = match refused {
            Some(Errno(errno)) => Err(Exit::Error(errno as u32)),
            None => start(running, process == 0, bytes, pointers, |text| {
                // As long as there is room: a message for the user.
                if outbox.room() >= 2 * RESERVE
                    && let Some(len) = FromGuest::Error(text).encode_for(process, outbox.space())
                {
                    outbox.filled(len);
                }
            }),
        };
        if let Err(exit) = started {
            running.fail(exit);
        }
    }

    /// Run until the main command has ended or a program has asked PID 1 to end the machine, and the output
    /// written before has been sent.
    fn follow(&mut self) -> Result<Exit, Stop> {
        while !self.main.ended && self.asked.is_none() {
            self.turn(None)?;
        }
        if !self.main.streams.terminal && self.asked.is_none() && !self.main.told_to_end {
            self.linger()?;
        }
        self.take_last_output()?;
        if let Some(exit) = self.main.exit() {
            return Ok(exit);
        }
        self.empty_outbox()?;
        Err(self.asked.map_or(Stop::HostGone, Stop::Asked))
    }

    /// Send what was written before the end of a terminal's session, or of the machine: other processes
    /// may hold the output for ever.
    fn take_last_output(&mut self) -> Result<(), Stop> {
        let mut grace = Timespec::from_ms(LAST_OUTPUT_MS);
        let enough = self.main.taken + MAX_LAST_BYTES;
        while self.main.has_output() && self.main.taken < enough {
            let timeout = self.takes_main_output().then_some(&mut grace);
            if self.turn(timeout)? {
                break;
            }
        }
        Ok(())
    }

    /// As the reader of a pipe does, wait for the processes that the command has left behind with its
    /// output, unless they are silent: a daemon would keep the machine for ever.
    fn linger(&mut self) -> Result<(), Stop> {
        let enough = self.main.taken + MAX_LEFT_BEHIND_BYTES;
        let (mut silence, mut taken) = (Timespec::from_ms(LEFT_BEHIND_SILENCE_MS), self.main.taken);
        while self.main.has_output() && self.main.taken < enough {
            let timeout = self.takes_main_output().then_some(&mut silence);
            if self.turn(timeout)? || self.main.told_to_end || self.asked.is_some() {
                break;
            }
            // poll counts the time down.
            if self.main.taken > taken {
                (silence, taken) = (Timespec::from_ms(LEFT_BEHIND_SILENCE_MS), self.main.taken);
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

    /// The main command has ended: the others end with the machine.
    fn finish(&mut self, exit: Exit) -> Result<(), Stop> {
        self.main.streams.output = -1;
        self.main.streams.error = -1;
        self.highest = 0;
        if sys::pid() == 1 {
            sys::sync();
            // The host may end the machine as soon as it has the status.
            setup::leave_disks();
        }
        while self.memory.outbox.room() < RESERVE {
            self.turn(None)?;
        }
        self.say(FromGuest::Exit(exit))?;
        self.empty_outbox()?;
        // As long as it takes: a slow reader of the output on the host delays the Goodbye.
        while !self.goodbye {
            self.turn(None)?;
        }
        Ok(())
    }

    /// Wait, then handle what is ready. Returns whether the `timeout` has passed without output of the main
    /// command.
    fn turn(&mut self, timeout: Option<&mut Timespec>) -> Result<bool, Stop> {
        match self.highest {
            0 => self.turn_of::<FEW>(timeout),
            _ => self.turn_of::<MANY>(timeout),
        }
    }

    #[inline(never)]
    fn turn_of<const N: usize>(&mut self, timeout: Option<&mut Timespec>) -> Result<bool, Stop> {
        const NONE: PollFd = PollFd {
            fd: -1,
            events: 0,
            revents: 0,
        };
        let mut fds = [NONE; N];
        let count = self.watch(&mut fds);
        let fds = fds.get_mut(..count).unwrap_or_default();
        let mut now = Timespec::from_ms(0);
        let mut silent = false;
        let last = self.has_ended_other();
        let polled = match timeout {
            Some(time) if !last => {
                let polled = sys::poll(fds, Some(time));
                silent = time.is_zero();
                polled
            }
            // What an ended command has written is there already.
            _ if last => sys::poll(fds, Some(&mut now)),
            _ => sys::poll(fds, None),
        };
        match polled {
            Ok(_) | Err(sys::EINTR) => {}
            Err(_) => return Err(Stop::HostGone),
        }
        if let Some(main) = fds.get(3..5) {
            silent &= main.iter().all(|fd| fd.revents == 0);
        }
        self.handle(fds)?;
        self.report()?;
        self.flush()?;
        Ok(silent)
    }

    /// Fill in what to poll for; how many entries.
    fn watch(&mut self, fds: &mut [PollFd]) -> usize {
        let room = self.takes_output();
        let blocked = !self.memory.outbox.data().is_empty();
        let channel = match blocked {
            true => sys::POLLIN | sys::POLLOUT,
            false => sys::POLLIN,
        };
        let mut places = fds.iter_mut();
        let mut watch = |fd, events, wanted| {
            if let Some(place) = places.next() {
                place.fd = if wanted { fd } else { -1 };
                place.events = events;
            }
        };
        watch(self.channel, channel, true);
        watch(self.signals, sys::POLLIN, true);
        for process in 0..=self.highest {
            let (main, others) = (&mut self.main, &mut self.memory.others);
            let Some((running, input)) = at(main, &mut self.memory.stdin, others, process) else {
                continue;
            };
            let streams = &running.streams;
            let room = room && running.has_credit(process) && running.used;
            let typed = running.used && !input.data().is_empty();
            watch(streams.input, sys::POLLOUT, typed);
            watch(streams.output, sys::POLLIN, room);
            watch(streams.error, sys::POLLIN, room);
        }
        2 + 3 * (usize::from(self.highest) + 1)
    }

    /// Whether a command beside the main one has ended, and the host takes the last of its output.
    fn has_ended_other(&mut self) -> bool {
        let room = self.takes_output();
        (1..=self.highest).any(|process| {
            let other = self.memory.others.at(process);
            other.is_some_and(|(it, _)| it.used && it.ended && room && it.has_credit(process))
        })
    }

    fn handle(&mut self, fds: &[PollFd]) -> Result<(), Stop> {
        let is_ready = |index: usize| fds.get(index).is_some_and(|fd| fd.revents != 0);
        let channel = fds.first().map_or(0, |fd| fd.revents);
        let polled = self.highest;
        if channel & (sys::POLLIN | sys::POLLHUP | sys::POLLERR) != 0 {
            self.receive()?;
        }
        for process in 0..=polled {
            let (main, others) = (&mut self.main, &mut self.memory.others);
            let Some((running, input)) = at(main, &mut self.memory.stdin, others, process) else {
                continue;
            };
            let first = 2 + 3 * usize::from(process);
            // The host may have given the number to another command since.
            let was = |fd: Fd, index: usize| fds.get(index).is_some_and(|it| it.fd == fd);
            if is_ready(first) {
                running.feed(input);
            }
            let (output, error) = (is_ready(first + 1), is_ready(first + 2));
            if output && was(running.streams.output, first + 1) {
                running.take_output(process, &mut self.memory.outbox);
            }
            if error && was(running.streams.error, first + 2) {
                running.take_error(process, &mut self.memory.outbox);
            }
            // Ended before the poll, which looked at both outputs.
            let looked = |fd: Fd, index| fd < 0 || was(fd, index);
            let quiet = !output
                && !error
                && looked(running.streams.output, first + 1)
                && looked(running.streams.error, first + 2);
            if process > 0 && running.used && running.ended && (quiet || running.has_enough()) {
                running.close();
            }
        }
        if is_ready(1) {
            self.signal();
        }
        Ok(())
    }

    /// Tell the host what there is to tell of each command.
    fn report(&mut self) -> Result<(), Stop> {
        for process in 0..=self.highest {
            let (main, others) = (&mut self.main, &mut self.memory.others);
            let outbox = &mut self.memory.outbox;
            let Some((running, input)) = at(main, &mut self.memory.stdin, others, process) else {
                continue;
            };
            while running.used
                && outbox.room() >= RESERVE
                && let Some(message) = running.news(input)
            {
                put(outbox, process, message)?;
            }
            if process > 0
                && running.used
                && !running.has_output()
                && outbox.room() >= RESERVE
                && let Some(exit) = running.exit()
            {
                running.close();
                running.used = false;
                input.consume(usize::MAX);
                put(outbox, process, FromGuest::Exit(exit))?;
            }
        }
        while self.highest > 0
            && (self.memory.others.at(self.highest)).is_some_and(|(it, _)| !it.used)
        {
            self.highest -= 1;
        }
        Ok(())
    }

    fn takes_output(&self) -> bool {
        self.memory.outbox.room() >= RESERVE + HEADER + MIN_READ
    }

    fn takes_main_output(&self) -> bool {
        self.takes_output() && self.main.has_credit(0)
    }

    /// Put a message into the outbox.
    fn say(&mut self, message: FromGuest<'_>) -> Result<(), Stop> {
        put(&mut self.memory.outbox, 0, message)
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
        while let Some(complete) = self.receive_frame()? {
            if let Some(process) = complete {
                // The host restricts itself by `Ready`, before the command can do anything.
                self.flush()?;
                self.start(process);
            }
        }
        for process in 0..=self.highest {
            let (main, others) = (&mut self.main, &mut self.memory.others);
            let running = at(main, &mut self.memory.stdin, others, process);
            if let Some((running, input)) = running.filter(|(running, _)| running.used) {
                running.end_unread();
                running.feed(input);
            }
        }
        Ok(())
    }

    /// Handle the next frame of the inbox, if one is there; the command that is complete by it, if one is.
    fn receive_frame(&mut self) -> Result<Option<Option<u8>>, Stop> {
        let Memory {
            inbox,
            outbox,
            stdin,
            command,
            others,
            ..
        } = &mut *self.memory;
        let invalid = |_| Stop::InvalidMessage;
        let Some(frame) = frame::first(inbox.data()).map_err(invalid)? else {
            return Ok(None);
        };
        let (process, wire_len) = (frame.process, frame.wire_len());
        let mut complete = None;
        let running = at(&mut self.main, stdin, others, process);
        let (running, input) = running.ok_or(Stop::InvalidMessage)?;
        match FromHost::decode(frame).map_err(invalid)? {
            message @ (FromHost::ExecPart(bytes) | FromHost::Exec(bytes)) => {
                if self.arriving.is_none() {
                    self.command_len = 0;
                }
                let end = self.command_len + bytes.len();
                let target = command.get_mut(self.command_len..end);
                let expected = !running.used && self.arriving.is_none_or(|it| it == process);
                let target = target.filter(|_| expected);
                target.ok_or(Stop::InvalidMessage)?.copy_from_slice(bytes);
                self.command_len = end;
                self.arriving = Some(process);
                if matches!(message, FromHost::Exec(_)) {
                    complete = self.arriving.take();
                }
            }
            FromHost::Goodbye => self.goodbye = true,
            message @ (FromHost::Interface(_) | FromHost::Root(_) | FromHost::Mount(_)) => {
                // One reason is enough to refuse a command.
                if self.refused.is_none() {
                    let provided = provide(&message, &self.files, outbox);
                    self.refused = provided.err().filter(|_| !running.used);
                }
            }
            message @ FromHost::Resumed(_) => {
                let provided = provide(&message, &self.files, outbox);
                self.refused = self.refused.or(provided.err().filter(|_| !running.used));
                if !running.used {
                    put(outbox, 0, FromGuest::Ready)?;
                }
            }
            // It has ended: the host did not know yet.
            _ if !running.used && process > 0 => {}
            FromHost::Stdin(bytes) => {
                let taken = running.type_in(input, bytes);
                taken.ok_or(Stop::InvalidMessage)?;
            }
            FromHost::StdinClose => running.input_closed = true,
            FromHost::Resize(window) => {
                if running.streams.terminal && running.streams.input >= 0 {
                    resize(running.streams.input, window);
                }
            }
            FromHost::Signal(signal) => running.signal(signal.into()),
            FromHost::OutputClose(output) => running.close_output(output),
            FromHost::OutputAck(cost) => running.credit(cost),
        }
        inbox.consume(wire_len);
        Ok(Some(complete))
    }

    fn signal(&mut self) {
        match sys::next_signal(self.signals) {
            sys::SIGCHLD => {
                while let Some((pid, status)) = sys::reap() {
                    let others = &mut self.memory.others;
                    for process in 0..=self.highest {
                        let running = at(&mut self.main, &mut self.memory.stdin, others, process);
                        if let Some((running, _)) = running
                            && running.used
                            && !running.ended
                            && running.child == pid
                        {
                            running.end(status);
                        }
                    }
                }
            }
            signal => self.asked = self.asked.or(asked(signal)),
        }
    }
}

/// The command `process`, and its input.
fn at<'a>(
    main: &'a mut Running,
    stdin: &'a mut Input,
    others: &'a mut Others,
    process: u8,
) -> Option<(&'a mut Running, &'a mut Input)> {
    match process {
        0 => Some((main, stdin)),
        _ => others.at(process),
    }
}

/// Start the encoded command `bytes` as `running`, the `main` one or not; `say` takes a message for the user.
fn start(
    running: &mut Running,
    main: bool,
    bytes: &[u8],
    pointers: &mut Pointers,
    say: impl FnOnce(&[u8]),
) -> Result<(), Exit> {
    let failed = |Errno(errno)| Exit::Error(errno as u32);
    let command = Command::decode(bytes).map_err(|_| failed(sys::EINVAL))?;
    let user = match User::of(&command) {
        Ok(user) => user,
        Err(unknown) => {
            say(unknown.text(&mut [0; 192]));
            // The statuses of docker run and docker exec.
            return Err(match main {
                true => Exit::Error(SAID),
                false => Exit::NotExecutable(SAID),
            });
        }
    };
    let (streams, stdio) = match command.header.tty {
        Some(window) => streams::terminal(window).map_err(failed)?,
        None => pipes().map_err(failed)?,
    };
    let (argv, env, cwd) = (command.argv(), command.env(), command.cwd());
    let (terminal, user) = (streams.terminal, user.as_ref());
    let plan = Plan::new(pointers, argv, env, cwd, stdio, terminal, user);
    let plan = plan.map(|plan| plan.of(&command));
    let started = plan.ok_or(failed(sys::EINVAL)).and_then(Plan::start);
    let [a, b, c] = stdio;
    sys::close(a);
    if !terminal {
        sys::close(b);
        sys::close(c);
    }
    running.streams = streams;
    running.child = started?;
    running.started = command.header.report_start;
    Ok(())
}

/// Put a message about `process` into an outbox.
fn put(outbox: &mut Outbox, process: u8, message: FromGuest<'_>) -> Result<(), Stop> {
    let len = message.encode_for(process, outbox.space());
    outbox.filled(len.ok_or(Stop::HostGone)?);
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
