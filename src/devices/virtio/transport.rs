//! How a guest reaches a virtio device.

use std::sync::{Arc, Mutex};

use super::core::Core;
use crate::devices::bus::BusDevice;

/// A device's core, shared by its transport, by the thread that processes its queues and by the
/// host's side of the device.
pub type SharedCore = Arc<Mutex<Core>>;

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

    /// Where a driver's write notifies queue `queue`: an offset in the transport's range on the
    /// bus, and the 32-bit value written there. The machine attaches the queue's eventfd to it.
    fn notify_address(&self, queue: u32) -> (u64, u32);

    /// Show the guest no device until [`Transport::reveal`]; called before the guest runs.
    fn hide(&mut self);

    /// End [`Transport::hide`]: a driver that probes from now on finds the device.
    fn reveal(&mut self);
}
