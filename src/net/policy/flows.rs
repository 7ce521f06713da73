//! Connections that were let through, so that both ends go on after the rule that let them has no address any more.

use std::net::Ipv4Addr;
use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;

/// Most connections of a machine; the one that was quiet for longest gives way.
const MAX_FLOWS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// A connection as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// TCP, UDP or ICMP.
    pub protocol: u8,
    /// The other end.
    pub far: Ipv4Addr,
    /// Its port; 0 for ICMP.
    pub port: u16,
    /// The guest's port, or the identifier of a ping.
    pub own: u16,
}

impl Flow {
    /// How long it lives without a packet: at least 2 hours and 4 minutes for TCP (RFC 5382, REQ-5), 2 minutes for UDP
    /// (RFC 4787, REQ-5), a minute for ICMP (RFC 5508, REQ-2).
    fn patience(self) -> Duration {
        Duration::from_secs(match self.protocol {
            crate::net::frame::TCP => 7440,
            crate::net::frame::UDP => 120,
            _ => 60,
        })
    }
}

/// The connections of a machine.
#[derive(Debug)]
pub struct Flows(LruCache<Flow, Duration>);

impl Flows {
    /// None.
    pub fn new() -> Self {
        Self(LruCache::new(MAX_FLOWS))
    }

    /// A packet was let through. Returns whether the connection is new.
    pub fn note(&mut self, flow: Flow, now: Duration) -> bool {
        let until = now.saturating_add(flow.patience());
        let before = self.0.put(flow, until);
        before.is_none_or(|before| before <= now)
    }

    /// Whether it lives.
    pub fn lives(&self, flow: Flow, now: Duration) -> bool {
        self.0.peek(&flow).is_some_and(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(own: u16) -> Flow {
        Flow {
            protocol: 17,
            far: Ipv4Addr::new(192, 0, 2, 1),
            port: 1,
            own,
        }
    }

    #[test]
    fn a_quiet_connection_ends_and_the_oldest_gives_way() {
        let at = Duration::from_secs;
        let mut flows = Flows::new();
        assert!(flows.note(flow(1), at(0)));
        assert!(!flows.note(flow(1), at(100)));
        assert!(flows.lives(flow(1), at(219)));
        assert!(!flows.lives(flow(1), at(220)));
        assert!(flows.note(flow(1), at(220)), "as a new one");
        for own in 2..=MAX_FLOWS.get() as u16 {
            flows.note(flow(own), at(221));
        }
        assert!(flows.lives(flow(1), at(222)));
        flows.note(flow(0), at(222));
        assert!(!flows.lives(flow(1), at(222)));
        assert!(flows.lives(flow(2), at(222)));
    }
}
