//! The filter between a guest and its way out.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;

use super::answer::Answer;
use super::flows::{Flow, Flows};
use super::journal::{Journal, Told, Verdict};
use super::packet::{Content, Packet};
use super::rules::{Policy, Reason};
use crate::devices::virtio::net::Mac;
use crate::net::frame::{ARP, Arp, DNS, End, ICMP, IPV4, IPV6, TCP, UDP, datagram, ethernet};
use crate::net::names::{A, AAAA, MAX_ADDRESSES, Question};

/// Most addresses that are known of names; the one that was asked for longest ago gives way.
const MAX_LEASES: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Most names of an address.
const MAX_NAMES: usize = 8;
/// Most questions that wait for their answers; the oldest gives way.
const MAX_ASKED: usize = 64;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// An address of a name is let out to for so many seconds at least, and at most: the guest connects some time after it
/// was told the address, and some programs keep one for longer than they should.
const LIFETIMES: (u32, u32) = (30, 86400);
/// Ports of DHCP (RFC 2131, 4.1): of servers, and of clients.
const DHCP: (u16, u16) = (67, 68);
/// There is no such name (RFC 1035, 4.1.1).
const NO_SUCH_NAME: u8 = 3;
const REFUSED: u8 = 5;

/// Where a filter stands.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The guest's MAC address.
    pub mac: Mac,
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// The guest's router.
    pub gateway: Ipv4Addr,
    /// The name server, which forwards to that of the host.
    pub dns: Ipv4Addr,
    /// Addresses of the host.
    pub host: Vec<Ipv4Addr>,
    /// Ports by which others reach the guest, each behind the number of its protocol.
    pub publish: Vec<(u8, u16)>,
    /// Whether the guest has another name server that knows more names.
    pub asks_others: bool,
}

/// What becomes of a frame of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// It leaves.
    Pass,
    /// This frame leaves in its place.
    Instead(Vec<u8>),
    /// It does not, and the guest gets this answer.
    Answer(Vec<u8>),
    /// It does not.
    Lost,
}

/// What becomes of a frame for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The guest gets it.
    Pass,
    /// It gets this one.
    Instead(Vec<u8>),
    /// It gets none.
    Lost,
}

/// Holds the frames of a machine to a policy. Times are those since a fixed moment.
#[derive(Debug)]
pub struct Filter {
    policy: Policy,
    setting: Setting,
    flows: Flows,
    /// The names of addresses, and until when they have them.
    leases: LruCache<Ipv4Addr, Vec<(String, Duration)>>,
    asked: VecDeque<Asked>,
    journal: Option<Journal>,
}

/// A question that waits for its answer.
#[derive(Debug)]
struct Asked {
    /// The guest's port.
    port: u16,
    number: [u8; 2],
    /// As a message without answers.
    message: Vec<u8>,
    until: Duration,
}

/// What is refused, for the journal.
struct Refused {
    reason: Reason,
    protocol: &'static str,
    to: Option<Ipv4Addr>,
    port: Option<u16>,
    answer: Option<Vec<u8>>,
}

impl Refused {
    fn without_answer(reason: Reason, protocol: &'static str) -> Self {
        Self {
            reason,
            protocol,
            to: None,
            port: None,
            answer: None,
        }
    }
}

impl Filter {
    /// A filter that tells the journal what it does, if there is one.
    pub fn new(policy: Policy, setting: Setting, journal: Option<Journal>) -> Self {
        Self {
            policy,
            setting,
            flows: Flows::new(),
            leases: LruCache::new(MAX_LEASES),
            asked: VecDeque::new(),
            journal,
        }
    }

    /// What becomes of a frame of the guest at the time `now`.
    pub fn outgoing(&mut self, now: Duration, frame: &[u8]) -> Outgoing {
        match self.leaves(now, frame) {
            Ok(outgoing) => outgoing,
            Err(refused) => {
                self.tell(Told {
                    protocol: refused.protocol.into(),
                    to: refused.to,
                    port: refused.port,
                    name: refused.to.and_then(|to| self.name_of(to)),
                    verdict: Verdict::Refused(refused.reason),
                });
                refused.answer.map_or(Outgoing::Lost, Outgoing::Answer)
            }
        }
    }

    /// What becomes of a frame for the guest at the time `now`.
    pub fn incoming(&mut self, now: Duration, frame: &[u8]) -> Incoming {
        self.arrives(now, frame).unwrap_or(Incoming::Lost)
    }

    fn leaves(&mut self, now: Duration, frame: &[u8]) -> Result<Outgoing, Refused> {
        let unknown = |what| Refused::without_answer(Reason::Unknown, what);
        let forged = || Refused::without_answer(Reason::Forged, "ethernet");
        let (router, from, kind) = ethernet(frame).ok_or_else(|| unknown("ethernet"))?;
        if from != self.setting.mac {
            return Err(forged());
        }
        match kind {
            // No further than to what gives the guest its router's address.
            ARP => {
                let arp = Arp::of(frame).ok_or_else(|| unknown("arp"))?;
                let own = self.setting.guest.octets();
                let is_own = arp.sender == from && (arp.from == own || arp.from == [0; 4]);
                return is_own.then_some(Outgoing::Pass).ok_or_else(forged);
            }
            IPV4 => {}
            IPV6 => return Err(unknown("ipv6")),
            _ => return Err(unknown("ethernet")),
        }
        let packet = Packet::of(frame).ok_or_else(|| unknown("ipv4"))?;
        if self.is_dhcp(&packet) {
            return Ok(Outgoing::Pass);
        }
        if packet.source != self.setting.guest {
            return Err(forged());
        }
        match packet.content {
            Content::Udp {
                from,
                to: DNS,
                data,
            } if packet.target == self.setting.dns => self
                .ask(now, router, from, data)
                .ok_or_else(|| self.refused(&packet, router, Reason::Unknown)),
            _ => self.connect(now, &packet, router),
        }
    }

    /// What becomes of a packet with an address.
    fn connect(
        &mut self,
        now: Duration,
        packet: &Packet<'_>,
        router: Mac,
    ) -> Result<Outgoing, Refused> {
        let (protocol, own, port) = match packet.content {
            Content::Tcp { from, to, .. } => (TCP, from, Some(to)),
            Content::Udp { from, to, .. } => (UDP, from, Some(to)),
            Content::Echo { id, asks: true } => (ICMP, id, None),
            // An answer to what came in, which passt does not pass on.
            Content::Echo { .. } | Content::Icmp => return Ok(Outgoing::Lost),
            Content::Other => return Err(self.refused(packet, router, Reason::Unknown)),
        };
        let flow = Flow {
            protocol,
            far: packet.target,
            port: port.unwrap_or(0),
            own,
        };
        // A new connection needs a rule, also between the ends of an older one.
        let opens = matches!(packet.content, Content::Tcp { opens: true, .. });
        if !opens && self.flows.lives(flow, now) {
            // For UDP it is the other end that keeps it alive.
            if protocol == TCP {
                self.flows.note(flow, now);
            }
            return Ok(Outgoing::Pass);
        }
        let names = self.leases.peek(&packet.target).into_iter().flatten();
        let names = names.filter(|(_, until)| *until > now);
        let names = names.map(|(name, _)| name.as_str());
        let host = &self.setting.host;
        match self.policy.check(packet.target, port, names, host) {
            Ok(name) => {
                let name = name.map(String::from);
                if self.flows.note(flow, now) || opens {
                    self.tell(Told {
                        protocol: protocol_of(packet).into(),
                        to: Some(packet.target),
                        port,
                        name,
                        verdict: Verdict::Allowed,
                    });
                }
                Ok(Outgoing::Pass)
            }
            Err(reason) => Err(self.refused(packet, router, reason)),
        }
    }

    /// What becomes of a question for a name; `None` if it is none.
    fn ask(&mut self, now: Duration, router: Mac, from: u16, data: &[u8]) -> Option<Outgoing> {
        let question = Question::of(data)?;
        let server = End {
            mac: router,
            address: self.setting.dns,
            port: DNS,
        };
        let guest = self.guest(from);
        let answer = |data: Vec<u8>| Some(Outgoing::Answer(datagram(server, guest, &data)));
        let allowed = !self.policy.limits_names() || self.policy.allows_name(question.name());
        if self.policy.limits_names() {
            self.tell(Told {
                protocol: "dns".into(),
                to: None,
                port: None,
                name: Some(question.name().into()),
                verdict: match allowed {
                    true => Verdict::Allowed,
                    false => Verdict::Refused(Reason::NotAllowed),
                },
            });
        }
        if !allowed {
            // A resolver gives up at once for a name that does not exist; one with more name servers is to go on.
            return answer(question.empty(match self.setting.asks_others {
                true => REFUSED,
                false => NO_SUCH_NAME,
            }));
        }
        // Without IPv6 there is nothing at such an address.
        if question.kind() == AAAA || self.policy.limits_names() && question.kind() != A {
            return answer(question.empty(0));
        }
        if !self.policy.limits_names() {
            self.flows.note(self.questions(from), now);
            return Some(Outgoing::Pass);
        }
        let message = question.again();
        let number = question.number();
        self.asked
            .retain(|it| it.until > now && (it.port, it.number) != (from, number));
        if self.asked.len() >= MAX_ASKED {
            self.asked.pop_front();
        }
        let frame = datagram(guest, server, &message);
        self.asked.push_back(Asked {
            port: from,
            number,
            message,
            until: now.saturating_add(PATIENCE),
        });
        Some(Outgoing::Instead(frame))
    }

    fn arrives(&mut self, now: Duration, frame: &[u8]) -> Option<Incoming> {
        let (_, router, kind) = ethernet(frame)?;
        match kind {
            ARP => return Some(Incoming::Pass),
            IPV4 => {}
            _ => return None,
        }
        let packet = Packet::of(frame)?;
        let (protocol, port, own, opens) = match packet.content {
            Content::Tcp { from, to, opens } => (TCP, from, to, opens),
            Content::Udp { from, to, .. } => (UDP, from, to, true),
            // They lead to nothing.
            Content::Echo { asks: false, .. } | Content::Icmp => return Some(Incoming::Pass),
            Content::Echo { .. } | Content::Other => return None,
        };
        if protocol == UDP && (port, own) == DHCP && packet.source == self.setting.gateway {
            return Some(Incoming::Pass);
        }
        if let Content::Udp { data, .. } = packet.content
            && self.policy.limits_names()
            && (packet.source, port) == (self.setting.dns, DNS)
        {
            return self.answered(now, router, own, data);
        }
        let flow = Flow {
            protocol,
            far: packet.source,
            port,
            own,
        };
        let is_published = self.setting.publish.contains(&(protocol, own));
        if self.flows.lives(flow, now) || opens && is_published {
            self.flows.note(flow, now);
            return Some(Incoming::Pass);
        }
        None
    }

    /// What becomes of an answer to the guest's `port`: the addresses in it are let out to from now on.
    fn answered(&mut self, now: Duration, router: Mac, port: u16, data: &[u8]) -> Option<Incoming> {
        let number = *data.first_chunk::<2>()?;
        let place = self
            .asked
            .iter()
            .position(|it| (it.port, it.number) == (port, number) && it.until > now)?;
        let message = &self.asked.get(place)?.message;
        let question = Question::of(message)?;
        let answer = Answer::of(data, number, question.section())?;
        let host = &self.setting.host;
        let (good, bad): (Vec<_>, Vec<_>) = answer
            .addresses
            .iter()
            .take(MAX_ADDRESSES)
            .copied()
            .partition(|it| self.policy.check_answer(*it, host).is_ok());
        let name = question.name().to_string();
        let reply = match good.is_empty() {
            true => question.empty(answer.result),
            false => question.addresses(&good, answer.lifetime.min(LIFETIMES.1)),
        };
        self.asked.remove(place);
        let lifetime = answer.lifetime.clamp(LIFETIMES.0, LIFETIMES.1);
        let until = now.saturating_add(Duration::from_secs(lifetime.into()));
        for address in good {
            self.learn(address, &name, until);
        }
        for address in bad {
            self.tell(Told {
                protocol: "dns".into(),
                to: Some(address),
                port: None,
                name: Some(name.clone()),
                verdict: Verdict::Refused(Reason::Private),
            });
        }
        let server = End {
            mac: router,
            address: self.setting.dns,
            port: DNS,
        };
        Some(Incoming::Instead(datagram(
            server,
            self.guest(port),
            &reply,
        )))
    }

    /// `address` is that of `name` until then.
    fn learn(&mut self, address: Ipv4Addr, name: &str, until: Duration) {
        let names = self.leases.get_or_insert_mut(address, Vec::new);
        if let Some((_, before)) = names.iter_mut().find(|(it, _)| it == name) {
            *before = until.max(*before);
            return;
        }
        if names.len() >= MAX_NAMES {
            names.remove(0);
        }
        names.push((name.into(), until));
    }

    /// The name that an address has or had.
    fn name_of(&self, address: Ipv4Addr) -> Option<String> {
        let names = self.leases.peek(&address)?;
        names.last().map(|(name, _)| name.clone())
    }

    /// A question for an address of the guest: it goes to what gives it one, and no further.
    fn is_dhcp(&self, packet: &Packet<'_>) -> bool {
        let Content::Udp { from, to, .. } = packet.content else {
            return false;
        };
        let own = packet.source == self.setting.guest || packet.source.is_unspecified();
        (to, from) == DHCP && own && packet.target.is_broadcast()
    }

    /// The flow of questions from a port, where all names may be asked for.
    fn questions(&self, own: u16) -> Flow {
        Flow {
            protocol: UDP,
            far: self.setting.dns,
            port: DNS,
            own,
        }
    }

    fn guest(&self, port: u16) -> End {
        End {
            mac: self.setting.mac,
            address: self.setting.guest,
            port,
        }
    }

    fn refused(&self, packet: &Packet<'_>, router: Mac, reason: Reason) -> Refused {
        let port = match packet.content {
            Content::Tcp { to, .. } | Content::Udp { to, .. } => Some(to),
            _ => None,
        };
        let router = End {
            mac: router,
            address: self.setting.gateway,
            port: 0,
        };
        Refused {
            reason,
            protocol: protocol_of(packet),
            to: Some(packet.target),
            port,
            answer: packet.refusal(self.guest(0), router),
        }
    }

    fn tell(&mut self, told: Told) {
        if let Some(journal) = &mut self.journal {
            journal.tell(told);
        }
    }
}

fn protocol_of(packet: &Packet<'_>) -> &'static str {
    match packet.content {
        Content::Tcp { .. } => "tcp",
        Content::Udp { .. } => "udp",
        Content::Echo { .. } | Content::Icmp => "icmp",
        Content::Other => "ip",
    }
}

#[cfg(test)]
mod tests;
