//! Frames from the wire to the guest (virtio 1.2, 5.1.6.3, 5.1.6.4).
//!
//! Chains are taken from the queue until they have room for any frame, and are held from one frame
//! to the next: mostly a frame is read straight into them, and uses as many of them as it fills.
//! Where a driver offers less room, a frame is read into a buffer first and copied when there is
//! room for it.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::time::Duration;

use super::transmit::{limited, pay};
use super::wire::{Clock, HEADER, MAX_FRAME, Wire};
use crate::devices::rate::{Limits, Rate};
use crate::devices::virtio::queue::{Chain, VirtQueue};
use crate::devices::virtio::{DeviceError, Driver};
use crate::memory::transfer::Pieces;

/// Queue of the frames to the guest.
pub const RX: usize = 0;
/// Frames that are received in one turn.
const FRAMES_PER_TURN: usize = 64;
/// Offset of num_buffers in a header (5.1.6).
const NUM_BUFFERS: u64 = 10;

/// A chain that is ready to be written.
struct Held {
    chain: Chain,
    len: usize,
    pieces: usize,
}

/// A frame that was read and not yet given to the guest.
#[derive(Clone, Copy)]
struct Frame {
    /// Bytes with the header.
    len: usize,
    /// It is in `buffer`; otherwise at the start of the held chains.
    buffered: bool,
    /// The rate let it pass.
    paid: bool,
}

/// The guest's receiving side.
pub(super) struct Receiver {
    rate: Option<Rate>,
    /// When the rate lets the next frame pass.
    pub deadline: Option<Duration>,
    /// The wire may have a frame.
    waiting: bool,
    held: VecDeque<Held>,
    /// Memory of the held chains.
    room: Pieces,
    room_len: usize,
    frame: Option<Frame>,
    /// Of [`MAX_FRAME`] bytes, or empty if it was never needed.
    buffer: Vec<u8>,
}

impl Receiver {
    pub fn new(limits: &Limits) -> Self {
        Self {
            rate: limited(limits),
            deadline: None,
            waiting: true,
            held: VecDeque::new(),
            room: Pieces::default(),
            room_len: 0,
            frame: None,
            buffer: Vec::new(),
        }
    }

    pub fn wire_is_ready(&mut self) {
        self.waiting = true;
    }

    /// Give up the held chains, with a frame that is in them.
    pub fn reset(&mut self) {
        self.deadline = None;
        self.waiting = true;
        self.held.clear();
        self.room.clear();
        self.room_len = 0;
        self.frame = self.frame.filter(|frame| frame.buffered);
    }

    /// Receive what the wire has, as far as the guest's buffers and the rate allow. The inner error
    /// says that the wire has closed.
    pub fn turn(
        &mut self,
        driver: &mut Driver,
        mergeable: bool,
        wire: &mut dyn Wire,
        clock: &dyn Clock,
    ) -> Result<io::Result<()>, DeviceError> {
        self.deadline = None;
        let Some(queue) = driver.queue(RX) else {
            return Ok(Ok(()));
        };
        for _ in 0..FRAMES_PER_TURN {
            let mut frame = match self.frame {
                Some(frame) => frame,
                None => match self.read(queue, mergeable, wire)? {
                    Ok(frame) => frame,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Ok(())),
                    Err(error) => return Ok(Err(error)),
                },
            };
            self.frame = Some(frame);
            let bytes = frame.len.saturating_sub(HEADER) as u64;
            if !frame.paid
                && let Some(deadline) = pay(&mut self.rate, bytes, clock)
            {
                self.deadline = Some(deadline);
                return Ok(Ok(()));
            }
            frame.paid = true;
            self.frame = Some(frame);
            if !self.place(frame, queue, mergeable)? {
                return Ok(Ok(()));
            }
            self.frame = None;
        }
        queue.process_again();
        Ok(Ok(()))
    }

    /// Read the next frame of the wire to where there is room. `WouldBlock`: later.
    fn read(
        &mut self,
        queue: &mut VirtQueue,
        mergeable: bool,
        wire: &mut dyn Wire,
    ) -> Result<io::Result<Frame>, DeviceError> {
        let later = Ok(Err(ErrorKind::WouldBlock.into()));
        // Also when the wire has nothing, so that a bad chain is found when it comes.
        self.refill(queue, mergeable, MAX_FRAME)?;
        if !self.waiting {
            return later;
        }
        let buffered = self.room_len < MAX_FRAME;
        // Nothing is read for which the guest has no buffer; the next call takes the chains that this
        // one may not.
        if self.held.is_empty() {
            return later;
        }
        if buffered && queue.is_spent() {
            queue.process_again();
            return later;
        }
        let read = if buffered {
            self.buffer.resize(MAX_FRAME, 0);
            wire.receive_buffered(&mut self.buffer)
        } else {
            wire.receive(&self.room)
        };
        self.waiting = !matches!(&read, Err(error) if error.kind() == ErrorKind::WouldBlock);
        Ok(read.map(|len| Frame {
            len: len.min(MAX_FRAME),
            buffered,
            paid: false,
        }))
    }

    /// Give `frame` to the guest; false if it has to wait for buffers. A frame that can never be
    /// placed is dropped.
    fn place(
        &mut self,
        frame: Frame,
        queue: &mut VirtQueue,
        mergeable: bool,
    ) -> Result<bool, DeviceError> {
        if frame.len < HEADER {
            return Ok(true);
        }
        if frame.buffered {
            self.refill(queue, mergeable, frame.len)?;
            if self.room_len < frame.len {
                // More chains would help, unless buffers are not merged or all are held.
                let all = self.held.len() >= usize::from(queue.size());
                return Ok(all || !mergeable && !self.held.is_empty());
            }
            self.room
                .fill(self.buffer.get(..frame.len).unwrap_or_default());
        }
        // Mostly a frame is in one chain.
        if self.held.front().is_some_and(|held| held.len >= frame.len)
            && let Some(held) = self.held.pop_front()
        {
            self.room.drop_first(held.pieces);
            self.room_len -= held.len;
            queue.write(&held.chain, NUM_BUFFERS, &1u16.to_le_bytes())?;
            queue.finish(held.chain, frame.len as u32)?;
            return Ok(true);
        }
        let mut taken = VecDeque::new();
        let mut left = frame.len;
        while left > 0
            && let Some(held) = self.held.pop_front()
        {
            let written = left.min(held.len);
            left -= written;
            self.room.drop_first(held.pieces);
            self.room_len -= held.len;
            taken.push_back((held.chain, written as u32));
        }
        if let Some((first, _)) = taken.front() {
            let count = taken.len() as u16;
            queue.write(first, NUM_BUFFERS, &count.to_le_bytes())?;
        }
        queue.finish_together(taken.into_iter())?;
        Ok(true)
    }

    /// Take chains until there is room for `wanted` bytes; one, if they are not merged.
    fn refill(
        &mut self,
        queue: &mut VirtQueue,
        mergeable: bool,
        wanted: usize,
    ) -> Result<(), DeviceError> {
        while self.room_len < wanted && (mergeable || self.held.is_empty()) {
            let Some(chain) = queue.pop()? else { break };
            self.hold(queue, chain)?;
        }
        Ok(())
    }

    /// Hold a chain for what the wire brings.
    fn hold(&mut self, queue: &VirtQueue, chain: Chain) -> Result<(), DeviceError> {
        let len = chain.writable_len();
        if !chain.readable().is_empty() {
            return Err(queue.refuse(&chain, "is to be read, in a queue to be written"));
        }
        if len < HEADER as u64 {
            return Err(queue.refuse(&chain, "has no room for a header"));
        }
        if self.held.len() >= usize::from(queue.size()) {
            return Err(queue.refuse(&chain, "is one more than the queue holds"));
        }
        let before = self.room.count();
        let mapped = self.room.extend(queue.memory(), chain.writable());
        mapped.map_err(|_| queue.refuse(&chain, "points outside of memory"))?;
        // Room beyond a frame's is never used; this keeps the sum small.
        let len = len.min(MAX_FRAME as u64) as usize;
        self.room_len += len;
        self.held.push_back(Held {
            chain,
            len,
            pieces: self.room.count() - before,
        });
        Ok(())
    }

    /// The heads of the held chains.
    pub fn heads(&self) -> impl Iterator<Item = u16> {
        self.held.iter().map(|held| held.chain.head())
    }

    /// Hold the chains with these heads, which the saved receiver held.
    pub fn take_back(&mut self, queue: &mut VirtQueue, heads: &[u16]) -> Result<(), DeviceError> {
        for &head in heads {
            let chain = queue.reclaim(head)?;
            self.hold(queue, chain)?;
        }
        Ok(())
    }
}
