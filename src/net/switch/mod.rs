//! Networks that machines share: a process of hull's own for each, which passes frames on.
//!
//! ```text
//!   hull of machine A ──frames──┐                          ┌── passt of A ── the host's sockets
//!   hull of machine B ──frames──┴─ switch of the network ──┴── passt of B
//! ```
//! A machine's hull starts the switch where none runs ([`Network::start`](super::networks::Network::start)),
//! and joins it ([`join`]): it says the machine's names, gets an address, and hands over the socket of the
//! machine's passt, by which the machine reaches other networks and its published ports are reached. From then
//! on the connection carries frames, as that of passt does. Which machines are in the network is known
//! to the switch alone, and the end of a connection is the end of a membership: a killed machine leaves nothing.
//!
//! `segment` decides where a frame goes, [`serve`] moves the bytes.

mod members;
mod segment;
mod serve;

pub use members::{Joined, Member, Way, Wish, end, hand_over, join, list};
pub use segment::mac_of;
pub use serve::serve;
