//! Virtio devices (virtio 1.2, modern only), each behind a transport: virtio-mmio.
//!
//! A [`Device`] is the model: [`console`], for one. [`core::Core`] drives it: features, status,
//! queues ([`queue::VirtQueue`]), configuration, saving. A [`transport::Transport`] makes a core
//! visible to the guest: [`mmio`] by registers in a window. [`Driver`] is the guest's side as a
//! device sees it.
//!
//! ```text
//!  vCPU thread --- registers --> Transport -> Core --- DRIVER_OK --> Device::activate
//!  QueueNotify --- ioeventfd --> event loop -> Core::process ------> Device::process
//!  host input ---- epoll ------> event loop -> Core::with_device --> the device's own method
//!  interrupt <---- Interrupts <- Core, with the causes of one call: Config, Queue(n)
//! ```

pub mod balloon;
pub mod block;
pub mod console;
pub mod core;
pub mod device;
pub mod error;
pub mod fs;
pub mod mmio;
pub mod names;
pub mod net;
pub mod queue;
pub mod requests;
pub mod rng;
#[cfg(any(test, fuzzing))]
#[allow(missing_docs)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod vsock;

pub use device::{Device, Driver, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, read_config_bytes};
pub use error::DeviceError;
pub use names::Kind;
pub use queue::QueueCounters;
