//! The addresses in the answer of a name server (RFC 1035).

use std::net::Ipv4Addr;

/// Bytes of a message's header (4.1.1).
const HEADER: usize = 12;
/// Most records that are looked at.
const MAX_RECORDS: usize = 64;
/// Most names that lead to one another.
const MAX_CHAIN: usize = 16;
/// Longest name in bytes (2.3.4).
const MAX_NAME: usize = 255;
/// Most pointers of a name (4.1.4).
const MAX_POINTERS: usize = 32;
const A: u16 = 1;
const CNAME: u16 = 5;
const INTERNET: u16 = 1;

/// What a name server says.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it went: 0 for well, 3 if there is no such name (4.1.1).
    pub result: u8,
    /// Addresses of the name, or of those that it stands for.
    pub addresses: Vec<Ipv4Addr>,
    /// Seconds for which all of them hold.
    pub lifetime: u32,
}

/// A record of an answer: an address of a name, or another name that it stands for.
struct Record {
    owner: Vec<u8>,
    lifetime: u32,
    what: What,
}

enum What {
    Address(Ipv4Addr),
    Name(Vec<u8>),
}

impl Answer {
    /// The answer in `message` to the question `number` with this `section`: name, type and class.
    pub fn of(message: &[u8], number: [u8; 2], section: &[u8]) -> Option<Self> {
        let &[id0, id1, flags, result, 0, 1, count0, count1, ..] = message else {
            return None;
        };
        // An answer, and to a standard question.
        if [id0, id1] != number || flags & 0xf8 != 0x80 {
            return None;
        }
        let asked = message.get(HEADER..HEADER + section.len())?;
        if !asked.eq_ignore_ascii_case(section) {
            return None;
        }
        let mut at = HEADER + section.len();
        let (mut records, mut left) = (Vec::new(), u16::from_be_bytes([count0, count1]));
        while left > 0 && records.len() < MAX_RECORDS {
            left -= 1;
            // One that was cut off, or is damaged, ends what is known.
            let Some((record, next)) = record(message, at) else {
                break;
            };
            records.extend(record);
            at = next;
        }
        let (name, _) = name(message, HEADER)?;
        let (addresses, lifetime) = addresses(&records, name);
        Some(Self {
            result: result & 0xf,
            addresses,
            lifetime,
        })
    }
}

/// The addresses of `name`, and how long they hold.
fn addresses(records: &[Record], mut name: Vec<u8>) -> (Vec<Ipv4Addr>, u32) {
    let mut lifetime = u32::MAX;
    for _ in 0..MAX_CHAIN {
        let next = records.iter().find_map(|record| match &record.what {
            What::Name(next) if record.owner == name => Some((next, record.lifetime)),
            _ => None,
        });
        let Some((next, holds)) = next else {
            break;
        };
        lifetime = lifetime.min(holds);
        name.clone_from(next);
    }
    let mut addresses = Vec::new();
    for record in records.iter().filter(|it| it.owner == name) {
        if let What::Address(address) = record.what {
            lifetime = lifetime.min(record.lifetime);
            addresses.push(address);
        }
    }
    (addresses, lifetime)
}

/// The record at `at`, if it is one of those that are of use, and the place behind it.
fn record(message: &[u8], at: usize) -> Option<(Option<Record>, usize)> {
    let (owner, at) = name(message, at)?;
    let &[k0, k1, c0, c1, l0, l1, l2, l3, n0, n1] = message.get(at..)?.first_chunk()?;
    let (begin, len) = (at + 10, usize::from(u16::from_be_bytes([n0, n1])));
    let data = message.get(begin..begin + len)?;
    let known = u16::from_be_bytes([c0, c1]) == INTERNET;
    let what = match u16::from_be_bytes([k0, k1]) {
        A if known => <[u8; 4]>::try_from(data)
            .ok()
            .map(|it| What::Address(it.into())),
        CNAME if known => name(message, begin).map(|(name, _)| What::Name(name)),
        _ => None,
    };
    let lifetime = u32::from_be_bytes([l0, l1, l2, l3]);
    let record = |what| Record {
        owner,
        lifetime,
        what,
    };
    Some((what.map(record), begin + len))
}

/// The name at `at` in lower case, as labels with their lengths, and the place behind it.
fn name(message: &[u8], mut at: usize) -> Option<(Vec<u8>, usize)> {
    let (mut name, mut behind, mut pointers) = (Vec::new(), None, 0);
    loop {
        let len = *message.get(at)?;
        match len {
            0 => break,
            1..64 => {
                let label = message.get(at..=at + usize::from(len))?;
                name.extend(label.iter().map(u8::to_ascii_lowercase));
                at += label.len();
            }
            // The rest of the name is elsewhere (4.1.4).
            0xc0.. => {
                behind.get_or_insert(at + 2);
                pointers += 1;
                at = usize::from(len & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
            }
            _ => return None,
        }
        if pointers > MAX_POINTERS || name.len() > MAX_NAME {
            return None;
        }
    }
    Some((name, behind.unwrap_or(at + 1)))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A name as labels with their lengths.
    pub fn labels(name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for label in name.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
        bytes
    }

    pub fn section(name: &str, kind: u16) -> Vec<u8> {
        [&labels(name)[..], &[0, kind as u8, 0, 1]].concat()
    }

    /// An answer with records: owner, type, seconds, data.
    pub fn message(
        number: [u8; 2],
        asked: &[u8],
        result: u8,
        records: &[(Vec<u8>, u16, u32, Vec<u8>)],
    ) -> Vec<u8> {
        let mut message = vec![number[0], number[1], 0x81, 0x80 | result, 0, 1];
        message.extend([0, records.len() as u8, 0, 0, 0, 0]);
        message.extend(asked);
        for (owner, kind, lifetime, data) in records {
            message.extend(owner);
            message.extend([*kind, INTERNET].map(u16::to_be_bytes).concat());
            message.extend(lifetime.to_be_bytes());
            message.extend((data.len() as u16).to_be_bytes());
            message.extend(data);
        }
        message
    }

    #[test]
    fn a_chain_of_names_leads_to_addresses() {
        let asked = section("WWW.example.org", A);
        let records = [
            (labels("cdn.example.net"), A, 50, vec![192, 0, 2, 7]),
            // The name of the question, by a pointer.
            (vec![0xc0, 12], CNAME, 300, labels("alias.example.org")),
            (
                labels("Alias.example.org"),
                CNAME,
                20,
                labels("cdn.example.net"),
            ),
            (labels("other.example.org"), A, 1, vec![192, 0, 2, 9]),
            (labels("cdn.example.net"), 16, 1, b"\x04text".to_vec()),
            (labels("cdn.example.net"), A, 40, vec![192, 0, 2, 8]),
        ];
        let message = message([7, 8], &asked, 0, &records);
        let answer = Answer::of(&message, [7, 8], &section("www.example.org", A));
        let addresses = vec![Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(192, 0, 2, 8)];
        let expected = Answer {
            result: 0,
            addresses,
            lifetime: 20,
        };
        assert_eq!(answer, Some(expected));
        for (number, section) in [
            ([7, 9], section("www.example.org", A)),
            ([7, 8], section("www.example.com", A)),
            ([7, 8], section("www.example.org", 28)),
        ] {
            assert_eq!(Answer::of(&message, number, &section), None);
        }
        let mut question = message.clone();
        question[2] &= 0x7f;
        assert_eq!(Answer::of(&question, [7, 8], &asked), None);
    }

    #[test]
    fn circles_end() {
        let asked = section("a.org", A);
        let records = [
            (labels("a.org"), CNAME, 9, labels("b.org")),
            (labels("b.org"), CNAME, 9, labels("a.org")),
        ];
        let message = message([0, 0], &asked, 0, &records);
        let answer = Answer::of(&message, [0, 0], &asked).expect("an answer");
        assert!(answer.addresses.is_empty());
        // A pointer to itself.
        let records = [(vec![0xc0, 23], A, 9, vec![1, 2, 3, 4])];
        let message = self::message([0, 0], &asked, 3, &records);
        assert_eq!(message[23..25], [0xc0, 23]);
        let answer = Answer::of(&message, [0, 0], &asked).expect("an answer");
        assert_eq!((answer.result, answer.addresses.len()), (3, 0));
    }

    proptest! {
        #[test]
        fn damaged_answers_have_no_more_than_their_records(
            at in 12..200usize, byte: u8, len in 0..200usize, any in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let asked = section("www.example.org", A);
            let record = |last| (vec![0xc0, 12], A, 60, vec![192, 0, 2, last]);
            let mut bytes = message([1, 2], &asked, 0, &[record(1), record(2)]);
            bytes.truncate(len);
            if let Some(changed) = bytes.get_mut(at) {
                *changed = byte;
            }
            let answer = Answer::of(&bytes, [1, 2], &asked);
            prop_assert!(answer.is_none_or(|it| it.addresses.len() <= 2));
            let mut all = message([1, 2], &asked, 0, &[]);
            all[7] = 200;
            all.extend(any);
            let answer = Answer::of(&all, [1, 2], &asked);
            prop_assert!(answer.is_some_and(|it| it.addresses.len() <= 10));
        }
    }
}
