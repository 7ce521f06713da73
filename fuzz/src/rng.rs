//! The entropy device, whose source may fail and whose clock the host advances.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arbitrary::Arbitrary;
use hull::devices::virtio::rng::Rng as Device;
use hull::devices::virtio::testing::Guest;

use crate::{Sent, Subject};

#[derive(Default)]
struct Host {
    fails: AtomicBool,
    now: AtomicU64,
}

/// The state of the host's side.
pub struct Rng(Arc<Host>);

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
    type Setup = ();
    type Message = Message;
    type Call = Call;

    fn new((): ()) -> (Guest, Self) {
        let host = Arc::new(Host::default());
        let (source, clock) = (host.clone(), host.clone());
        let source = move |bytes: &mut [u8]| {
            bytes.fill(0xaa);
            !source.fails.load(Ordering::Relaxed)
        };
        let clock = move || Duration::from_millis(clock.now.load(Ordering::Relaxed));
        let device = Device::new(Box::new(source), Box::new(clock));
        (Guest::new(device), Self(host))
    }

    fn encode(&self, message: &Message) -> Sent {
        Sent {
            queue: 0,
            bytes: vec![0x55; message.bytes.unwrap_or(0).into()],
            room: message.room.into(),
        }
    }

    fn call(&mut self, _guest: &mut Guest, call: &Call) {
        match call {
            Call::Fail(fails) => self.0.fails.store(*fails, Ordering::Relaxed),
            Call::Pass(time) => {
                self.0.now.fetch_add((*time).into(), Ordering::Relaxed);
            }
        }
    }

    fn mend(&mut self) {
        self.0.fails.store(false, Ordering::Relaxed);
        self.0.now.fetch_add(10_000, Ordering::Relaxed);
    }

    fn serve(&mut self, guest: &mut Guest) {
        guest.lend(0, 16);
        guest.notify(0);
        assert_eq!(guest.received(0), [[0xaa; 16]]);
    }
}
