//! One command in one guest, as a state machine over bytes.
//!
//! ```text
//! Greeting --Hello--> Waiting --Ready--> Running --Exit--> Exited
//!                      |                  ^   ^
//!                      | Ready, when to   |   |
//!                      | be held          |   | Ready
//!                      v                  |   |
//!                     Held --start(None)--+   |
//!                      |                      |
//!                      +--start(Resumed)--> Resuming
//! ```
//! [`Session::new`] and [`Session::waiting`] begin in Greeting; only the second is held, and Held is
//! the moment for a template. [`Session::restored`] begins in Resuming, for a guest that was in
//! Held when its snapshot was taken. The command is sent when the session enters Running or Resuming
//! for the first time, after the `Resumed` if there is one; the guest answers a `Resumed` before
//! its command by another `Ready`. A `Resumed` in Running has no answer.
//!
//! Anything else the guest sends is an [`AgentError`], after which the session is `Failed`. All
//! buffers are bounded, whatever guest and caller do.

use std::collections::VecDeque;

use hull_agent::{
    Exit, FromGuest, FromHost, Interface, Output, Resumed, SAID, STDIN_WINDOW, VERSION, WindowSize,
    frame, output_cost, output_window,
};

use super::error::AgentError;
use super::exec::{Exec, append, append_networks};
use super::processes::Processes;

pub mod saved;

/// What waiting events cost at which [`Session::receive_room`] is 0: all of the output that the guest may
/// send before it is told that some was read, and more than enough of what else there is.
pub const MAX_BUFFERED: usize = output_window(0) + 256 * 1024;

/// Bytes of outgoing frames above which signals and sizes wait.
const OUTGOING_FULL: usize = 128 * 1024;
/// Longest error text that is kept, in bytes.
const MAX_TEXT: usize = 1024;

/// What the guest has reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Init waits for a command, which was sent unless the session is held. Once per session.
    Ready,
    /// The command's standard output, or all output of its terminal.
    Stdout(Vec<u8>),
    /// The command's standard error.
    Stderr(Vec<u8>),
    /// Why the command could not be run, for the user; a text of the guest's begins with `guest: ` and has
    /// no control characters.
    Error(String),
    /// The user typed the suspend character where it stops nothing in the guest.
    Suspend,
    /// The command runs, if that is to be reported.
    Started,
    /// The last event: the command ended with this status ([`Exit::status`], as container engines
    /// report it).
    Exited(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    Waiting,
    Held,
    Resuming,
    Running,
    Exited(Exit),
    Failed,
}

/// The host's side of one command.
///
/// The caller reads at most [`Session::receive_room`] bytes from the channel into
/// [`Session::receive`], takes all of [`Session::next_event`], and writes
/// [`Session::outgoing`] to the channel, reporting to [`Session::sent`] how much was written.
#[derive(Debug)]
pub struct Session {
    state: State,
    /// Whether the guest's first `Ready` leads to Held.
    hold: bool,
    /// Whether [`Event::Ready`] was reported.
    ready: bool,
    /// A restore that the guest has not been told of yet.
    resumed: Option<Resumed>,
    /// The command's frames, until they are sent.
    exec: Vec<u8>,
    /// The command's name, for messages.
    program: String,
    /// The beginning of a frame from the guest.
    partial: Vec<u8>,
    events: VecDeque<Event>,
    /// Sum of the events' costs.
    buffered: usize,
    outgoing: Vec<u8>,
    /// Bytes at the front of `outgoing` that were written already.
    gone: usize,
    /// Bytes of standard input sent and not acknowledged.
    unacked: usize,
    /// What the guest may send before output is acknowledged.
    window: usize,
    /// Output that was not acknowledged, and of that what was taken, in the measure of [`output_cost`].
    unacked_output: usize,
    taken_output: usize,
    stdin: Stdin,
    /// Pending signals, bit N-1 for signal N: each is pending once, as in a kernel.
    signals: u64,
    size: Option<WindowSize>,
    /// Outputs whose end the guest is to be told of.
    unread: Vec<Output>,
    /// The commands beside this one.
    processes: Processes,
    /// Whether this is a command beside the main one of a machine, over a connection of its own.
    beside: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Stdin {
    Open,
    Closing,
    Closed,
}

impl Session {
    /// A session for one command, before the guest's first byte.
    ///
    /// # Errors
    /// [`AgentError::NoCommand`], [`AgentError::Nul`], [`AgentError::TooLong`].
    pub fn new(exec: Exec) -> Result<Self, AgentError> {
        let program = exec
            .argv
            .first()
            .map(|name| name.to_string_lossy().into_owned());
        Ok(Self::of(exec.frames()?, program.unwrap_or_default()))
    }

    /// A session for the command in the frames `exec`, whose name is `program`.
    fn of(exec: Vec<u8>, program: String) -> Self {
        Self {
            state: State::Greeting,
            hold: false,
            ready: false,
            resumed: None,
            exec,
            program,
            partial: Vec::new(),
            events: VecDeque::new(),
            buffered: 0,
            outgoing: Vec::new(),
            gone: 0,
            unacked: 0,
            window: output_window(0),
            unacked_output: 0,
            taken_output: 0,
            stdin: Stdin::Open,
            signals: 0,
            size: None,
            unread: Vec::new(),
            processes: Processes::default(),
            beside: false,
        }
    }

    /// A session for a command beside the main one, over a connection to a machine that passes on its frames:
    /// it begins with the command and has no [`Event::Ready`].
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn beside(exec: Exec) -> Result<Self, AgentError> {
        let mut session = Self::new(exec)?;
        session.outgoing.append(&mut session.exec);
        Ok(session.connected())
    }

    /// A session with a command that runs already, over a connection to a [`super::Attached`].
    pub fn attached() -> Self {
        Self::of(Vec::new(), String::new()).connected()
    }

    fn connected(self) -> Self {
        Self {
            state: State::Running,
            ready: true,
            window: output_window(1),
            beside: true,
            ..self
        }
    }

    /// A session that sends no command before [`Session::start`].
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn waiting(exec: Exec) -> Result<Self, AgentError> {
        let session = Self::new(exec)?;
        Ok(Self {
            hold: true,
            ..session
        })
    }

    /// A session with a guest restored from a template: it is told what `resumed` says, then the
    /// command.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn restored(exec: Exec, resumed: Resumed) -> Result<Self, AgentError> {
        let mut session = Self::new(exec)?;
        session.resumed = Some(resumed);
        session.send_command();
        Ok(session)
    }

    /// End the hold: send the command, after `resumed` if given. A session whose guest is not ready
    /// yet will not be held.
    pub fn start(&mut self, resumed: Option<Resumed>) {
        self.hold = false;
        self.resumed = resumed.or(self.resumed);
        if self.state == State::Held {
            self.send_command();
        }
    }

    /// Whether [`Event::Ready`] was reported.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Whether the guest waits for [`Session::start`].
    pub fn is_held(&self) -> bool {
        self.state == State::Held
    }

    /// The machine was restored from a snapshot: tell the guest as soon as it listens. Of several that
    /// wait only the last is sent, with the slots of the last that named any.
    pub fn resumed(&mut self, resumed: Resumed) {
        let mut resumed = resumed;
        if let (0, Some(earlier)) = (resumed.slots, self.resumed) {
            resumed.first_slot = earlier.first_slot;
            resumed.slots = earlier.slots;
        }
        self.resumed = Some(resumed);
        self.push_waiting();
    }

    /// The machine has other networks than when the session was made or saved: tell the guest, before
    /// its command if that was not sent yet.
    pub fn set_networks(&mut self, networks: &[Interface]) {
        match self.state {
            State::Greeting | State::Waiting | State::Held => {
                let mut exec = Vec::with_capacity(self.exec.len());
                append_networks(&mut exec, networks);
                let mut rest = self.exec.as_slice();
                while let Ok(Some(frame)) = frame::first(rest) {
                    let (bytes, behind) = rest.split_at(frame.wire_len());
                    if !matches!(FromHost::decode(frame), Ok(FromHost::Interface(_))) {
                        exec.extend_from_slice(bytes);
                    }
                    rest = behind;
                }
                self.exec = exec;
            }
            State::Resuming | State::Running => append_networks(&mut self.outgoing, networks),
            State::Exited(_) | State::Failed => {}
        }
    }

    /// The commands beside this one, if the guest can have any: until this one has ended. Nothing is passed on
    /// before it runs.
    pub fn processes(&mut self) -> Option<&mut Processes> {
        let over = matches!(self.state, State::Exited(_) | State::Failed);
        (!over && !self.beside).then_some(&mut self.processes)
    }

    /// Whether bytes of the client of this process are taken now, and whether bytes wait for it.
    pub fn client_progress(&self, number: u8) -> (bool, bool) {
        let takes = self.passes_on() && self.processes.room(number) > 0;
        (takes, !self.processes.for_client(number).is_empty())
    }

    /// Whether the guest takes more frames of clients: not while too many bytes wait for it.
    pub fn passes_on(&self) -> bool {
        self.state == State::Running && self.outgoing().len() <= OUTGOING_FULL
    }

    /// Queue what the processes have for the guest.
    pub fn pass_on(&mut self) {
        if self.state == State::Running {
            self.processes.append_to(&mut self.outgoing);
        }
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Bytes that [`Session::receive`] accepts now; 0 while too many events wait.
    pub fn receive_room(&self) -> usize {
        MAX_BUFFERED.saturating_sub(self.buffered)
    }

    /// Process bytes from the guest, split anywhere.
    ///
    /// # Errors
    /// The guest breaks the protocol, or there are more bytes than [`Session::receive_room`].
    /// Events before the error remain; every later call is [`AgentError::Ended`].
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        let result = self.receive_frames(bytes);
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }

    /// Take the oldest event. The guest may send as much more output.
    pub fn next_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        self.buffered -= cost(&event);
        if let Event::Stdout(_) | Event::Stderr(_) = &event {
            self.taken_output += cost(&event);
            self.push_waiting();
        }
        Some(event)
    }

    /// Bytes for the guest.
    pub fn outgoing(&self) -> &[u8] {
        self.outgoing.get(self.gone..).unwrap_or_default()
    }

    /// The first `n` bytes of [`Session::outgoing`] were written.
    pub fn sent(&mut self, n: usize) {
        self.gone = (self.gone + n).min(self.outgoing.len());
        if self.gone == self.outgoing.len() {
            self.outgoing.clear();
            self.gone = 0;
        }
        self.push_waiting();
    }

    /// Bytes of standard input that can be sent now: 0 before the guest is ready, after the end of
    /// input, and while [`STDIN_WINDOW`] bytes are unacknowledged.
    pub fn stdin_room(&self) -> usize {
        if self.state == State::Running && self.stdin == Stdin::Open {
            STDIN_WINDOW - self.unacked
        } else {
            0
        }
    }

    /// Send standard input to the command. Returns how many bytes were taken, at most
    /// [`Session::stdin_room`].
    pub fn send_stdin(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.stdin_room());
        let bytes = bytes.get(..taken).unwrap_or_default();
        if !bytes.is_empty() {
            append(&mut self.outgoing, &FromHost::Stdin(bytes));
        }
        self.unacked += taken;
        taken
    }

    /// Send the end of standard input (a Ctrl-D, when the command has a terminal).
    pub fn close_stdin(&mut self) {
        if self.stdin == Stdin::Open {
            self.stdin = Stdin::Closing;
            self.push_waiting();
        }
    }

    /// Send the new size of the terminal; of several that wait only the last is sent.
    pub fn resize(&mut self, size: WindowSize) {
        self.size = Some(size);
        self.push_waiting();
    }

    /// Send signal `number` to the command's process group; numbers other than 1 to 64 are
    /// ignored.
    pub fn signal(&mut self, number: u8) {
        if (1..=64).contains(&number) {
            self.signals |= 1 << (number - 1);
            self.push_waiting();
        }
    }

    /// What the command writes to `output` has no reader any more; to be called once for each.
    pub fn close_output(&mut self, output: Output) {
        self.unread.push(output);
        self.push_waiting();
    }

    /// How the command ended, once it has.
    pub fn exit(&self) -> Option<Exit> {
        match self.state {
            State::Exited(exit) => Some(exit),
            _ => None,
        }
    }

    fn receive_frames(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        let (len, room) = (bytes.len(), self.receive_room());
        if self.state == State::Failed {
            return Err(AgentError::Ended);
        }
        if len > room {
            return Err(AgentError::NoRoom { len, room });
        }
        let mut collected = std::mem::take(&mut self.partial);
        collected.extend_from_slice(bytes);
        let mut rest = collected.as_slice();
        while let Some(frame) = frame::first(rest)? {
            rest = rest.get(frame.wire_len()..).unwrap_or_default();
            let message = FromGuest::decode(frame)?;
            if frame.process == 0 || self.beside {
                self.take(message)?;
            } else if self.state == State::Running {
                self.processes.take(frame, message)?;
            } else {
                return Err(AgentError::out_of_turn(&message));
            }
        }
        let used = collected.len() - rest.len();
        collected.drain(..used);
        self.partial = collected;
        Ok(())
    }

    fn take(&mut self, message: FromGuest<'_>) -> Result<(), AgentError> {
        match (self.state, message) {
            (State::Greeting, FromGuest::Hello { version }) => {
                if version != VERSION {
                    return Err(AgentError::Version { version });
                }
                self.state = State::Waiting;
            }
            (State::Waiting, FromGuest::Ready) => {
                if self.hold {
                    self.state = State::Held;
                    self.report_ready();
                } else {
                    self.send_command();
                }
            }
            (State::Resuming, FromGuest::Ready) => self.run(),
            (State::Running, FromGuest::Stdout(bytes)) => {
                self.push_output(Event::Stdout(bytes.to_vec()))?;
            }
            (State::Running, FromGuest::Stderr(bytes)) => {
                self.push_output(Event::Stderr(bytes.to_vec()))?;
            }
            (State::Running, FromGuest::Started) => self.push(Event::Started),
            (State::Running, FromGuest::StdinAck(acked)) => {
                let sent = self.unacked;
                self.unacked = sent
                    .checked_sub(acked as usize)
                    .ok_or(AgentError::FalseAck { acked, sent })?;
            }
            (State::Running, FromGuest::Exit(exit)) => {
                if let Some(text) = why_not_run(exit, &self.program) {
                    self.push(Event::Error(text));
                }
                self.state = State::Exited(exit);
                self.push(Event::Exited(exit.status()));
                if !self.beside {
                    append(&mut self.outgoing, &FromHost::Goodbye);
                }
            }
            (State::Running, FromGuest::Suspend) => self.push(Event::Suspend),
            (
                State::Greeting | State::Waiting | State::Held | State::Resuming | State::Running,
                FromGuest::Error(text),
            ) => {
                self.push(Event::Error(readable(text)));
            }
            (_, message) => return Err(AgentError::out_of_turn(&message)),
        }
        Ok(())
    }

    /// Send the command to a guest that waits for it, after a pending `Resumed`.
    fn send_command(&mut self) {
        let resumed = self.resumed.take();
        if let Some(resumed) = &resumed {
            append(&mut self.outgoing, &FromHost::Resumed(*resumed));
        }
        self.outgoing.append(&mut self.exec);
        match resumed {
            Some(_) => self.state = State::Resuming,
            None => self.run(),
        }
    }

    fn run(&mut self) {
        self.state = State::Running;
        self.report_ready();
        self.push_waiting();
    }

    fn report_ready(&mut self) {
        if !self.ready {
            self.ready = true;
            self.push(Event::Ready);
        }
    }

    /// Output, for which the guest was given room.
    fn push_output(&mut self, event: Event) -> Result<(), AgentError> {
        self.unacked_output += cost(&event);
        if self.unacked_output > self.window {
            return Err(AgentError::Flood { process: 0 });
        }
        self.push(event);
        Ok(())
    }

    fn push(&mut self, event: Event) {
        self.buffered += cost(&event);
        self.events.push_back(event);
    }

    /// Queue messages that waited for the command to run or for room.
    fn push_waiting(&mut self) {
        if self.outgoing().len() > OUTGOING_FULL {
            return;
        }
        if matches!(self.state, State::Resuming | State::Running)
            && let Some(resumed) = self.resumed.take()
        {
            append(&mut self.outgoing, &FromHost::Resumed(resumed));
        }
        if self.state != State::Running {
            return;
        }
        if let Some(size) = self.size.take() {
            append(&mut self.outgoing, &FromHost::Resize(size));
        }
        for number in 1..=64u8 {
            if self.signals & (1 << (number - 1)) != 0 {
                append(&mut self.outgoing, &FromHost::Signal(number));
            }
        }
        self.signals = 0;
        // Half of it: each acknowledgement costs the guest an interrupt.
        if self.taken_output >= self.window / 2 {
            let taken = std::mem::take(&mut self.taken_output);
            self.unacked_output -= taken;
            append(&mut self.outgoing, &FromHost::OutputAck(taken as u32));
        }
        for output in self.unread.drain(..) {
            append(&mut self.outgoing, &FromHost::OutputClose(output));
        }
        if self.stdin == Stdin::Closing {
            self.stdin = Stdin::Closed;
            append(&mut self.outgoing, &FromHost::StdinClose);
        }
    }
}

/// Why the command could not be started, if it could not.
fn why_not_run(exit: Exit, program: &str) -> Option<String> {
    let (what, errno) = match exit {
        Exit::Exited(_) | Exit::Signalled(_) => return None,
        Exit::NotFound(errno) => ("is not in the guest", errno),
        Exit::NotExecutable(errno) => ("cannot be executed in the guest", errno),
        Exit::Error(errno) => ("could not be started in the guest", errno),
    };
    if errno == SAID {
        return None;
    }
    let reason = std::io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or(0));
    Some(format!("{program:?} {what}: {reason}"))
}

fn cost(event: &Event) -> usize {
    output_cost(match event {
        Event::Stdout(bytes) | Event::Stderr(bytes) => bytes.len(),
        Event::Error(text) => text.len(),
        Event::Ready | Event::Suspend | Event::Started | Event::Exited(_) => 0,
    })
}

/// A guest's text as one line that says whose it is, with control characters, which a terminal would act
/// on, as escapes.
fn readable(text: &[u8]) -> String {
    let text = text.get(..MAX_TEXT).unwrap_or(text);
    let mut line = String::from("guest: ");
    for character in String::from_utf8_lossy(text).trim_end().chars() {
        match character.is_control() {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    line
}

#[cfg(test)]
mod tests;
