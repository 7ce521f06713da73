//! A session as plain data, for a snapshot of its machine.

use hull_agent::{
    Exit, FromGuest, FromHost, MAX_COMMAND, Resumed, STDIN_WINDOW, WindowSize, frame, output_window,
};
use serde::{Deserialize, Serialize};

use super::{OUTGOING_FULL, Session, State, Stdin};
use crate::agent::error::AgentError;
use crate::agent::processes::{Processes, SavedProcess};

/// Limit of a command's frames in bytes: the command, and some thousands of networks and mounts.
const MAX_EXEC: usize = 2 * MAX_COMMAND;
/// Limit of the queue for the guest in bytes: a command, a full queue, and what one call may add.
const MAX_OUTGOING: usize = MAX_EXEC + 2 * OUTGOING_FULL;

/// A session without its events, which its owner has taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSession {
    state: SavedState,
    hold: bool,
    ready: bool,
    /// The payload of a `Resumed` that was not sent yet.
    resumed: Option<Vec<u8>>,
    exec: Vec<u8>,
    program: String,
    partial: Vec<u8>,
    outgoing: Vec<u8>,
    unacked: u32,
    unacked_output: u32,
    processes: Vec<SavedProcess>,
    stdin: SavedStdin,
    signals: u64,
    /// The terminal's rows and columns.
    size: Option<(u16, u16)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum SavedState {
    Greeting,
    Waiting,
    Held,
    Resuming,
    Running,
    /// The guest's `Exit` frame.
    Exited(Vec<u8>),
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum SavedStdin {
    Open,
    Closing,
    Closed,
}

impl Session {
    /// The session as it is now, without events that were not taken.
    pub fn save(&self) -> SavedSession {
        SavedSession {
            state: match self.state {
                State::Greeting => SavedState::Greeting,
                State::Waiting => SavedState::Waiting,
                State::Held => SavedState::Held,
                State::Resuming => SavedState::Resuming,
                State::Running => SavedState::Running,
                State::Exited(exit) => SavedState::Exited(encode(exit)),
                State::Failed => SavedState::Failed,
            },
            hold: self.hold,
            ready: self.ready,
            resumed: self.resumed.map(|resumed| resumed.encode().to_vec()),
            exec: self.exec.clone(),
            program: self.program.clone(),
            partial: self.partial.clone(),
            outgoing: [self.outgoing(), self.processes.outgoing()].concat(),
            unacked: self.unacked as u32,
            unacked_output: self.unacked_output as u32,
            processes: self.processes.save(),
            stdin: match self.stdin {
                Stdin::Open => SavedStdin::Open,
                Stdin::Closing => SavedStdin::Closing,
                Stdin::Closed => SavedStdin::Closed,
            },
            signals: self.signals,
            size: self.size.map(|size| (size.rows, size.cols)),
        }
    }

    /// The session of a snapshot.
    ///
    /// # Errors
    /// [`AgentError::Saved`]: the state is impossible.
    pub fn load(saved: SavedSession) -> Result<Self, AgentError> {
        saved.check()?;
        let state = match saved.state {
            SavedState::Greeting => State::Greeting,
            SavedState::Waiting => State::Waiting,
            SavedState::Held => State::Held,
            SavedState::Resuming => State::Resuming,
            SavedState::Running => State::Running,
            SavedState::Exited(frame) => State::Exited(decode(&frame)?),
            SavedState::Failed => State::Failed,
        };
        Ok(Self {
            state,
            hold: saved.hold,
            ready: saved.ready,
            resumed: match saved.resumed.as_deref().map(Resumed::decode) {
                None => None,
                Some(Ok(resumed)) => Some(resumed),
                Some(Err(_)) => {
                    let what = "the pending restore message is invalid";
                    return Err(AgentError::Saved { what });
                }
            },
            exec: saved.exec,
            program: saved.program,
            partial: saved.partial,
            events: std::collections::VecDeque::new(),
            buffered: 0,
            outgoing: saved.outgoing,
            gone: 0,
            unacked: saved.unacked as usize,
            window: output_window(0),
            unacked_output: saved.unacked_output as usize,
            taken_output: saved.unacked_output as usize,
            processes: Processes::load(&saved.processes)?,
            beside: false,
            stdin: match saved.stdin {
                SavedStdin::Open => Stdin::Open,
                SavedStdin::Closing => Stdin::Closing,
                SavedStdin::Closed => Stdin::Closed,
            },
            signals: saved.signals,
            size: saved.size.map(|(rows, cols)| WindowSize { rows, cols }),
            unread: Vec::new(),
        })
    }
}

impl SavedSession {
    fn check(&self) -> Result<(), AgentError> {
        let unsent = matches!(
            self.state,
            SavedState::Greeting | SavedState::Waiting | SavedState::Held
        );
        let what = if unsent && !is_command(&self.exec) {
            "its command is invalid"
        } else if !unsent && self.state != SavedState::Failed && !self.exec.is_empty() {
            "its command is sent and unsent at once"
        } else if self.program.len() > MAX_COMMAND {
            "the program name is too long"
        } else if self.partial.len() >= frame::HEADER + frame::MAX_PAYLOAD {
            "too many bytes from the guest"
        } else if self.outgoing.len() > MAX_OUTGOING {
            "too many bytes for the guest"
        } else if self.unacked as usize > STDIN_WINDOW {
            "too much unacknowledged input"
        } else if self.unacked_output as usize > output_window(0) {
            "too much unacknowledged output"
        } else {
            return Ok(());
        };
        Err(AgentError::Saved { what })
    }
}

/// Whether `frames` are networks and mounts, then one command.
fn is_command(frames: &[u8]) -> bool {
    let mut rest = frames;
    let mut parts = false;
    while let Ok(Some(frame)) = frame::first(rest) {
        rest = rest.get(frame.wire_len()..).unwrap_or_default();
        match FromHost::decode(frame) {
            Ok(FromHost::Interface(_) | FromHost::Root(_) | FromHost::Mount(_)) if !parts => {}
            Ok(FromHost::ExecPart(_)) => parts = true,
            Ok(FromHost::Exec(_)) => return rest.is_empty() && frames.len() <= MAX_EXEC,
            _ => return false,
        }
    }
    false
}

fn encode(exit: Exit) -> Vec<u8> {
    let mut frame = vec![0; frame::HEADER + 8];
    let len = FromGuest::Exit(exit).encode(&mut frame);
    frame.truncate(len.unwrap_or(0));
    frame
}

fn decode(bytes: &[u8]) -> Result<Exit, AgentError> {
    let frame = frame::first(bytes).ok().flatten();
    match frame.map(FromGuest::decode) {
        Some(Ok(FromGuest::Exit(exit))) => Ok(exit),
        _ => Err(AgentError::Saved {
            what: "the exit of its command is invalid",
        }),
    }
}
