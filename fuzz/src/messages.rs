//! Messages between hull and the init of its guest, as either end decodes them.

use arbitrary::Arbitrary;
use hull_agent::frame::{HEADER, MAX_PAYLOAD, first, header};
use hull_agent::{Buffer, Command, CommandHeader, FromGuest, FromHost, WindowSize};

/// Bytes of a channel, and a command.
#[derive(Arbitrary, Debug)]
pub struct Input {
    frames: Vec<(u8, Vec<u8>)>,
    bytes: Vec<u8>,
    pieces: Vec<u8>,
    tty: Option<(u16, u16)>,
    counts: Option<(u32, u32)>,
    strings: Vec<Vec<u8>>,
}

/// Decode them.
pub fn check(input: &Input) {
    let mut stream = Vec::new();
    for (kind, payload) in &input.frames {
        // Mostly a kind that exists.
        let kind = if kind % 32 < 12 { kind & 0x8f } else { *kind };
        stream.extend(header(kind, payload.len()));
        stream.extend(payload);
    }
    stream.extend(&input.bytes);
    let whole = frames(&stream);
    assert_eq!(in_pieces(&stream, &input.pieces), whole);
    for (kind, payload) in &whole {
        let bytes = [&header(*kind, payload.len())[..], payload].concat();
        let frame = first(&bytes).unwrap().unwrap();
        let mut again = vec![0; HEADER + MAX_PAYLOAD];
        if let Ok(message) = FromGuest::decode(frame) {
            let len = message.encode(&mut again).unwrap();
            let frame = first(&again[..len]).unwrap().unwrap();
            assert_eq!(FromGuest::decode(frame), Ok(message));
        }
        if let Ok(message) = FromHost::decode(frame) {
            let len = message.encode(&mut again).unwrap();
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
    let mut body = CommandHeader { tty, argc, envc }.encode().to_vec();
    for string in &input.strings {
        body.extend(string.iter().filter(|byte| **byte != 0));
        body.push(0);
    }
    let valid = command(&body);
    if input.counts.is_none() && input.strings.len() > 2 {
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

type Frames = Vec<(u8, Vec<u8>)>;

/// The frames of `stream` up to its end or to the first that is too long.
fn frames(mut stream: &[u8]) -> Frames {
    let mut all = Frames::new();
    while let Ok(Some(frame)) = first(stream) {
        all.push((frame.kind, frame.payload.to_vec()));
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
            all.push((frame.kind, frame.payload.to_vec()));
            let len = frame.wire_len();
            buffer.consume(len);
        }
    }
    all
}
