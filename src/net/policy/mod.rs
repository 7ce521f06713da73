//! What may leave a machine: rules of the user ([`Policy`]), and a filter that holds frames to them.
//!
//! ```text
//!   guest ── frames ── Filter ── frames ── passt ── the host's sockets
//!                        └─ journal: what was let out and what was refused
//! ```
//! The filter is a model without sockets and threads: each frame goes through [`Filter::outgoing`] or
//! [`Filter::incoming`], in the machine's own process or in the switch of its network. It lets packets out to
//! addresses that a rule names, and to those that the host's name server gave for an allowed name, as long as that
//! said they hold. All else is answered at once, as a router would that forbids it.
//!
//! The guest is hostile: it writes every byte of its frames. What the filter does not understand does not leave, and
//! of a question for a name nothing leaves but the name: it is written anew.

mod answer;
mod filter;
mod flows;
mod journal;
mod packet;
mod rules;

pub use filter::{Filter, Incoming, Outgoing, Setting};
pub use journal::{Journal, Line, Told, Verdict};
pub use rules::{Allow, MAX_ALLOWED, Policy, Reason, Target};
