//! The virtio-mmio transport, version 2 (virtio 1.2, 4.2.2): a window of registers, one interrupt.

mod absent;
mod page;
mod register;
mod transport;
mod view;

pub use absent::Absent;
pub use page::Page;
pub use transport::{MmioTransport, Shortcuts};
