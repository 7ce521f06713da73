//! Questions for names, answered as a name server does (RFC 1035).

use std::net::Ipv4Addr;

/// Bytes of a message's header (4.1.1).
const HEADER: usize = 12;
/// Longest name in bytes, with the lengths of its labels (2.3.4).
const MAX_NAME: usize = 255;
/// Most addresses of an answer: without EDNS a message has 512 bytes (4.2.1).
pub(super) const MAX_ADDRESSES: usize = 16;
/// Seconds for which an answer holds: a machine that was started again may have another address.
const LIFETIME: u32 = 5;
/// The type of records with an address of IPv4 (3.2.2).
pub(super) const A: u16 = 1;
/// The type of records with an address of IPv6 (RFC 3596).
pub(super) const AAAA: u16 = 28;
const ANY: u16 = 255;
const INTERNET: u16 = 1;
/// Results (4.1.1): the name does not exist; the server does not want to answer.
const NO_SUCH_NAME: u8 = 3;
const REFUSED: u8 = 5;

/// What becomes of a question.
pub enum Verdict<'a> {
    /// The name is one of the network's: the answer.
    Known(Vec<u8>),
    /// It is none.
    Unknown(Question<'a>),
}

/// A message with one question.
pub struct Question<'a> {
    header: &'a [u8; HEADER],
    /// The name, type and class, as they are in the message.
    section: &'a [u8],
    name: String,
    kind: u16,
}

/// The verdict on `message`; `None` if it is no message with one question. `known` has the addresses of a name in
/// lower case. A known name has no address of IPv6, and no other records.
pub fn answer<'a>(
    message: &'a [u8],
    known: impl FnOnce(&str) -> Vec<Ipv4Addr>,
) -> Option<Verdict<'a>> {
    let question = Question::of(message)?;
    let mut addresses = known(&question.name);
    if addresses.is_empty() {
        return Some(Verdict::Unknown(question));
    }
    // Each in turn is the first, so that machines of one name share the work.
    let first = question.header.get(1).copied().map_or(0, usize::from);
    let turn = first % addresses.len();
    addresses.rotate_left(turn);
    addresses.retain(|_| matches!(question.kind, A | ANY));
    let answer = question.addresses(&addresses, LIFETIME);
    Some(Verdict::Known(answer))
}

impl<'a> Question<'a> {
    /// The question in `message`; `None` if it is no message with one question, or a label of the name has a dot.
    pub fn of(message: &'a [u8]) -> Option<Self> {
        let (header, rest) = message.split_first_chunk::<HEADER>()?;
        let &[_, _, flags, _, 0, 1, ..] = header else {
            return None;
        };
        // A question, and a standard one.
        if flags & 0xf8 != 0 {
            return None;
        }
        let (mut at, mut name) = (0, String::new());
        loop {
            let len = usize::from(*rest.get(at)?);
            at += 1;
            if len == 0 {
                break;
            }
            // Longer ones are pointers, which the first name of a message cannot be.
            let label = rest.get(at..at + len).filter(|_| len < 64)?;
            if label.contains(&b'.') {
                return None;
            }
            at += len;
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(
                label
                    .iter()
                    .map(|byte| char::from(byte.to_ascii_lowercase())),
            );
            if at > MAX_NAME {
                return None;
            }
        }
        let &[kind0, kind1, class0, class1, ..] = rest.get(at..)? else {
            return None;
        };
        (u16::from_be_bytes([class0, class1]) == INTERNET).then_some(Self {
            header,
            section: rest.get(..at + 4)?,
            name,
            kind: u16::from_be_bytes([kind0, kind1]),
        })
    }

    /// The name, in lower case.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of records that are asked for.
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// The name, type and class, as they are in the message.
    pub fn section(&self) -> &[u8] {
        self.section
    }

    /// The number by which the answer is known.
    pub fn number(&self) -> [u8; 2] {
        let [id0, id1, ..] = *self.header;
        [id0, id1]
    }

    /// The same question, with nothing else in its message.
    pub fn again(&self) -> Vec<u8> {
        let [id0, id1, flags, ..] = *self.header;
        let header = [id0, id1, flags & 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        [&header, self.section].concat()
    }

    /// The answer with addresses of the name, of which the first 16 are given, for so many seconds.
    pub fn addresses(&self, addresses: &[Ipv4Addr], lifetime: u32) -> Vec<u8> {
        let given = addresses.get(..MAX_ADDRESSES).unwrap_or(addresses);
        let mut answer = self.reply(0, given.len() as u16);
        for address in given {
            answer.extend([0xc0, HEADER as u8]); // the name is that of the question
            answer.extend([A, INTERNET].map(u16::to_be_bytes).concat());
            answer.extend(lifetime.to_be_bytes());
            answer.extend([0, 4]);
            answer.extend(address.octets());
        }
        answer
    }

    /// The answer without records, and with this result (4.1.1).
    pub fn empty(&self, result: u8) -> Vec<u8> {
        self.reply(result, 0)
    }

    /// The answer for a name that is none of the network's, where no other server can be asked. One whose machine
    /// `asks_others` makes its resolver go on to the next name server.
    pub fn refusal(&self, asks_others: bool) -> Vec<u8> {
        let result = if asks_others { REFUSED } else { NO_SUCH_NAME };
        self.reply(result, 0)
    }

    /// The beginning of an answer, up to its records.
    fn reply(&self, result: u8, records: u16) -> Vec<u8> {
        let [id0, id1, flags, ..] = *self.header;
        // An answer; whether recursion is wanted, as asked; recursion is available.
        let mut reply = vec![id0, id1, 0x80 | flags & 0x01, 0x80 | result, 0, 1];
        reply.extend(records.to_be_bytes());
        reply.extend([0; 4]);
        reply.extend(self.section);
        reply
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend([kind, INTERNET].map(u16::to_be_bytes).concat());
        message
    }

    fn known(name: &str) -> Vec<Ipv4Addr> {
        match name {
            "db" => vec![Ipv4Addr::new(10, 90, 0, 2)],
            "web.1" => (1..=40)
                .map(|last| Ipv4Addr::new(10, 90, 1, last))
                .collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn a_known_name_has_its_addresses_and_no_others() {
        let asked = question("dB", A);
        let Some(Verdict::Known(answer)) = answer(&asked, known) else {
            panic!("known");
        };
        assert_eq!(answer[..12], [7, 8, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(answer[12..asked.len()], asked[12..]);
        let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 90, 0, 2];
        assert_eq!(answer[asked.len()..], record);
    }

    #[test]
    fn other_kinds_of_records_are_none_and_answers_are_short() {
        let Some(Verdict::Known(ipv6)) = answer(&question("db", 28), known) else {
            panic!("known");
        };
        assert_eq!(ipv6[..8], [7, 8, 0x81, 0x80, 0, 1, 0, 0]);
        let Some(Verdict::Known(many)) = answer(&question("web.1", A), known) else {
            panic!("known");
        };
        assert!(many.len() <= 512, "{}", many.len());
        assert_eq!(many[7], 16);
        assert_eq!(many.last(), Some(&24), "the ninth of 40 is the first");
    }

    #[test]
    fn an_unknown_name_is_none_or_for_others() {
        let asked = question("nobody", A);
        let Some(Verdict::Unknown(unknown)) = answer(&asked, known) else {
            panic!("unknown");
        };
        assert_eq!(unknown.refusal(false)[3], 0x83);
        assert_eq!(unknown.refusal(true)[3], 0x85);
        assert_eq!(unknown.refusal(true)[4..8], [0, 1, 0, 0]);
    }

    proptest! {
        #[test]
        fn what_is_no_question_has_no_answer(
            bytes in prop::collection::vec(any::<u8>(), 0..80), at in 0..40usize, byte: u8,
        ) {
            let of = |message: &[u8]| answer(message, known).map(|verdict| match verdict {
                Verdict::Known(answer) => answer,
                Verdict::Unknown(unknown) => unknown.refusal(false),
            });
            let mut asked = question("web.1", A);
            for message in [&bytes, &asked[..at.min(asked.len())].to_vec()] {
                prop_assert!(of(message).is_none_or(|it| it.len() <= 600));
            }
            if let Some(changed) = asked.get_mut(at) {
                *changed = byte;
            }
            // Whatever it says, it is answered under its own number, as an answer.
            if let Some(answer) = of(&asked) {
                prop_assert_eq!(&answer[..2], &asked[..2]);
                prop_assert_eq!(answer[2] & 0x80, 0x80);
            }
        }
    }
}
