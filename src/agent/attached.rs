//! The other end of a [`super::Session::attached`]: what passes between a machine in the background and one
//! that looks at it.
//!
//! Frames are those of the guest's agent, so that what is attached is as any command to its user: output
//! within the protocol's window, input within another, signals, sizes, and at last the end.

use std::collections::VecDeque;

use hull_agent::frame::{self, HEADER, MAX_PAYLOAD};
use hull_agent::{
    Exit, FromGuest, FromHost, Output, STDIN_WINDOW, WindowSize, output_cost, output_window,
};

use super::processes::ClientFault;

/// What the one that is attached wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Send the command this signal, 1 to 64.
    Signal(u8),
    /// Give its terminal this size.
    Resize(WindowSize),
}

/// One that is attached.
#[derive(Debug, Default)]
pub struct Attached {
    /// The beginning of a frame.
    partial: Vec<u8>,
    /// Frames for it.
    outgoing: VecDeque<u8>,
    /// Output that it has not acknowledged, in the measure of [`output_cost`].
    unacked_output: usize,
    typed: VecDeque<u8>,
    /// Bytes of input that were not acknowledged.
    unacked_input: usize,
    /// Outputs that it does not read.
    unread: (bool, bool),
}

impl Attached {
    /// Process bytes from it, split anywhere; what it wants, in order.
    ///
    /// # Errors
    /// [`ClientFault::Protocol`]: it is to be left.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Vec<Request>, ClientFault> {
        let wrong = ClientFault::Protocol;
        let mut requests = Vec::new();
        let mut collected = std::mem::take(&mut self.partial);
        collected.extend_from_slice(bytes);
        let mut rest = collected.as_slice();
        while let Some(frame) = frame::first(rest).map_err(|_| wrong)? {
            rest = rest.get(frame.wire_len()..).unwrap_or_default();
            match FromHost::decode(frame).map_err(|_| wrong)? {
                FromHost::Stdin(bytes) => {
                    self.unacked_input += bytes.len();
                    if self.unacked_input > STDIN_WINDOW {
                        return Err(wrong);
                    }
                    self.typed.extend(bytes);
                }
                FromHost::OutputAck(cost) => {
                    let left = self.unacked_output.checked_sub(cost as usize);
                    self.unacked_output = left.ok_or(wrong)?;
                }
                FromHost::Signal(number) => requests.push(Request::Signal(number)),
                FromHost::Resize(size) => requests.push(Request::Resize(size)),
                FromHost::OutputClose(Output::Stdout) => self.unread.0 = true,
                FromHost::OutputClose(Output::Stderr) => self.unread.1 = true,
                // Others may have more for the command.
                FromHost::StdinClose => {}
                _ => return Err(wrong),
            }
        }
        let used = collected.len() - rest.len();
        collected.drain(..used);
        self.partial = collected;
        Ok(requests)
    }

    /// Bytes of output that it takes now.
    pub fn room(&self) -> usize {
        let free = output_window(1).saturating_sub(self.unacked_output + output_cost(0));
        free.min(MAX_PAYLOAD)
    }

    /// Queue output of the command, at most [`Attached::room`] bytes.
    pub fn push(&mut self, output: Output, bytes: &[u8]) {
        let message = match output {
            Output::Stdout if !self.unread.0 => FromGuest::Stdout(bytes),
            Output::Stderr if !self.unread.1 => FromGuest::Stderr(bytes),
            _ => return,
        };
        self.unacked_output += output_cost(bytes.len());
        self.send(&message, bytes.len());
    }

    /// Queue the end of the command.
    pub fn end(&mut self, status: u8) {
        self.send(&FromGuest::Exit(Exit::Exited(status)), 5);
    }

    /// What it has typed and the command has not got.
    pub fn typed(&self) -> &[u8] {
        self.typed.as_slices().0
    }

    /// The command got the first `n` bytes of [`Attached::typed`].
    pub fn given(&mut self, n: usize) {
        self.typed.drain(..n.min(self.typed.len()));
        if self.typed.is_empty() && self.unacked_input > 0 {
            let all = std::mem::take(&mut self.unacked_input);
            self.send(&FromGuest::StdinAck(all as u32), 4);
        }
    }

    /// The command reads nothing: what was typed is dropped, and no more is taken.
    pub fn drop_typed(&mut self) {
        self.typed.clear();
    }

    /// Bytes for it, in part.
    pub fn outgoing(&self) -> &[u8] {
        self.outgoing.as_slices().0
    }

    /// The first `n` bytes of [`Attached::outgoing`] were sent.
    pub fn sent(&mut self, n: usize) {
        self.outgoing.drain(..n.min(self.outgoing.len()));
    }

    fn send(&mut self, message: &FromGuest<'_>, payload: usize) {
        let mut bytes = vec![0; HEADER + payload];
        let len = message.encode(&mut bytes);
        debug_assert!(len.is_some(), "a frame of {payload} bytes");
        self.outgoing.extend(bytes.iter().take(len.unwrap_or(0)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Event, Session};
    use super::*;

    /// Move bytes of both, in pieces of `piece`, until there are none; what the one attached wants.
    fn exchange(session: &mut Session, attached: &mut Attached, piece: usize) -> Vec<Request> {
        let mut requests = Vec::new();
        loop {
            let there: Vec<u8> = session.outgoing().iter().copied().take(piece).collect();
            session.sent(there.len());
            requests.extend(attached.receive(&there).expect("the protocol"));
            let back: Vec<u8> = attached.outgoing().iter().copied().take(piece).collect();
            let back = &back[..back.len().min(session.receive_room())];
            attached.sent(back.len());
            session.receive(back).expect("the protocol");
            if there.is_empty() && back.is_empty() {
                return requests;
            }
        }
    }

    proptest! {
        #[test]
        fn output_and_input_arrive_whole(
            outputs in prop::collection::vec((any::<bool>(), 0..200_000_usize), 0..12),
            typed in prop::collection::vec(1..70_000_usize, 0..6),
            piece in 1..100_000_usize,
        ) {
            let (mut session, mut attached) = (Session::attached(), Attached::default());
            let (mut sent, mut came, mut got, mut wanted) = ([0, 0], [0, 0], 0, 0);
            for (error, mut len) in outputs {
                while len > 0 {
                    let part = len.min(attached.room());
                    let output = if error { Output::Stderr } else { Output::Stdout };
                    if part > 0 {
                        attached.push(output, &vec![b'x'; part]);
                    }
                    len -= part;
                    sent[usize::from(error)] += part;
                    exchange(&mut session, &mut attached, piece);
                    while let Some(event) = session.next_event() {
                        match event {
                            Event::Stdout(bytes) => came[0] += bytes.len(),
                            Event::Stderr(bytes) => came[1] += bytes.len(),
                            other => prop_assert!(false, "{other:?}"),
                        }
                    }
                    exchange(&mut session, &mut attached, piece);
                }
            }
            prop_assert_eq!(sent, came);
            for mut len in typed {
                while len > 0 {
                    let taken = session.send_stdin(&vec![b'y'; len]);
                    (len, wanted) = (len - taken, wanted + taken);
                    exchange(&mut session, &mut attached, piece);
                    while !attached.typed().is_empty() {
                        let part = attached.typed().len().div_ceil(2);
                        attached.given(part);
                        got += part;
                    }
                    exchange(&mut session, &mut attached, piece);
                }
            }
            prop_assert_eq!(got, wanted);
            session.signal(15);
            session.resize(WindowSize { rows: 3, cols: 4 });
            session.close_stdin();
            let requests = exchange(&mut session, &mut attached, piece);
            let size = WindowSize { rows: 3, cols: 4 };
            prop_assert_eq!(requests, [Request::Signal(15), Request::Resize(size)]);
            attached.end(7);
            exchange(&mut session, &mut attached, piece);
            prop_assert_eq!(session.next_event(), Some(Event::Exited(7)));
        }

        #[test]
        fn any_bytes_leave_the_buffers_bounded(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            let mut attached = Attached::default();
            let _ = attached.receive(&bytes);
            prop_assert!(attached.typed.len() <= STDIN_WINDOW && attached.outgoing.is_empty());
        }
    }

    #[test]
    fn more_input_than_the_window_and_false_acknowledgements_are_faults() {
        let frame = |message: FromHost<'_>| {
            let mut bytes = vec![0; HEADER + MAX_PAYLOAD];
            let len = message.encode(&mut bytes).expect("it fits");
            bytes.truncate(len);
            bytes
        };
        let mut attached = Attached::default();
        let full = frame(FromHost::Stdin(&vec![b'x'; STDIN_WINDOW]));
        assert_eq!(attached.receive(&full), Ok(Vec::new()));
        let more = frame(FromHost::Stdin(b"x"));
        assert_eq!(attached.receive(&more), Err(ClientFault::Protocol));
        let mut attached = Attached::default();
        let ack = frame(FromHost::OutputAck(1));
        assert_eq!(attached.receive(&ack), Err(ClientFault::Protocol));
        let mut attached = Attached::default();
        let exec = frame(FromHost::Exec(b"x"));
        assert_eq!(attached.receive(&exec), Err(ClientFault::Protocol));
    }
}
