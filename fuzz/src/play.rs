//! Executes the steps of an input.

use hull::devices::Reporter;
use hull::devices::bus::BusDevice;
use hull::devices::virtio::mmio::MmioTransport;
use hull::devices::virtio::testing::*;
use hull::devices::virtio::transport::Transport;
use hull::devices::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, QueueCounters};

use crate::ledger::Ledger;
use crate::patch::Patches;
use crate::step::{Rings, Start, Step};
use crate::{Input, Sent, Subject};

/// Most steps of one input.
const MAX_STEPS: usize = 300;
/// Iterations of the event loop after a notification. A guest whose rings overlap keeps a device busy
/// for ever, a little in each iteration.
const MAX_TURNS: usize = 32;
/// Most lines that a device may report (`hull::devices::Reporter`).
const MAX_LINES: usize = 16;

/// Bits of Status with which a device must not do anything.
const DEAD: u32 = NEEDS_RESET | FAILED;

/// Execute `story`, and panic if the device breaks a rule.
pub fn play<S: Subject>(story: Input<S>) {
    let (guest, subject) = S::new(story.setup);
    let queues = guest.core().queue_events().len();
    let mut play = Play {
        guest,
        subject,
        ledger: Ledger::new(queues),
        queues,
        lines: 0,
        devices: 1,
        rests: true,
        event_idx: false,
    };
    if let Some(start) = &story.start {
        play.start(start);
    }
    for step in story.steps.iter().take(MAX_STEPS) {
        let before = play.used();
        play.guest.interrupt.take();
        play.step(step);
        play.interrupts(step, &before);
        play.ledger.settle(&mut play.guest);
        play.subject.check(&mut play.guest);
        play.keeps_little();
    }
    play.end();
}

struct Play<S> {
    guest: Guest,
    subject: S,
    ledger: Ledger,
    queues: usize,
    lines: usize,
    /// Devices so far, each of which continued from the one before it.
    devices: usize,
    /// The device has come to rest: no queue asks for a turn.
    rests: bool,
    /// The driver has accepted VIRTIO_F_EVENT_IDX.
    event_idx: bool,
}

impl<S: Subject> Play<S> {
    fn step(&mut self, step: &Step<S::Message, S::Call>) {
        match step {
            Step::Send {
                message,
                pieces,
                indirect,
                notify,
            } => {
                let sent = self.subject.encode(message);
                let queue = sent.queue % self.queues;
                self.send(sent, pieces, *indirect);
                if *notify {
                    self.notify(queue);
                }
            }
            Step::Chain {
                queue,
                pieces,
                indirect,
            } => self.chain(self.queue(*queue), pieces, *indirect),
            Step::Suppress { queue, flag, event } => {
                let queue = self.queue(*queue);
                let (size, _) = self.guest.place(queue);
                if (1..=MAX_SIZE).contains(&size) {
                    self.ledger.write(&mut self.guest, queue, |guest| {
                        guest.poke(avail(queue), (*flag).into());
                        guest.set_used_event(queue, *event);
                    });
                }
            }
            Step::Notify(queue) => self.notify(self.queue(*queue)),
            Step::Process(queue) => {
                self.subject.turn();
                self.rests = false;
                self.quiet(|play| play.guest.core().process((*queue).into()));
            }
            Step::Alarm => {
                self.subject.turn();
                self.rests = false;
                self.quiet(|play| play.guest.core().alarm());
            }
            Step::Carry(damage) => self.carry(damage),
            Step::Call(call) => self.quiet(|play| {
                play.subject.turn();
                play.subject.call(&mut play.guest, call);
                play.settle();
            }),
            Step::Start(start) => self.start(start),
            Step::Reset => self.reset(),
            Step::Read { offset, len } => {
                let mut data = [0xff; 16];
                let data = &mut data[..usize::from(len % 17)];
                self.guest.transport.read(offset.value(), data);
            }
            Step::Write { offset, len, value } => {
                let data = value.to_le_bytes();
                self.write(offset.value(), &data[..usize::from(len % 9)]);
            }
            Step::Register { offset, value } => {
                self.write(offset.value(), &u32::from(*value).to_le_bytes());
            }
            hostile => {
                self.ledger.give_up(&mut self.guest);
                self.break_rules(hostile);
            }
        }
    }

    /// The indices of all used rings.
    fn used(&self) -> Vec<u16> {
        (0..self.queues)
            .map(|queue| self.guest.peek(used(queue) + 2))
            .collect()
    }

    /// Panic if `step` returned chains for which the driver wants an interrupt, and there was none
    /// (virtio 1.2, 2.7.7).
    fn interrupts(&mut self, step: &Step<S::Message, S::Call>, before: &[u16]) {
        let begins = matches!(step, Step::Start(_) | Step::Reset | Step::Carry(_));
        if begins || !self.ledger.is_decent() {
            return;
        }
        let wanted = |(queue, (old, new)): (usize, (&u16, u16))| {
            if !self.event_idx {
                return *old != new && self.guest.peek(avail(queue)) & 1 == 0;
            }
            let (size, _) = self.guest.place(queue);
            let event = self.guest.peek(avail(queue) + 4 + 2 * u64::from(size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(*old)
        };
        if before.iter().zip(self.used()).enumerate().any(wanted) {
            assert!(self.guest.interrupt.take() > 0, "no interrupt");
            assert_eq!(self.guest.read(reg::INTERRUPT_STATUS) & 1, 1);
        }
    }

    /// The steps that a correct driver does not take.
    fn break_rules(&mut self, step: &Step<S::Message, S::Call>) {
        let memory = &self.guest.memory;
        match step {
            Step::Restart {
                features,
                queues,
                status,
            } => self.restart(*features, queues, *status),
            Step::Describe { queue, index, what } => {
                let table = table(self.queue(*queue));
                what.descriptor().write(memory, table, (*index).into());
            }
            Step::Table { at, index, what } => {
                let table = at.writable(16 * 256);
                what.descriptor().write(memory, table, (*index).into());
            }
            Step::Indirect { queue, at, entries } => {
                let queue = self.queue(*queue);
                let table = BUFFERS + 0x100 * u64::from(*at);
                for (index, what) in (0..256).zip(entries) {
                    what.descriptor().write(memory, table, index);
                }
                let (size, next) = self.guest.place(queue);
                let head = next.checked_rem(size).unwrap_or(0) % 256;
                let len = 16 * entries.len() as u32;
                self.guest.describe(queue, head, (table, len, INDIRECT, 0));
                self.available(queue, head);
                self.notify(queue);
            }
            Step::Available { queue, head } => {
                self.available(self.queue(*queue), head.value() as u16);
            }
            Step::Jump { queue, index } => self.guest.poke(avail(self.queue(*queue)) + 2, *index),
            Step::Poke { at, value } => self.guest.poke(at.writable(2), *value),
            _ => {}
        }
    }

    fn queue(&self, queue: u8) -> usize {
        usize::from(queue) % self.queues
    }

    fn send(&mut self, sent: Sent, pieces: &[u8; 2], indirect: bool) {
        let Some(mut addr) = self.ledger.place(&mut self.guest, &sent.bytes) else {
            return;
        };
        let mut chain = Vec::new();
        let mut left = sent.bytes.len() as u32;
        let all = (addr, left, false);
        for len in pieces.map(u32::from).into_iter().chain([u32::MAX]) {
            let len = len.min(left);
            if len > 0 {
                chain.push((addr, len, false));
                addr += u64::from(len);
                left -= len;
            }
        }
        chain.extend((0..sent.again).filter(|_| all.1 > 0).map(|_| all));
        let mut left = sent.room;
        for len in pieces.map(u32::from).into_iter().rev().chain([u32::MAX]) {
            let len = len.min(left);
            if len > 0 && self.ledger.fits(&mut self.guest, len.into()) {
                chain.push((self.guest.buffer(len), len, true));
                left -= len;
            }
        }
        let queue = sent.queue % self.queues;
        self.ledger.offer(&mut self.guest, queue, &chain, indirect);
    }

    fn chain(&mut self, queue: usize, pieces: &[(u16, bool)], indirect: bool) {
        let mut chain = Vec::new();
        for &(len, write) in pieces.iter().take(MAX_SIZE.into()) {
            if !self.ledger.fits(&mut self.guest, len.into()) {
                return;
            }
            let addr = match write {
                true => self.guest.buffer(len.into()),
                false => {
                    let bytes = vec![0x55; len.into()];
                    let Some(addr) = self.ledger.place(&mut self.guest, &bytes) else {
                        return;
                    };
                    addr
                }
            };
            chain.push((addr, len.into(), write));
        }
        self.ledger.offer(&mut self.guest, queue, &chain, indirect);
    }

    fn available(&mut self, queue: usize, head: u16) {
        if self.guest.place(queue).0 > 0 {
            self.guest.make_available(queue, head);
        }
    }

    fn notify(&mut self, queue: usize) {
        self.guest.write(reg::QUEUE_NOTIFY, queue as u32);
        self.ledger.notified(queue);
        self.quiet(Self::settle);
    }

    /// Panic if the device keeps chains for which it has no reason.
    fn keeps_little(&mut self) {
        if !self.rests || self.guest.status() != LIVE {
            return;
        }
        for queue in 0..self.queues {
            if let (Some(lent), Some(most)) = (
                self.ledger.lent(queue),
                self.subject.kept(&self.guest, queue),
            ) {
                assert!(lent <= most, "{lent} chains of queue {queue} are kept");
            }
        }
    }

    /// Save the machine, and continue with another device, from the state with `damage`.
    fn carry(&mut self, damage: &Patches) {
        let status = self.guest.status();
        let saved = self.guest.transport.save();
        let stays = status & (DEAD | DRIVER_OK) == DRIVER_OK && self.subject.stays();
        assert_eq!(saved.is_err(), stays, "{saved:?}");
        let Ok(whole) = saved else {
            return;
        };
        let mut state = whole.clone();
        damage.apply(&mut state);
        if state != whole {
            self.ledger.give_up(&mut self.guest);
        }
        let device = Box::new(self.subject.renew());
        let (memory, interrupt) = (self.guest.memory.clone(), self.guest.interrupt.clone());
        let reporter = Reporter::new(self.guest.events.clone(), "device");
        let window = MmioTransport::new(memory, device, interrupt, reporter, shortcuts());
        let mut window = window.unwrap();
        window.reveal();
        let loaded = window.load(&state);
        let again = window.save();
        self.guest.transport = window;
        self.devices += 1;
        self.subject.moved(&mut self.guest);
        match loaded {
            Err(error) => {
                assert!(!self.ledger.is_decent(), "{error}");
                assert_eq!(self.guest.status(), 0, "a part of it was taken");
            }
            Ok(()) if self.ledger.is_decent() => {
                assert_eq!(self.guest.status(), status);
                if self.subject.continues() {
                    assert!(again.is_ok_and(|again| again == whole), "another state");
                }
            }
            Ok(()) => {}
        }
        (0..self.queues).for_each(|queue| self.ledger.notified(queue));
        self.quiet(Self::settle);
    }

    /// One iteration of the event loop.
    fn settle(&mut self) {
        self.rests = false;
        for _ in 0..MAX_TURNS {
            let queue = {
                let core = self.guest.core();
                let mut events = core.queue_events();
                events.position(|event| event.lower())
            };
            match queue {
                Some(queue) => {
                    self.subject.turn();
                    self.guest.core().process(queue);
                }
                None => {
                    self.rests = true;
                    return;
                }
            }
        }
    }

    /// Execute `action`, which must have no effect on a device that must not do anything.
    fn quiet(&mut self, act: impl FnOnce(&mut Self)) {
        let status = self.guest.status();
        let before = self.counters();
        act(self);
        if status & DEAD != 0 || status & DRIVER_OK == 0 {
            assert_eq!(self.counters(), before, "a failed device did something");
            assert_eq!(self.guest.status(), status);
        }
    }

    fn counters(&self) -> Vec<QueueCounters> {
        self.guest.core().counters().collect()
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let decent = offset >= reg::CONFIG
            || [
                reg::QUEUE_NOTIFY,
                reg::INTERRUPT_ACK,
                reg::QUEUE_SEL,
                reg::DEVICE_FEATURES_SEL,
                reg::DRIVER_FEATURES_SEL,
            ]
            .contains(&offset);
        if !decent {
            self.ledger.give_up(&mut self.guest);
        }
        self.guest.transport.write(offset, data);
    }

    fn reset(&mut self) {
        self.ledger.close(&mut self.guest);
        assert_eq!(self.guest.set_status(0), 0);
        self.lines += self.guest.events.take().len();
    }

    /// A start from which on the ledger is kept.
    fn start(&mut self, start: &Start) {
        self.reset();
        self.ledger.open(&mut self.guest);
        self.bring_up(start);
        self.ledger.opened(&self.guest);
        self.settle();
    }

    fn bring_up(&mut self, start: &Start) {
        self.subject.mend();
        let offered = self.offered() & !(F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC);
        let mut features = offered;
        let mut without = start.without;
        for bit in (0..64).map(|bit| 1 << bit).filter(|bit| offered & bit != 0) {
            if without & 1 != 0 {
                features &= !bit;
            }
            without >>= 1;
        }
        for (wanted, bit) in start.ring.iter().zip([F_EVENT_IDX, F_INDIRECT_DESC]) {
            features |= if *wanted { bit } else { 0 };
        }
        self.event_idx = start.ring[0];
        let most = (0..self.queues).map(|queue| {
            self.guest.write(reg::QUEUE_SEL, queue as u32);
            self.guest.read(reg::QUEUE_NUM_MAX) as u16
        });
        let most = most.min().unwrap_or(1).min(MAX_SIZE);
        let size = (1 << (start.size % 8)).min(most);
        self.guest.start(features, size);
    }

    fn offered(&mut self) -> u64 {
        let words = [0, 1].map(|sel| {
            self.guest.write(reg::DEVICE_FEATURES_SEL, sel);
            u64::from(self.guest.read(reg::DEVICE_FEATURES))
        });
        words[0] | words[1] << 32
    }

    /// A start with any features, any of the queues, their parts anywhere.
    fn restart(&mut self, features: u64, queues: &[Rings], status: Option<u8>) {
        self.reset();
        let offered = self.offered();
        self.guest.set_status(ACKNOWLEDGE | DRIVER);
        self.guest.accept(offered ^ features);
        self.guest.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        for (queue, rings) in (0..self.queues).zip(queues) {
            let areas = rings.areas.as_ref();
            let areas = areas.map(|areas| areas.each_ref().map(|area| area.value()));
            let areas = areas.unwrap_or([table(queue), avail(queue), used(queue)]);
            self.guest.set_up_at(queue, rings.size.value(), areas);
        }
        self.guest.set_status(status.map_or(LIVE, u32::from));
        self.quiet(Self::settle);
    }

    /// At the end a correct driver starts, and must be served.
    fn end(&mut self) {
        self.reset();
        self.guest.next_buffer = BUFFERS;
        self.bring_up(&Start {
            without: 0,
            ring: [true; 2],
            size: 4,
        });
        self.settle();
        self.subject.serve(&mut self.guest);
        assert_eq!(self.guest.status(), LIVE);
        self.reset();
        self.subject.end(&mut self.guest);
        // The end of a device is one more: how many lines it held back.
        let most = (MAX_LINES + 1) * self.devices;
        assert!(self.lines <= most, "{} lines", self.lines);
    }
}
