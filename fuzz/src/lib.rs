//! Fuzz targets for the virtio transport and each device behind it.
//!
//! An [`Input`] is a story of one guest and its device: what the guest writes to registers and
//! memory, decent or not ([`step`]), and what the host does meanwhile. [`play`] plays it and holds
//! the device to more than not to panic:
//!
//! * As long as the guest plays by the rules, the device writes nowhere but into used rings and the
//!   buffers that were lent to it, and gives each chain back at most once ([`ledger`]).
//! * A device that needs a reset does nothing at all.
//! * It says no more than 16 lines, whatever happens.
//! * After a reset, a decent driver is served.
//!
//! A [`Subject`] is one device: how it is made, what its requests look like, what its host does.

#![forbid(unsafe_code)]

pub mod balloon;
pub mod block;
pub mod console;
pub mod fs;
pub mod ledger;
pub mod net;
pub mod play;
pub mod rng;
pub mod step;
pub mod transport;
pub mod vsock;

use std::fmt::Debug;

use arbitrary::Arbitrary;
use hull::devices::virtio::testing::Guest;
pub use play::play;
use step::{Start, Step};

/// What a guest sends to a device.
#[derive(Debug, Default)]
pub struct Sent {
    /// To this queue.
    pub queue: usize,
    /// For the device to read.
    pub bytes: Vec<u8>,
    /// Bytes lent behind them, for the device to write.
    pub room: u32,
}

/// A device that is fuzzed, as its host sees it.
pub trait Subject: Sized {
    /// How the device is made.
    type Setup: for<'a> Arbitrary<'a> + Debug;
    /// A request as a driver of the device makes them, and as it should not.
    type Message: for<'a> Arbitrary<'a> + Debug;
    /// What the host does with the device at any time.
    type Call: for<'a> Arbitrary<'a> + Debug;

    /// A guest that has done nothing yet, and the host's side.
    fn new(setup: Self::Setup) -> (Guest, Self);

    /// The bytes of a message.
    fn encode(&self, message: &Self::Message) -> Sent;

    /// Do what the host does.
    fn call(&mut self, guest: &mut Guest, call: &Self::Call);

    /// A decent driver is about to start: the host, too, is in order again.
    fn mend(&mut self) {}

    /// Panic if the device holds more than it may.
    fn check(&mut self, _guest: &mut Guest) {}

    /// Panic unless a decent request is served: the driver has just started, with all features.
    fn serve(&mut self, guest: &mut Guest);
}

/// What happens to a device.
#[derive(Arbitrary, Debug)]
pub struct Story<U, M, C> {
    setup: U,
    /// Begin with a decent start.
    start: Option<Start>,
    steps: Vec<Step<M, C>>,
}

/// What happens to the device of the subject `S`.
pub type Input<S> = Story<<S as Subject>::Setup, <S as Subject>::Message, <S as Subject>::Call>;
