//! The values of flags: devices, sizes, processors.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use arbitrary::Arbitrary;
use hull::boot::Via;
use hull::config::device::{self, KINDS};
use hull::config::machine::{Console, parse_memory, parse_user};
use hull::config::{Cpus, Fault, Lockdown, size};

const WORDS: &[&str] = &[
    "",
    ",",
    ",,",
    ":",
    "=",
    "/",
    "a",
    "b.img",
    "/c",
    "ro",
    "overlay",
    "id=",
    "cache=",
    "unsafe",
    "writeback",
    "rate=",
    "10M",
    "100iops",
    "/",
    "format=",
    "raw",
    "qcow2",
    "backing=",
    "user",
    "tap",
    "tap=",
    "none",
    "publish=",
    "8080",
    "80",
    "mac=",
    "02:00:00:00:00:01",
    "subnet=",
    "10.0.2.0/24",
    "cid=",
    "3",
    "socket=",
    "auto",
    "tag=",
    "threads=",
    "cores=",
    "sockets=",
    "1",
    "4",
    "16",
    "1G",
    "64M",
    "1T",
    "2097152",
    "udp",
    "tcp",
    "127.0.0.1",
    "[::1]",
    "loopback",
    "host-loopback",
    "macvtap",
    "offload=",
    "on",
    "off",
    "queues=",
    "-",
    "..",
    "%",
];

/// A flag and its value.
#[derive(Arbitrary, Debug)]
pub struct Input {
    flag: u8,
    words: Vec<Word>,
}

#[derive(Arbitrary, Debug)]
enum Word {
    Known(u8),
    Any(String),
}

/// What parses is printed such that it parses to the same.
fn both_ways<T: PartialEq + Debug + Display, E: Debug>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) {
    if let Ok(value) = parse(text) {
        let printed = value.to_string();
        let again = parse(&printed).unwrap_or_else(|e| panic!("{text:?}: {printed:?}: {e:?}"));
        assert_eq!(again, value, "{text:?}: {printed:?}");
    }
}

fn string<T: FromStr<Err: Debug>>(text: &str) -> Result<T, T::Err> {
    text.parse()
}

/// Parse it.
pub fn check(input: &Input) {
    let word = |word: &Word| match word {
        Word::Known(word) => WORDS[usize::from(*word) % WORDS.len()].to_string(),
        Word::Any(text) => text.clone(),
    };
    let text: String = input.words.iter().map(word).collect();
    match usize::from(input.flag) % (KINDS.len() + 6) {
        0 => both_ways(&text, string::<Cpus>),
        1 => both_ways(&text, string::<Via>),
        2 => both_ways(&text, string::<Fault>),
        3 => both_ways(&text, string::<Lockdown>),
        4 => both_ways(&text, string::<Console>),
        5 => {
            if let Ok(bytes) = parse_memory(&text) {
                assert!((2 << 20..=1 << 40).contains(&bytes) && bytes.is_multiple_of(4096));
                assert_eq!(parse_memory(&size::exact(bytes)), Ok(bytes));
            }
            if let Ok(user) = parse_user(&text) {
                assert_eq!(user, text.as_str());
            }
        }
        other => {
            let kind = &KINDS[other - 6];
            let parse = |text: &str| device::parse(kind.key, text);
            both_ways(&text, parse);
            if let Ok(device) = parse(&text) {
                let same = device.key() == kind.key;
                assert!(same || kind.key.contains("disk"), "{device:?}");
            }
        }
    }
}
