//! Messages between hull and the init of its guest, as either end decodes them.

use arbitrary::Arbitrary;
use hull_agent::frame::{HEADER, MAX_PAYLOAD, first, header};
use hull_agent::{
    Buffer, Command, CommandHeader, FromGuest, FromHost, Limit, MAX_GROUPS, RESOURCES, WindowSize,
};

/// Bytes of a channel, and a command.
#[derive(Arbitrary, Debug)]
pub struct Input {
    frames: Vec<(u8, u8, Vec<u8>)>,
    bytes: Vec<u8>,
    pieces: Vec<u8>,
    tty: Option<(u16, u16)>,
    counts: Option<(u32, u32)>,
    groups: Vec<u32>,
    limits: Vec<(u8, u64, u64)>,
    strings: Vec<Vec<u8>>,
}

/// Decode them.
pub fn check(input: &Input) {
    let mut stream = Vec::new();
    for (kind, process, payload) in &input.frames {
        // Mostly a kind that exists.
        let kind = if kind % 32 < 12 { kind & 0x8f } else { *kind };
        let process = if process % 8 < 7 {
            process % 64
        } else {
            *process
        };
        stream.extend(header(kind, process, payload.len()));
        stream.extend(payload);
    }
    stream.extend(&input.bytes);
    let whole = frames(&stream);
    assert_eq!(in_pieces(&stream, &input.pieces), whole);
    for (kind, process, payload) in &whole {
        let bytes = [&header(*kind, *process, payload.len())[..], payload].concat();
        let frame = first(&bytes).unwrap().unwrap();
        let mut again = vec![0; HEADER + MAX_PAYLOAD];
        if let Ok(message) = FromGuest::decode(frame) {
            let len = message.encode_for(*process, &mut again).unwrap();
            let frame = first(&again[..len]).unwrap().unwrap();
            assert_eq!(FromGuest::decode(frame), Ok(message));
        }
        if let Ok(message) = FromHost::decode(frame) {
            let len = message.encode_for(*process, &mut again).unwrap();
            let frame = first(&again[..len]).unwrap().unwrap();
            assert_eq!(FromHost::decode(frame), Ok(message));
        }
        command(payload);
    }
    let (argc, envc) = match input.counts {
        Some(counts) => counts,
        None => ((input.strings.len() as u32).saturating_sub(2), 0),
    };
    let tty = input.tty.map(|(rows, cols)| WindowSize { rows, cols });
    let (groups, limits) = (input.groups.len() as u8, input.limits.len() as u8);
    let header = CommandHeader {
        tty,
        argc,
        envc,
        groups,
        limits,
        ..CommandHeader::default()
    };
    let mut body = header.encode().to_vec();
    let resources = usize::from(limits) <= RESOURCES;
    let fits = usize::from(groups) <= MAX_GROUPS && resources;
    for group in input.groups.iter().take(groups.into()) {
        body.extend(group.to_le_bytes());
    }
    for (resource, soft, hard) in input.limits.iter().take(limits.into()) {
        let (resource, soft, hard) = (resource % RESOURCES as u8, *soft, *hard);
        body.extend(
            Limit {
                resource,
                soft,
                hard,
            }
            .encode(),
        );
    }
    for string in &input.strings {
        body.extend(string.iter().filter(|byte| **byte != 0));
        body.push(0);
    }
    let valid = command(&body);
    if input.counts.is_none() && input.strings.len() > 2 && fits {
        assert!(valid);
    }
}

/// Whether it is a command; then it has the strings that it states.
fn command(body: &[u8]) -> bool {
    let Ok(command) = Command::decode(body) else {
        return false;
    };
    let strings = command.argv().chain(command.env());
    let len: usize = strings.map(|string| string.count_bytes() + 1).sum();
    assert!(len <= body.len());
    assert!(command.argv().next().is_some());
    true
}

type Frames = Vec<(u8, u8, Vec<u8>)>;

/// The frames of `stream` up to its end or to the first that is too long.
fn frames(mut stream: &[u8]) -> Frames {
    let mut all = Frames::new();
    while let Ok(Some(frame)) = first(stream) {
        all.push((frame.kind, frame.process, frame.payload.to_vec()));
        stream = &stream[frame.wire_len()..];
    }
    all
}

/// The same through a queue, as both ends receive them.
fn in_pieces(stream: &[u8], pieces: &[u8]) -> Frames {
    let mut buffer = Box::new(Buffer::<{ HEADER + MAX_PAYLOAD }>::new());
    let mut all = Frames::new();
    let mut rest = stream;
    let mut pieces = pieces.iter().cycle();
    while !rest.is_empty() {
        let len = pieces
            .next()
            .map_or(rest.len(), |len| usize::from(*len) + 1);
        let len = len.min(rest.len()).min(buffer.room());
        assert!(buffer.push(&rest[..len]));
        rest = &rest[len..];
        loop {
            let data = buffer.data();
            let Ok(Some(frame)) = first(data) else {
                if first(data).is_err() {
                    return all;
                }
                break;
            };
            all.push((frame.kind, frame.process, frame.payload.to_vec()));
            let len = frame.wire_len();
            buffer.consume(len);
        }
    }
    all
}
