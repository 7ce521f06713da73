//! The values of flags: devices, sizes, processors.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use arbitrary::Arbitrary;
use hull::boot::Via;
use hull::config::device::{self, Device, KINDS};
use hull::config::machine::{Console, parse_memory, parse_user};
use hull::config::{Cpus, Fault, Jail, Limits, Lockdown, size};
use hull::disk::config::Moved;

/// Parts of the values of disks.
const DISK: &[&str] = &[
    "a",
    "/b.img",
    "c,,d",
    "e=f",
    ",ro",
    ",overlay",
    ",id=",
    "d1",
    ",cache=",
    "unsafe",
    "writeback",
    "none",
    ",format=",
    "raw",
    "qcow2",
    "vdi",
    ",backing=",
    ",rate=",
    "10M",
    "1G/2M",
    "100ops",
    "+",
    "5ops/7",
    ",,",
    ",",
    "=",
    "/",
];
const NET: &[&str] = &[
    "user",
    "tap=",
    "t0",
    "tap",
    "0123456789abcdef",
    "..",
    "a%b",
    ",publish=",
    "8080:80",
    "127.0.0.1:1:2",
    "0:5",
    "70000:1",
    "1:2:3:4",
    "/tcp",
    "/udp",
    "/sctp",
    ",host-loopback",
    ",allow=*.example.org:443",
    ",allow=10.1.0.0/16",
    ",deny-private",
    ",ip=",
    "10.1.2.3",
    "/16",
    "/33",
    "224.0.0.1/8",
    ",gw=",
    "10.1.0.1",
    ",mac=",
    "02:00:00:00:00:01",
    "01:00:00:00:00:01",
    "00:00:00:00:00:00",
    "02:00:00:00:00",
    ":07",
    ",rate=",
    "10M/1M",
    "+500ops",
    "0",
    ",",
];
const SHARE: &[&str] = &[
    ".",
    "/a",
    ":/b",
    ":/c/d",
    ":",
    ":b",
    "/",
    "..",
    "/./",
    ":ro",
    ":rw",
    ",ro",
    ":lock=host",
    ":lock=guest",
    ":xattr=on",
    ":xattr=off",
    ":rx",
    "é",
];
const OTHER: &[&str] = &[
    "",
    "1",
    "2",
    "4",
    "8",
    "16",
    "33",
    "0",
    ",cores=",
    ",threads=",
    ",sockets=",
    "64M",
    "1G",
    "1T",
    "2T",
    "7k",
    "1tib",
    "12Q",
    "2097153",
    "99999999999999999999",
    ",stats=",
    "5",
    "86401",
    "cid=",
    "3",
    "4294967295",
    ",socket=",
    "/v",
    "uid=",
    "gid=",
    ",gid=",
    "memory=",
    ",cpu=",
    "0.5",
    "1.25",
    ".",
    ",pids=",
    ",io=",
    "root",
    ":",
    "auto",
    "pvh",
    "guest",
    "serial",
    "virtio",
    "best-effort",
    "required",
    "off",
    "no-irqchip",
    "bad-e820",
    ",",
    "=",
    "-",
];

/// A flag and its value, or the devices of one machine.
#[derive(Arbitrary, Debug)]
pub enum Input {
    One(u8, Vec<Word>),
    Devices(Vec<(u8, Vec<Word>)>),
}

#[derive(Arbitrary, Debug)]
pub enum Word {
    Known(u8),
    Other(u8),
    Long(u8),
    Any(String),
}

/// The value of flag `key`.
fn value(key: &str, words: &[Word]) -> String {
    let known = match key {
        "root-disk" | "disk" | "overlay" | "moved" => DISK,
        "net" => NET,
        "share" => SHARE,
        _ => OTHER,
    };
    let word = |word: &Word| match word {
        Word::Known(word) => known[usize::from(*word) % known.len()].to_string(),
        Word::Other(word) => OTHER[usize::from(*word) % OTHER.len()].to_string(),
        Word::Long(times) => "0123456789abcdef".repeat(usize::from(*times) + 1),
        Word::Any(text) => text.clone(),
    };
    words.iter().map(word).collect()
}

/// What parses is printed such that it parses to the same.
fn both_ways<T: PartialEq + Debug + Display, E: Debug>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Option<T> {
    let value = parse(text).ok()?;
    let printed = value.to_string();
    let again = parse(&printed).unwrap_or_else(|e| panic!("{text:?}: {printed:?}: {e:?}"));
    assert_eq!(again, value, "{text:?}: {printed:?}");
    Some(value)
}

fn string<T: FromStr<Err: Debug>>(text: &str) -> Result<T, T::Err> {
    text.parse()
}

/// Parse it.
pub fn check(input: &Input) {
    match input {
        Input::One(flag, words) => one(usize::from(*flag), words),
        Input::Devices(list) => devices(list),
    }
}

fn one(flag: usize, words: &[Word]) {
    let text = value("", words);
    match flag % (KINDS.len() + 9) {
        0 => {
            if let Some(cpus) = both_ways(&text, string::<Cpus>) {
                let cores = u16::from(cpus.topology.cores(cpus.count));
                let of_socket = cores * u16::from(cpus.topology.threads);
                assert_eq!(
                    u16::from(cpus.topology.sockets) * of_socket,
                    u16::from(cpus.count)
                );
            }
        }
        1 => drop(both_ways(&text, string::<Via>)),
        2 => {
            if let Some(fault) = both_ways(&text, string::<Fault>) {
                assert!(!fault.what().is_empty());
            }
        }
        3 => drop(both_ways(&text, string::<Lockdown>)),
        4 => drop(both_ways(&text, string::<Console>)),
        5 => {
            if let Ok(bytes) = parse_memory(&text) {
                assert!((2 << 20..=1 << 40).contains(&bytes) && bytes.is_multiple_of(4096));
                assert_eq!(parse_memory(&size::exact(bytes)), Ok(bytes));
            }
            if let Some(bytes) = size::parse(&text) {
                assert_eq!(size::parse(&size::exact(bytes)), Some(bytes));
                // The largest unit of which there is one, cut off after a decimal.
                let shown = size::show(bytes);
                let (number, unit) = shown.split_once(' ').unwrap();
                let unit = ["B", "KiB", "MiB", "GiB", "TiB"]
                    .iter()
                    .position(|it| *it == unit);
                let scale = 1024f64.powi(unit.unwrap() as i32);
                let tenths = bytes as f64 / scale - number.parse::<f64>().unwrap();
                assert!((-0.01..0.1001).contains(&tenths), "{shown}");
                assert!(size::as_bytes(&text).is_empty() || bytes < 1_000_000);
            }
            if let Ok(user) = parse_user(&text) {
                assert_eq!(user, text.as_str());
            }
        }
        6 => drop(both_ways(&text, string::<Jail>)),
        7 => drop(both_ways(&text, string::<Limits>)),
        8 => drop(both_ways(&value("moved", words), string::<Moved>)),
        other => {
            let kind = &KINDS[other - 9];
            let text = value(kind.key, words);
            let device = both_ways(&text, |text| device::parse(kind.key, text));
            if let Some(device) = device {
                let same = device.key() == kind.key;
                assert!(same || kind.key.contains("disk"), "{device:?}");
            }
        }
    }
}

/// Several devices of a machine: no name, address, tap device, port or writer is there twice.
fn devices(list: &[(u8, Vec<Word>)]) {
    let parse = |(kind, words): &(u8, Vec<Word>)| {
        let kind = &KINDS[usize::from(*kind) % KINDS.len()];
        device::parse(kind.key, &value(kind.key, words)).ok()
    };
    let mut devices: Vec<Device> = list.iter().filter_map(parse).collect();
    let complete = device::complete(&mut devices);
    let once = |texts: &mut Vec<String>| {
        let before = texts.len();
        texts.sort();
        texts.dedup();
        texts.len() == before
    };
    let (mut paths, mut tags, mut disks, mut macs) = (vec![], vec![], vec![], vec![]);
    let (mut taps, mut ports, mut singles, mut images) = (vec![], vec![], vec![], vec![]);
    for device in &mut devices {
        match &*device {
            Device::Share(share) => {
                paths.push(share.guest_path.clone());
                tags.push(share.tag.clone());
            }
            Device::Disk(disk) => {
                disks.extend(disk.name.clone());
                let writes = !disk.read_only && !disk.overlay;
                if let hull::disk::Source::Image(path) = &disk.source {
                    let path = path.canonicalize().unwrap_or(path.clone());
                    images.push((path, writes));
                }
                singles.extend(disk.root.then(|| "root".to_string()));
            }
            Device::Net(net) => {
                macs.extend(net.mac.map(|mac| format!("{mac:?}")));
                match &net.kind {
                    hull::net::config::Kind::Tap { name, .. } => taps.push(name.clone()),
                    kind => {
                        if let hull::net::config::Kind::Shared { network, .. } = kind {
                            taps.push(format!("network {network}"));
                        }
                        let place = |port: &hull::net::config::Publish| {
                            format!("{}:{}/{:?}", port.address, port.host, port.protocol)
                        };
                        ports.extend(kind.publish().iter().map(place));
                    }
                }
            }
            single => singles.push(single.key().to_string()),
        }
        assert!(
            device
                .before_command()
                .is_none_or(|before| before.key() == device.key())
        );
        device.files_mut();
    }
    assert_eq!(complete.is_ok(), once(&mut paths), "{devices:?}");
    if complete.is_ok() {
        assert!(tags.iter().all(|tag| (1..=36).contains(&tag.len())));
        assert!(once(&mut tags), "{devices:?}");
    }
    let image = |index: usize| {
        let (path, writes) = &images[index];
        let other = |(other, also): &(_, bool)| other == path && (*writes || *also);
        images[..index].iter().any(other)
    };
    let apart = [&mut disks, &mut macs, &mut taps, &mut ports]
        .into_iter()
        .all(once);
    let right = apart && once(&mut singles) && !(0..images.len()).any(image);
    // Less than any balloon, or more than all.
    match (device::check(&devices, 1 << 50), device::check(&devices, 0)) {
        (Ok(()), small) => {
            assert!(right, "{devices:?}");
            let balloon = devices.iter().any(|device| device.key() == "balloon");
            assert_eq!(small.is_err(), balloon);
        }
        (Err(error), _) => assert!(!right, "{error}: {devices:?}"),
    }
}
