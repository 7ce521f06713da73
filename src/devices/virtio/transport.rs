//! How a guest reaches a virtio device.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use super::core::Core;
use crate::devices::bus::BusDevice;

/// A device's core, shared by its transport, by the thread that processes its queues and by the
/// host's side of the device.
pub type SharedCore = Arc<Mutex<Core>>;

/// Where a driver writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An offset in the transport's range on the bus.
    Register(u64),
    /// The I/O port of its slot.
    Port,
}

/// Takes writes that a driver makes often, so that they need not reach the transport.
pub trait Shortcut: Send + Sync {
    /// From now on a write of `value` (32 bits) at `place` raises `event`, or has no effect, instead
    /// of reaching the transport.
    ///
    /// # Errors
    /// The host refuses.
    fn take(&self, place: Place, value: u32, event: Option<BorrowedFd<'_>>) -> io::Result<()>;
}

/// What makes a [`Core`] visible to the guest, on the bus and by interrupts. The machine's slots
/// hold transports and know no more than this of them.
///
/// [`super::mmio::MmioTransport`] is one. virtio-pci (virtio 1.2, 4.1) would be another:
/// - as [`BusDevice`], the accesses to its BAR: the common, ISR, notification and device-specific
///   configuration structures, each access translated to a method of [`Core`] (selectors stay in
///   the transport), and the MSI-X table; `save` and `load` hold those and [`Core::save`];
/// - as [`super::core::Interrupts`], given to [`Core::new`]: the MSI-X vector of each [`Cause`],
///   or the ISR bits and INTx without MSI-X;
/// - its PCI function's configuration space (capabilities that point into the BAR), for a host
///   bridge, which is not the transport's matter;
/// - [`Transport::hide`]: the function reads as absent (all ones).
///
/// Lock order: the transport's, then the core's.
///
/// [`Cause`]: super::core::Cause
pub trait Transport: BusDevice {
    /// The core behind it.
    fn core(&self) -> &SharedCore;

    /// The register in which the driver writes the index of a queue (32 bits) to notify it.
    fn notify_register(&self) -> Place;

    /// The driver has notified queue `queue` at `place`, by an access that reached hull.
    fn notified(&mut self, place: Place, queue: u32);

    /// Show the guest no device until [`Transport::reveal`]; one of them is called before the guest
    /// runs.
    fn hide(&mut self);

    /// End [`Transport::hide`]: a driver that probes from now on finds the device.
    fn reveal(&mut self);
}
