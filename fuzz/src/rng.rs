//! The entropy device, whose source may fail and whose clock the host advances.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arbitrary::Arbitrary;
use hull::devices::virtio::rng::Rng as Device;
use hull::devices::virtio::testing::Guest;

use crate::{Sent, Subject};

/// Bytes of the longest answer, and those that all may have in a second and after a pause.
const MAX_ANSWER: usize = 4096;
const PER_SECOND: u64 = 1 << 20;

#[derive(Default)]
struct Host {
    fails: AtomicBool,
    /// In milliseconds.
    now: AtomicU64,
    /// Bytes that were given out, and when the first device began to do so.
    given: AtomicU64,
    began: AtomicU64,
}

/// The state of the host's side.
pub struct Rng {
    host: Arc<Host>,
    /// At the end the driver asks for bytes of this number, as fast as it can.
    flood: Option<u16>,
}

/// A request.
#[derive(Arbitrary, Debug)]
pub struct Message {
    /// The device has reported something.
    bytes: Option<u8>,
    room: u16,
}

/// An action of the host.
#[derive(Arbitrary, Debug)]
pub enum Call {
    /// The source fails, or works again.
    Fail(bool),
    /// The clock advances by this many milliseconds.
    Pass(u16),
}

impl Subject for Rng {
    type Setup = Option<u16>;
    type Message = Message;
    type Call = Call;
    type Device = Device;

    fn new(flood: Option<u16>) -> (Guest, Self) {
        let host = Arc::default();
        let mut rng = Self { host, flood };
        (Guest::new(rng.renew()), rng)
    }

    /// Its bucket is full again.
    fn renew(&mut self) -> Device {
        let (source, clock) = (self.host.clone(), self.host.clone());
        let now = source.now.load(Ordering::Relaxed);
        source.began.store(now, Ordering::Relaxed);
        source.given.store(0, Ordering::Relaxed);
        let source = move |bytes: &mut [u8]| {
            assert!(bytes.len() <= MAX_ANSWER);
            bytes.fill(0xaa);
            let given = source
                .given
                .fetch_add(bytes.len() as u64, Ordering::Relaxed);
            let passed = source.now.load(Ordering::Relaxed) - source.began.load(Ordering::Relaxed);
            let most = PER_SECOND + passed * PER_SECOND / 1000;
            assert!(given + bytes.len() as u64 <= most, "faster than it may");
            !source.fails.load(Ordering::Relaxed)
        };
        let clock = move || Duration::from_millis(clock.now.load(Ordering::Relaxed));
        Device::new(Box::new(source), Box::new(clock))
    }

    fn encode(&self, message: &Message) -> Sent {
        Sent {
            queue: 0,
            bytes: vec![0x55; message.bytes.unwrap_or(0).into()],
            room: message.room.into(),
            again: 0,
        }
    }

    fn call(&mut self, _guest: &mut Guest, call: &Call) {
        match call {
            Call::Fail(fails) => self.host.fails.store(*fails, Ordering::Relaxed),
            Call::Pass(time) => {
                self.host.now.fetch_add((*time).into(), Ordering::Relaxed);
            }
        }
    }

    fn mend(&mut self) {
        self.host.fails.store(false, Ordering::Relaxed);
        self.host.now.fetch_add(10_000, Ordering::Relaxed);
    }

    fn serve(&mut self, guest: &mut Guest) {
        guest.lend(0, 16);
        guest.notify(0);
        assert_eq!(guest.received(0), [[0xaa; 16]]);
        if let Some(len) = self.flood.filter(|len| *len > 0) {
            let most = usize::from(len).min(MAX_ANSWER) as u64;
            let before = self.host.given.load(Ordering::Relaxed);
            let mut answers = 0;
            loop {
                guest.lend(0, len.into());
                guest.notify(0);
                match guest.returned(0).len() {
                    0 => break,
                    _ if answers == 300 => return,
                    _ => answers += 1,
                }
            }
            // All that it may give, and no more.
            let given = self.host.given.load(Ordering::Relaxed) - before;
            assert_eq!(given, answers * most);
            assert!(given + most > PER_SECOND - 16, "slower than it may");
        }
    }
}
