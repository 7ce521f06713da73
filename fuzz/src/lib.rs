//! Fuzz targets: the virtio transport and each device behind it, and what reads files and messages.
//!
//! An [`Input`] is a sequence of steps of one guest and its device: what the guest writes to registers
//! and memory, correct or not ([`step`]), and what the host does meanwhile. [`play`] executes it and
//! checks more than that the device does not panic:
//!
//! * As long as the guest follows the rules, the device writes only to used rings and to the buffers
//!   given to it, and returns each chain at most once ([`ledger`]).
//! * A device that needs a reset does nothing.
//! * It reports at most 16 lines.
//! * The driver is interrupted for chains that come back, where it wants that.
//! * Of the chains that it was notified of, it keeps no more than it has a reason for.
//! * One that is saved continues as another, in the same state; damage to that is refused, or is one
//!   more thing that the guest has done.
//! * After a reset, a correct driver is served.
//!
//! A [`Subject`] is one device: its configuration, its requests, and the actions of its host.
//!
//! The other targets are parsers and formats: a module has its `Input`, which is mostly correct, and a
//! function `check` that reads it and checks what came out. docs/development.md has a table of all.

#![forbid(unsafe_code)]

pub mod agent;
pub mod balloon;
pub mod block;
pub mod cmdline;
pub mod config;
pub mod console;
pub mod control;
pub mod egress;
pub mod elf;
pub mod flags;
pub mod frames;
pub mod fs;
pub mod fuse;
pub mod gdb;
pub mod images;
pub mod initrd;
pub mod kernel;
pub mod ledger;
pub mod legacy;
pub mod messages;
pub mod net;
pub mod packed;
pub mod patch;
pub mod play;
pub mod qcow2;
pub mod records;
pub mod rng;
pub mod snapshot;
pub mod sockets;
pub mod step;
pub mod symbols;
pub mod tables;
pub mod transport;
pub mod vsock;
pub mod walk;

use std::fmt::Debug;
use std::path::PathBuf;

use arbitrary::Arbitrary;
// `gdb` has files of hull, which find here what they use.
pub use gdb::machine::{kvm, vmm};
use hull::devices::virtio::Device;
use hull::devices::virtio::testing::Guest;
pub use hull::{boot, memory, sync};
pub use play::play;
use step::{Start, Step};

/// A request that a guest sends to a device.
#[derive(Debug, Default)]
pub struct Sent {
    /// Index of the queue.
    pub queue: usize,
    /// The bytes that the device reads.
    pub bytes: Vec<u8>,
    /// Bytes after them that the device may write.
    pub room: u32,
    /// How often the bytes are repeated behind themselves, in the same place of memory.
    pub again: u16,
}

/// A device under test, with its host.
pub trait Subject: Sized {
    /// The configuration of the device.
    type Setup: for<'a> Arbitrary<'a> + Debug;
    /// A request of the device's driver, correct or not.
    type Message: for<'a> Arbitrary<'a> + Debug;
    /// An action of the host on the device.
    type Call: for<'a> Arbitrary<'a> + Debug;
    /// The model of the device.
    type Device: Device;

    /// A new device, and the host's side.
    fn new(setup: Self::Setup) -> (Guest, Self);

    /// The bytes of a request.
    fn encode(&self, message: &Self::Message) -> Sent;

    /// Execute an action of the host.
    fn call(&mut self, guest: &mut Guest, call: &Self::Call);

    /// Another device on the same host, to continue from a state: the old one is about to end.
    fn renew(&mut self) -> Self::Device;

    /// The device of [`Subject::renew`] is in its place, and has not been called since it was loaded.
    fn moved(&mut self, _guest: &mut Guest) {}

    /// Whether the device, which is live, cannot be saved now.
    fn stays(&self) -> bool {
        false
    }

    /// Whether another device is in the state of the first one after it was loaded.
    fn continues(&self) -> bool {
        true
    }

    /// Most chains of a queue that the device keeps once it has come to rest; `None` for any number.
    fn kept(&self, _guest: &Guest, _queue: usize) -> Option<usize> {
        None
    }

    /// The device is about to be called.
    fn turn(&mut self) {}

    /// A correct driver is about to start: reset the host's side as well.
    fn mend(&mut self) {}

    /// Panic if the device holds more than it may.
    fn check(&mut self, _guest: &mut Guest) {}

    /// Panic unless a correct request is served: the driver has just started, with all features.
    fn serve(&mut self, guest: &mut Guest);

    /// The driver has reset the device for the last time.
    fn end(&mut self, _guest: &mut Guest) {}
}

/// The steps for one device.
#[derive(Arbitrary, Debug)]
pub struct Story<U, M, C> {
    setup: U,
    /// Whether to begin with a correct start.
    start: Option<Start>,
    steps: Vec<Step<M, C>>,
}

/// The steps for the device of the subject `S`.
pub type Input<S> = Story<<S as Subject>::Setup, <S as Subject>::Message, <S as Subject>::Call>;

/// A new folder for the files of a target, which stay as long as the process runs.
fn folder(name: &str) -> PathBuf {
    let name = format!("hull-fuzz-{name}-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir(&folder).unwrap();
    folder
}
