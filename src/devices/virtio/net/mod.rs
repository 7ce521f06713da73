//! The network device (virtio 1.2, 5.1): one pair of queues, and Ethernet frames between them and a
//! [`Wire`].
//!
//! `receive` and `transmit` are the two directions. A frame is read from the wire only when the
//! guest has buffers for it, so the wire keeps what waits; a frame that the guest sends and the
//! wire refuses is lost, as on any Ethernet. When wire and driver both can, checksums and
//! segmentation are left to what is behind the wire: the header before each frame says what is to
//! be done, and the guest's is passed on unchanged.

mod device;
mod receive;
mod transmit;
mod wire;

pub use device::{Net, Properties};
pub use receive::RX;
pub use transmit::TX;
pub use wire::{Clock, HEADER, MAX_FRAME, Mac, Offloads, Wire};
