//! The clients of the commands beside the main one: a socket each, over which frames of the agent pass
//! between a `hull exec` and the guest's init.
//!
//! A client that reads slowly holds up only itself: what waits for it is bounded by the agent's windows.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::agent::{ClientFault, Session};
use crate::control::{Answer, Reply};

/// Bytes read from a client at once.
const BATCH: usize = 64 << 10;

/// The clients.
#[derive(Default)]
pub struct Clients(Vec<Client>);

/// Clients that came before the guest's init was ready.
#[derive(Default)]
pub struct Early(Vec<Reply>);

/// Most of them: there are fewer connections.
const MAX_EARLY: usize = 64;

impl Early {
    /// Let `reply` wait until init is ready.
    pub fn add(&mut self, reply: Reply) {
        match self.0.len() < MAX_EARLY {
            true => self.0.push(reply),
            false => reply.send(Answer::Refused("too many commands wait already".into())),
        }
    }

    /// Init is ready: those that have waited.
    pub fn take(&mut self) -> Vec<Reply> {
        std::mem::take(&mut self.0)
    }
}

struct Client {
    /// Of its process.
    number: u8,
    socket: OwnedFd,
}

impl Clients {
    /// Take a client, whose end of the connection does not block.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn admit(&mut self, session: &mut Session, socket: Option<OwnedFd>) -> Result<(), String> {
        let blocks = |socket: &OwnedFd| match rustix::fs::fcntl_getfl(socket) {
            Ok(flags) => !flags.contains(OFlags::NONBLOCK),
            Err(_) => true,
        };
        let socket = socket.filter(|socket| !blocks(socket));
        let socket = socket.ok_or_else(|| ClientFault::Protocol.to_string())?;
        let processes = session.processes();
        let processes = processes.ok_or("its main command has ended")?;
        let number = processes.open().map_err(|fault| fault.to_string())?;
        self.0.push(Client { number, socket });
        Ok(())
    }

    /// What to poll: the number of a process, its client's socket, and what for.
    pub fn watched(
        &self,
        session: &Session,
    ) -> impl Iterator<Item = (u8, BorrowedFd<'_>, PollFlags)> {
        let watched = self.0.iter().map(move |client| {
            let (takes, waits) = session.client_progress(client.number);
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, takes);
            flags.set(PollFlags::OUT, waits);
            (client.number, client.socket.as_fd(), flags)
        });
        // One that hung up would always be reported, although nothing can be done yet.
        watched.filter(|(.., flags)| !flags.is_empty())
    }

    /// The socket of `number` polled ready: receive from it. What waits for it is sent by
    /// [`Clients::send`].
    pub fn receive(&mut self, number: u8, session: &mut Session) {
        if !session.client_progress(number).0 {
            return;
        }
        let Some(processes) = session.processes() else {
            return self.0.clear();
        };
        let Some(client) = self.0.iter().find(|client| client.number == number) else {
            return;
        };
        let mut bytes = Vec::with_capacity(BATCH);
        let stays = match rustix::io::read(&client.socket, spare_capacity(&mut bytes)) {
            Ok(1..) => processes.receive(number, &bytes).is_ok(),
            Err(Errno::AGAIN | Errno::INTR) => true,
            Ok(0) | Err(_) => false,
        };
        if !stays {
            processes.leave(number);
            self.0.retain(|client| client.number != number);
        }
    }

    /// Send what waits for each client, as far as its socket takes it.
    pub fn send(&mut self, session: &mut Session) {
        let Some(processes) = session.processes() else {
            return self.0.clear();
        };
        self.0.retain(|client| {
            let mut sent = 0;
            loop {
                let waiting = processes.for_client(client.number);
                let waiting = waiting.get(sent..).unwrap_or_default();
                if waiting.is_empty() {
                    break;
                }
                match rustix::io::write(&client.socket, waiting) {
                    Ok(n @ 1..) => sent += n,
                    Ok(0) | Err(Errno::AGAIN | Errno::INTR) => break,
                    Err(_) => {
                        processes.leave(client.number);
                        return false;
                    }
                }
            }
            !processes.sent(client.number, sent)
        });
    }
}
