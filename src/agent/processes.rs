//! Commands that run beside the main one of a machine: what passes between each and its client.
//!
//! ```text
//! Arriving --whole command--> Running --Exit, and the client has it--> free
//!    |                         |
//!    | client leaves           | client leaves: it goes on, and its output is dropped
//!    v                         v
//!   free                      Running --Exit--> free
//! ```
//! Frames are passed on as they are, but for the number of the process. The client and init keep to the
//! protocol's windows between themselves; what is passed on is held to them, so that all buffers are
//! bounded, whatever guest and client do.

use std::collections::BTreeMap;

use hull_agent::frame::{self, Frame, HEADER, MAX_PAYLOAD};
use hull_agent::{
    FromGuest, FromHost, MAX_COMMAND, MAX_PROCESSES, STDIN_WINDOW, output_cost, output_window,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::error::AgentError;
use super::exec::append_for;

/// Bytes for a client at which nothing more is taken from it.
const CLIENT_FULL: usize = 512 << 10;
/// Most bytes that a guest that keeps to the protocol can have waiting for such a client.
const MAX_FOR_CLIENT: usize = 2 << 20;

/// Why a client is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ClientFault {
    /// All numbers are taken.
    #[error(
        "{} commands run in it already; wait for one to end",
        MAX_PROCESSES - 1
    )]
    TooMany,
    /// It does not keep to the protocol.
    #[error("it does not speak the protocol of hull exec")]
    Protocol,
}

/// The commands beside the main one.
#[derive(Debug, Default)]
pub struct Processes {
    running: BTreeMap<u8, Process>,
    /// Frames for the guest.
    outgoing: Vec<u8>,
}

#[derive(Debug)]
struct Process {
    stage: Stage,
    /// Whether it has a client.
    client: bool,
    /// The beginning of a frame of the client.
    partial: Vec<u8>,
    /// Frames for the client.
    for_client: Vec<u8>,
    unacked_input: usize,
    unacked_output: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// Frames of the command, without its end.
    Arriving(Vec<u8>),
    Running,
    Ended,
}

/// A command beside the main one in a snapshot: its client is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedProcess {
    number: u8,
    unacked_output: u32,
}

impl Processes {
    /// Take a client; the number of its process.
    ///
    /// # Errors
    /// [`ClientFault::TooMany`].
    pub fn open(&mut self) -> Result<u8, ClientFault> {
        let free = (1..MAX_PROCESSES as u8).find(|number| !self.running.contains_key(number));
        let number = free.ok_or(ClientFault::TooMany)?;
        let process = Process {
            stage: Stage::Arriving(Vec::new()),
            client: true,
            partial: Vec::new(),
            for_client: Vec::new(),
            unacked_input: 0,
            unacked_output: 0,
        };
        self.running.insert(number, process);
        Ok(number)
    }

    /// Bytes of the client of `number` that [`Processes::receive`] takes now.
    pub fn room(&self, number: u8) -> usize {
        let process = self.running.get(&number);
        match process.is_some_and(|process| process.for_client.len() < CLIENT_FULL) {
            true => MAX_PAYLOAD,
            false => 0,
        }
    }

    /// Process bytes from the client of `number`, split anywhere.
    ///
    /// # Errors
    /// [`ClientFault::Protocol`]: the client is to [`Processes::leave`].
    pub fn receive(&mut self, number: u8, bytes: &[u8]) -> Result<(), ClientFault> {
        let process = self.running.get_mut(&number);
        let process = process.ok_or(ClientFault::Protocol)?;
        let mut collected = std::mem::take(&mut process.partial);
        collected.extend_from_slice(bytes);
        let mut rest = collected.as_slice();
        while let Some(frame) = frame::first(rest).map_err(|_| ClientFault::Protocol)? {
            rest = rest.get(frame.wire_len()..).unwrap_or_default();
            process.pass(number, frame, &mut self.outgoing)?;
        }
        let used = collected.len() - rest.len();
        collected.drain(..used);
        process.partial = collected;
        Ok(())
    }

    /// Frames for the client of `number`.
    pub fn for_client(&self, number: u8) -> &[u8] {
        let process = self.running.get(&number);
        process.map_or(&[], |process| &process.for_client)
    }

    /// The first `n` bytes of [`Processes::for_client`] were sent. Returns whether the process has ended and
    /// nothing more comes.
    pub fn sent(&mut self, number: u8, n: usize) -> bool {
        let Some(process) = self.running.get_mut(&number) else {
            return true;
        };
        let n = n.min(process.for_client.len());
        process.for_client.drain(..n);
        let over = process.for_client.is_empty() && process.stage == Stage::Ended;
        if over {
            self.running.remove(&number);
        }
        over
    }

    /// The client of `number` is gone: the command goes on without it.
    pub fn leave(&mut self, number: u8) {
        let Some(process) = self.running.get_mut(&number) else {
            return;
        };
        if process.stage != Stage::Running {
            self.running.remove(&number);
            return;
        }
        process.client = false;
        process.partial = Vec::new();
        process.for_client = Vec::new();
        let output = std::mem::take(&mut process.unacked_output);
        if output > 0 {
            append_for(
                &mut self.outgoing,
                number,
                &FromHost::OutputAck(output as u32),
            );
        }
        append_for(&mut self.outgoing, number, &FromHost::StdinClose);
    }

    /// A frame of the guest's, decoded as `message`.
    pub(super) fn take(
        &mut self,
        frame: Frame<'_>,
        message: FromGuest<'_>,
    ) -> Result<(), AgentError> {
        let number = frame.process;
        let process = self.running.get_mut(&number);
        let process = process.filter(|process| process.stage == Stage::Running);
        let process = process.ok_or_else(|| AgentError::out_of_turn(&message))?;
        match message {
            FromGuest::Stdout(bytes) | FromGuest::Stderr(bytes) => {
                let cost = output_cost(bytes.len());
                process.unacked_output += cost;
                if process.unacked_output > output_window(number) {
                    return Err(AgentError::Flood { process: number });
                }
                if !process.client && process.unacked_output > output_window(number) / 2 {
                    let output = std::mem::take(&mut process.unacked_output);
                    append_for(
                        &mut self.outgoing,
                        number,
                        &FromHost::OutputAck(output as u32),
                    );
                }
            }
            FromGuest::StdinAck(acked) => {
                let sent = process.unacked_input;
                let left = sent.checked_sub(acked as usize).filter(|_| acked > 0);
                process.unacked_input = left.ok_or(AgentError::FalseAck { acked, sent })?;
            }
            FromGuest::Exit(_) => process.stage = Stage::Ended,
            FromGuest::Error(_) | FromGuest::Suspend | FromGuest::Started => {}
            FromGuest::Hello { .. } | FromGuest::Ready => {
                return Err(AgentError::out_of_turn(&message));
            }
        }
        if process.client {
            let len = frame.payload.len();
            process.for_client.extend(frame::header(frame.kind, 0, len));
            process.for_client.extend(frame.payload);
            if process.for_client.len() > MAX_FOR_CLIENT {
                return Err(AgentError::Flood { process: number });
            }
        } else if process.stage == Stage::Ended {
            self.running.remove(&number);
        }
        Ok(())
    }

    /// Frames for the guest that were not moved yet.
    pub(super) fn outgoing(&self) -> &[u8] {
        &self.outgoing
    }

    /// Move the frames for the guest to `out`.
    pub(super) fn append_to(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.outgoing);
    }

    /// The processes that the guest knows of.
    pub(super) fn save(&self) -> Vec<SavedProcess> {
        let running = self.running.iter();
        let running = running.filter(|(_, process)| process.stage == Stage::Running);
        let saved = running.map(|(number, process)| SavedProcess {
            number: *number,
            unacked_output: process.unacked_output as u32,
        });
        saved.collect()
    }

    /// Those of a snapshot, which have lost their clients.
    pub(super) fn load(saved: &[SavedProcess]) -> Result<Self, AgentError> {
        let mut processes = Self::default();
        for SavedProcess {
            number,
            unacked_output,
        } in saved
        {
            let process = Process {
                stage: Stage::Running,
                client: true,
                partial: Vec::new(),
                for_client: Vec::new(),
                unacked_input: STDIN_WINDOW,
                unacked_output: *unacked_output as usize,
            };
            let fits = (1..MAX_PROCESSES as u8).contains(number)
                && process.unacked_output <= output_window(*number);
            if !fits || processes.running.insert(*number, process).is_some() {
                return Err(AgentError::Saved {
                    what: "a command beside the main one cannot have been",
                });
            }
            processes.leave(*number);
        }
        Ok(processes)
    }
}

impl Process {
    /// Pass on a frame of the client.
    fn pass(
        &mut self,
        number: u8,
        frame: Frame<'_>,
        outgoing: &mut Vec<u8>,
    ) -> Result<(), ClientFault> {
        let wrong = ClientFault::Protocol;
        let message = FromHost::decode(frame).map_err(|_| wrong)?;
        match (&mut self.stage, &message) {
            (Stage::Arriving(command), FromHost::ExecPart(_) | FromHost::Exec(_)) => {
                append_for(command, number, &message);
                // Frames have headers.
                if command.len() > MAX_COMMAND + MAX_COMMAND / MAX_PAYLOAD * HEADER + HEADER {
                    return Err(wrong);
                }
                if let FromHost::Exec(_) = message {
                    // In one piece: no part of another command may be in it.
                    outgoing.append(command);
                    self.stage = Stage::Running;
                }
                return Ok(());
            }
            (Stage::Running, FromHost::Stdin(bytes)) => {
                self.unacked_input += bytes.len();
                if self.unacked_input > STDIN_WINDOW {
                    return Err(wrong);
                }
            }
            (Stage::Running, FromHost::OutputAck(cost)) => {
                let left = self.unacked_output.checked_sub(*cost as usize);
                self.unacked_output = left.ok_or(wrong)?;
            }
            (
                Stage::Running,
                FromHost::StdinClose
                | FromHost::Resize(_)
                | FromHost::Signal(_)
                | FromHost::OutputClose(_),
            ) => {}
            // It does not know yet.
            (Stage::Ended, _) => return Ok(()),
            _ => return Err(wrong),
        }
        append_for(outgoing, number, &message);
        Ok(())
    }
}
