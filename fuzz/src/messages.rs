//! Messages between hull and the init of its guest, as either end decodes them.

use std::ffi::{CStr, CString};

use arbitrary::Arbitrary;
use hull_agent::frame::{HEADER, MAX_PAYLOAD, first, header};
use hull_agent::{
    Buffer, Command, CommandHeader, Exit, FromGuest, FromHost, Interface, Limit, MAX_GROUPS,
    MAX_PROCESSES, Mount, MountKind, Output, RESOURCES, Resumed, Root, WindowSize,
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
    flags: u8,
    messages: Vec<(u8, Message)>,
    /// A message of so many bytes more or less than the most.
    long: Option<i8>,
}

/// A message, which an end may refuse to encode.
#[derive(Arbitrary, Debug)]
enum Message {
    Guest(Guest),
    Host(Host),
}

#[derive(Arbitrary, Debug)]
enum Guest {
    Hello(u32),
    Ready,
    Output(bool, Vec<u8>),
    Ack(u32),
    Exit(u8, u32),
    Error(Vec<u8>),
    Suspend,
    Started,
}

#[derive(Arbitrary, Debug)]
enum Host {
    Exec(bool, Vec<u8>),
    Stdin(Vec<u8>),
    StdinClose,
    Resize(u16, u16),
    Signal(u8),
    Goodbye,
    Mount(u8, bool, Text, Text),
    Interface([u8; 6], u32, u8, [Option<u32>; 2], Option<u8>),
    Resumed(u64, [u8; 32], u8, u8),
    OutputClose(bool),
    Ack(u32),
    Root(bool, [Text; 6]),
}

/// A string without a NUL, mostly one that is needed.
#[derive(Arbitrary, Debug)]
enum Text {
    Known(u8),
    Path(u8, Vec<u8>),
    Any(Vec<u8>),
    /// Of so many letters.
    Long(u16),
}

impl Text {
    fn string(&self) -> CString {
        let known = [
            "",
            "vda",
            "tag",
            "/",
            "/mnt/a",
            "host",
            "/a/../b",
            "//a",
            "127.0.0.1 a\n",
        ];
        let bytes = match self {
            Self::Known(index) => known[usize::from(*index) % known.len()].into(),
            Self::Path(cut, name) => [&b"/a/"[..usize::from(cut % 4)], &name[..]].concat(),
            Self::Any(bytes) => bytes.clone(),
            Self::Long(len) => vec![b'a'; usize::from(len % 33_000)],
        };
        let bytes: Vec<u8> = bytes.into_iter().filter(|byte| *byte != 0).collect();
        CString::new(bytes).unwrap()
    }
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
    for (process, message) in &input.messages {
        let process = process % MAX_PROCESSES as u8;
        match message {
            Message::Guest(message) => guest(message, process),
            Message::Host(message) => host(message, process),
        }
    }
    if let Some(more) = input.long {
        long(more);
    }
    for (kind, process, payload) in &whole {
        let bytes = [&header(*kind, *process, payload.len())[..], payload].concat();
        let frame = first(&bytes).unwrap().unwrap();
        let mut again = vec![0; HEADER + MAX_PAYLOAD];
        for error in [
            FromGuest::decode(frame).err(),
            FromHost::decode(frame).err(),
        ] {
            assert!(error.is_none_or(|error| !error.to_string().is_empty()));
        }
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
        report_start: input.flags & 1 != 0,
        own: input.flags & 2 != 0,
        capabilities: u64::from(input.flags) << 8,
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

/// Whether it is a command; then it has what it states, and nothing else.
fn command(body: &[u8]) -> bool {
    let Ok(command) = Command::decode(body) else {
        return false;
    };
    let header = command.header;
    assert_eq!(command.argv().count(), header.argc as usize);
    assert_eq!(command.env().count(), header.envc as usize);
    assert_eq!(command.groups().count(), usize::from(header.groups));
    assert_eq!(command.limits().count(), usize::from(header.limits));
    let mut again = header.encode().to_vec();
    again.extend(command.groups().flat_map(u32::to_le_bytes));
    again.extend(command.limits().flat_map(|limit| limit.encode()));
    let strings = [command.cwd(), command.user()].into_iter();
    for string in strings.chain(command.argv()).chain(command.env()) {
        again.extend(string.to_bytes_with_nul());
    }
    assert!(again == body, "a part of it is lost");
    assert!(header.argc > 0);
    true
}

/// Encode a message of the guest's, and decode it.
fn guest(message: &Guest, process: u8) {
    let exit = |kind: u8, value: u32| match kind % 5 {
        0 => Exit::Exited(value as u8),
        1 => Exit::Signalled((value % 64) as u8 + 1),
        2 => Exit::NotExecutable(value),
        3 => Exit::NotFound(value),
        _ => Exit::Error(value),
    };
    let message = match message {
        Guest::Hello(version) => FromGuest::Hello { version: *version },
        Guest::Ready => FromGuest::Ready,
        Guest::Output(true, bytes) => FromGuest::Stdout(bytes),
        Guest::Output(false, bytes) => FromGuest::Stderr(bytes),
        Guest::Ack(count) => FromGuest::StdinAck(*count),
        Guest::Exit(kind, value) => FromGuest::Exit(exit(*kind, *value)),
        Guest::Error(text) => FromGuest::Error(text),
        Guest::Suspend => FromGuest::Suspend,
        Guest::Started => FromGuest::Started,
    };
    let of_machine = matches!(message, FromGuest::Hello { .. } | FromGuest::Ready);
    let mut bytes = vec![0; HEADER + MAX_PAYLOAD];
    let len = message.encode_for(process, &mut bytes).unwrap();
    let frame = first(&bytes[..len]).unwrap().unwrap();
    assert_eq!((frame.process, frame.wire_len()), (process, len));
    match FromGuest::decode(frame) {
        Ok(again) => assert_eq!(again, message),
        Err(error) => assert!(of_machine && process > 0, "{error}"),
    }
    if let FromGuest::Exit(exit) = message {
        let status = exit.status();
        match exit {
            Exit::Exited(code) => assert_eq!(status, code),
            Exit::Signalled(signal) => assert_eq!(status, 128 + signal),
            _ => assert!((125..=127).contains(&status)),
        }
    }
    // Without room there is no part of it.
    assert_eq!(message.encode(&mut bytes[..len - 1]), None);
}

/// Encode a message of the host's, and decode it.
fn host(message: &Host, process: u8) {
    let strings: Vec<CString> = match message {
        Host::Mount(_, _, tag, path) => [tag, path].map(Text::string).into(),
        Host::Root(_, strings) => strings.each_ref().map(Text::string).into(),
        _ => Vec::new(),
    };
    let output = |first: &bool| {
        if *first {
            Output::Stdout
        } else {
            Output::Stderr
        }
    };
    let kinds = [MountKind::Share, MountKind::Memory, MountKind::Disk];
    let message = match message {
        Host::Exec(true, bytes) => FromHost::Exec(bytes),
        Host::Exec(false, bytes) => FromHost::ExecPart(bytes),
        Host::Stdin(bytes) => FromHost::Stdin(bytes),
        Host::StdinClose => FromHost::StdinClose,
        Host::Resize(rows, cols) => FromHost::Resize(WindowSize {
            rows: *rows,
            cols: *cols,
        }),
        Host::Signal(signal) => FromHost::Signal(signal % 64 + 1),
        Host::Goodbye => FromHost::Goodbye,
        Host::Mount(kind, read_only, ..) => FromHost::Mount(Mount {
            kind: kinds[usize::from(*kind) % kinds.len()],
            read_only: *read_only,
            tag: &strings[0],
            path: &strings[1],
        }),
        Host::Interface(mac, address, prefix, others, index) => {
            let [gateway, dns] = others.map(|other| other.map(|it| (it | 1).to_be_bytes()));
            let interface = Interface {
                mac: *mac,
                address: (address | 1).to_be_bytes(),
                prefix: prefix % 32 + 1,
                gateway,
                dns,
                index: index.map(|index| index % 255),
            };
            let mask = u32::from_be_bytes(interface.netmask());
            assert_eq!(mask.leading_ones(), u32::from(interface.prefix));
            assert_eq!(mask.count_ones(), u32::from(interface.prefix));
            FromHost::Interface(interface)
        }
        Host::Resumed(unix_ns, entropy, first_slot, slots) => FromHost::Resumed(Resumed {
            unix_ns: *unix_ns,
            entropy: *entropy,
            first_slot: *first_slot,
            slots: slots.min(&(255 - first_slot)).to_owned(),
        }),
        Host::OutputClose(first) => FromHost::OutputClose(output(first)),
        Host::Ack(cost) => FromHost::OutputAck(*cost),
        Host::Root(read_only, _) => FromHost::Root(Root {
            read_only: *read_only,
            disk: &strings[0],
            upper: &strings[1],
            hostname: &strings[2],
            workdir: &strings[3],
            resolver: &strings[4],
            hosts: &strings[5],
        }),
    };
    let right = match &message {
        FromHost::Mount(mount) => mounts(mount.tag, mount.path),
        FromHost::Root(root) => roots(root),
        _ => true,
    };
    let mut bytes = vec![0; HEADER + MAX_PAYLOAD];
    let len = message.encode_for(process, &mut bytes);
    assert_eq!(len.is_some(), right, "{message:?}");
    let Some(len) = len else {
        return;
    };
    if let FromHost::Root(root) = &message {
        assert_eq!(root.wire_len() + HEADER, len);
    }
    let frame = first(&bytes[..len]).unwrap().unwrap();
    let of_machine = matches!(
        message,
        FromHost::Goodbye | FromHost::Mount(_) | FromHost::Interface(_) | FromHost::Resumed(_)
    );
    match FromHost::decode(frame) {
        Ok(again) => assert_eq!(again, message),
        Err(error) => assert!(of_machine && process > 0, "{error}"),
    }
    assert_eq!(message.encode(&mut bytes[..len - 1]), None);
}

/// Whether there can be such a mount: its path is absolute and goes down alone.
fn mounts(tag: &CStr, path: &CStr) -> bool {
    let path = path.to_bytes();
    let down = path
        .split(|byte| *byte == b'/')
        .all(|part| part != b"." && part != b"..");
    let absolute = path.starts_with(b"/") && !path.starts_with(b"//");
    (1..=36).contains(&tag.count_bytes()) && absolute && down && path.len() < 4096
}

/// Whether there can be such a root.
fn roots(root: &Root) -> bool {
    let device = |name: &CStr| {
        let name = name.to_bytes();
        name.len() < 16 && name.iter().all(u8::is_ascii_alphanumeric)
    };
    let workdir = root.workdir.to_bytes();
    !root.disk.is_empty()
        && device(root.disk)
        && device(root.upper)
        && (1..=64).contains(&root.hostname.count_bytes())
        && (workdir.is_empty() || workdir.starts_with(b"/") && workdir.len() < 4096)
        && root.resolver.count_bytes() <= 4 << 10
        && root.hosts.count_bytes() <= 32 << 10
}

/// Messages of about the most bytes.
fn long(more: i8) {
    let len = MAX_PAYLOAD.saturating_add_signed((more / 16).into());
    let bytes = vec![0; HEADER + len];
    let mut out = vec![0; HEADER + len];
    let fits = len <= MAX_PAYLOAD;
    let encoded = FromHost::Stdin(&bytes[..len]).encode(&mut out);
    assert_eq!(encoded.is_some(), fits);
    let head = header(0x83, 0, len);
    assert_eq!(first(&head).is_ok(), fits);
    out[..HEADER].copy_from_slice(&head);
    if let Ok(frame) = first(&out) {
        assert_eq!(frame.map(|frame| frame.payload.len()), Some(len));
        assert_eq!(first(&out[..HEADER + len - 1]), Ok(None));
    }
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
