//! Every message survives the way through bytes, and no bytes make the decoders panic.

use std::ffi::CString;

use hull_agent::{
    Command, CommandHeader, Error, Exit, FromGuest, FromHost, Interface, Limit, MAX_GROUPS,
    MAX_PROCESSES, Mount, MountKind, Output, RESOURCES, Resumed, Root, WindowSize, frame,
};
use proptest::prelude::*;

fn exits() -> impl Strategy<Value = Exit> {
    prop_oneof![
        any::<u8>().prop_map(Exit::Exited),
        (1..=64u8).prop_map(Exit::Signalled),
        any::<u32>().prop_map(Exit::NotExecutable),
        any::<u32>().prop_map(Exit::NotFound),
        any::<u32>().prop_map(Exit::Error),
    ]
}

fn interfaces() -> impl Strategy<Value = Interface> {
    let address = || (1..=u32::MAX).prop_map(u32::to_be_bytes);
    let maybe = || proptest::option::of(address());
    let index = proptest::option::of(0..255u8);
    (
        any::<[u8; 6]>(),
        address(),
        1..=32u8,
        maybe(),
        maybe(),
        index,
    )
        .prop_map(|(mac, address, prefix, gateway, dns, index)| Interface {
            mac,
            address,
            prefix,
            gateway,
            dns,
            index,
        })
}

fn resumptions() -> impl Strategy<Value = Resumed> {
    let slots = (0..=u8::MAX).prop_flat_map(|first| (Just(first), 0..=u8::MAX - first));
    (any::<u64>(), any::<[u8; 32]>(), slots).prop_map(|(unix_ns, entropy, slots)| Resumed {
        unix_ns,
        entropy,
        first_slot: slots.0,
        slots: slots.1,
    })
}

fn mount_kinds() -> impl Strategy<Value = MountKind> {
    prop_oneof![
        Just(MountKind::Share),
        Just(MountKind::Memory),
        Just(MountKind::Disk)
    ]
}

/// Encode, cut the bytes at `cut`, and decode again.
fn through_bytes(encode: impl Fn(&mut [u8]) -> Option<usize>, cut: usize) -> (Vec<u8>, usize) {
    let mut bytes = vec![0; frame::HEADER + frame::MAX_PAYLOAD];
    let len = encode(&mut bytes).expect("fits");
    bytes.truncate(len);
    let short = &bytes[..cut % len];
    assert_eq!(frame::first(short), Ok(None), "a part is no frame");
    (bytes, len)
}

proptest! {
    #[test]
    fn what_the_guest_says_arrives(
        data in proptest::collection::vec(any::<u8>(), 0..300),
        number: u32, exit in exits(), cut: usize,
    ) {
        for message in [
            FromGuest::Hello { version: number },
            FromGuest::Ready,
            FromGuest::Stdout(&data),
            FromGuest::Stderr(&data),
            FromGuest::StdinAck(number),
            FromGuest::Exit(exit),
            FromGuest::Error(&data),
            FromGuest::Suspend,
            FromGuest::Started,
        ] {
            let (bytes, len) = through_bytes(|out| message.encode(out), cut);
            let frame = frame::first(&bytes).unwrap().unwrap();
            prop_assert_eq!(frame.wire_len(), len);
            prop_assert_eq!(FromGuest::decode(frame), Ok(message));
            prop_assert!(FromHost::decode(frame).is_err(), "directions never mix");
        }
    }

    #[test]
    fn what_the_host_says_arrives(
        data in proptest::collection::vec(any::<u8>(), 0..300),
        rows: u16, cols: u16, signal in 1..=64u8, interface in interfaces(),
        resumed in resumptions(), ack: u32, cut: usize,
    ) {
        for message in [
            FromHost::ExecPart(&data),
            FromHost::Exec(&data),
            FromHost::Stdin(&data),
            FromHost::StdinClose,
            FromHost::Resize(WindowSize { rows, cols }),
            FromHost::Signal(signal),
            FromHost::Goodbye,
            FromHost::OutputClose(Output::Stdout),
            FromHost::OutputClose(Output::Stderr),
            FromHost::OutputAck(ack),
            FromHost::Interface(interface),
            FromHost::Resumed(resumed),
        ] {
            let (bytes, len) = through_bytes(|out| message.encode(out), cut);
            let frame = frame::first(&bytes).unwrap().unwrap();
            prop_assert_eq!(frame.wire_len(), len);
            prop_assert_eq!(FromHost::decode(frame), Ok(message));
            prop_assert!(FromGuest::decode(frame).is_err(), "directions never mix");
        }
    }

    #[test]
    fn a_mount_arrives(
        kind in mount_kinds(), read_only: bool, tag in "[^\0]{1,9}", path in "(/[^\0/.]{1,20}){1,5}/?", cut: usize,
    ) {
        let (tag, path) = (CString::new(tag).unwrap(), CString::new(path).unwrap());
        let message = FromHost::Mount(Mount { kind, read_only, tag: &tag, path: &path });
        let (bytes, len) = through_bytes(|out| message.encode(out), cut);
        let frame = frame::first(&bytes).unwrap().unwrap();
        prop_assert_eq!(frame.wire_len(), len);
        prop_assert_eq!(FromHost::decode(frame), Ok(message));
        let short = frame::Frame { payload: &frame.payload[..cut % frame.payload.len()], ..frame };
        prop_assert!(FromHost::decode(short).is_err(), "a part is no mount");
    }

    #[test]
    fn a_root_arrives(
        read_only: bool, disk in "[a-z0-9]{1,15}", upper in "[a-z0-9]{0,15}",
        hostname in "[a-z-]{1,64}", workdir in "(/[^\0]{0,300})?", hosts in "[^\0]{0,300}",
        resolver in "[^\0]{0,300}", cut: usize,
    ) {
        let [disk, upper, hostname, workdir, resolver, hosts] =
            [disk, upper, hostname, workdir, resolver, hosts].map(|text| CString::new(text).unwrap());
        let root = Root {
            read_only, disk: &disk, upper: &upper, hostname: &hostname, workdir: &workdir,
            resolver: &resolver, hosts: &hosts,
        };
        let message = FromHost::Root(root);
        let (bytes, len) = through_bytes(|out| message.encode(out), cut);
        let frame = frame::first(&bytes).unwrap().unwrap();
        prop_assert_eq!(frame.wire_len(), len);
        prop_assert_eq!(root.wire_len(), frame.payload.len());
        prop_assert_eq!(FromHost::decode(frame), Ok(message));
        let short = frame::Frame { payload: &frame.payload[..cut % frame.payload.len()], ..frame };
        prop_assert!(FromHost::decode(short).is_err(), "a part is no root");
    }

    #[test]
    fn a_command_arrives(
        argv in proptest::collection::vec("[^\0]{0,20}", 1..8),
        env in proptest::collection::vec("[^\0]{0,20}", 0..8),
        cwd in "[^\0]{0,20}",
        user in "[^\0]{0,20}",
        tty in proptest::option::of((any::<u16>(), any::<u16>())),
        report_start: bool, own: bool, capabilities: u64,
        groups in proptest::collection::vec(any::<u32>(), 0..=MAX_GROUPS),
        limits in proptest::collection::vec((0..RESOURCES as u8, any::<u64>(), any::<u64>()), 0..=RESOURCES),
    ) {
        let limits: Vec<Limit> =
            limits.into_iter().map(|(resource, soft, hard)| Limit { resource, soft, hard }).collect();
        let header = CommandHeader {
            tty: tty.map(|(rows, cols)| WindowSize { rows, cols }),
            report_start,
            own,
            argc: argv.len() as u32,
            envc: env.len() as u32,
            capabilities,
            groups: groups.len() as u8,
            limits: limits.len() as u8,
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend(groups.iter().flat_map(|group| group.to_le_bytes()));
        bytes.extend(limits.iter().flat_map(Limit::encode));
        for string in [&cwd, &user].into_iter().chain(&argv).chain(&env) {
            bytes.extend_from_slice(string.as_bytes());
            bytes.push(0);
        }
        let command = Command::decode(&bytes).unwrap();
        prop_assert_eq!(command.header, header);
        prop_assert_eq!(command.groups().collect::<Vec<_>>(), groups);
        prop_assert_eq!(command.limits().collect::<Vec<_>>(), limits);
        prop_assert_eq!(command.cwd().to_bytes(), cwd.as_bytes());
        prop_assert_eq!(command.user().to_bytes(), user.as_bytes());
        let strings = |list: &[String]| list.iter().map(|s| s.clone().into_bytes()).collect::<Vec<_>>();
        prop_assert_eq!(command.argv().map(|s| s.to_bytes().to_vec()).collect::<Vec<_>>(), strings(&argv));
        prop_assert_eq!(command.env().map(|s| s.to_bytes().to_vec()).collect::<Vec<_>>(), strings(&env));
        bytes.pop();
        prop_assert!(Command::decode(&bytes).is_err(), "the last NUL is missing");
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind: u8, process: u8) {
        if let Ok(Some(frame)) = frame::first(&bytes) {
            let _ = (FromGuest::decode(frame), FromHost::decode(frame));
        }
        let frame = frame::Frame { kind, process, payload: &bytes };
        let _ = (FromGuest::decode(frame), FromHost::decode(frame));
        if let Ok(command) = Command::decode(&bytes) {
            prop_assert_eq!(command.argv().count(), command.header.argc as usize);
            prop_assert_eq!(command.env().count(), command.header.envc as usize);
        }
    }
}

#[test]
fn an_invalid_mount_is_neither_sent_nor_accepted() {
    let long = "x".repeat(4096);
    for (tag, path) in [
        ("", "/a"),
        (&long[..37], "/a"),
        ("t", ""),
        ("t", "a"),
        ("t", "//"),
        ("t", "/a/../b"),
        ("t", "/./a"),
        ("t", &format!("/{long}")),
    ] {
        let payload = format!("\0{tag}\0{path}\0");
        let frame = frame::Frame {
            kind: 0x88,
            process: 0,
            payload: payload.as_bytes(),
        };
        let decoded = FromHost::decode(frame);
        assert!(matches!(decoded, Err(Error::WrongMount(_))), "{tag} {path}");
        let (tag, path) = (CString::new(tag).unwrap(), CString::new(path).unwrap());
        let message = FromHost::Mount(Mount {
            kind: MountKind::Share,
            read_only: false,
            tag: &tag,
            path: &path,
        });
        assert_eq!(message.encode(&mut [0; 9000]), None);
    }
    for payload in [
        &b""[..],
        b"\x06t\0/a\0",
        b"\x08t\0/a\0",
        b"\0t\0/a\0\0",
        b"\0t\0/a",
        b"\0t",
    ] {
        let frame = frame::Frame {
            kind: 0x88,
            process: 0,
            payload,
        };
        assert!(FromHost::decode(frame).is_err(), "{payload:?}");
    }
}

#[test]
fn an_invalid_root_is_not_accepted() {
    for payload in [
        &b""[..],
        b"\x02vda\0\0h\0\0\0\0",
        b"\0\0\0h\0\0\0\0",
        b"\0v/a\0\0h\0\0\0\0",
        b"\0vda\0..\0h\0\0\0\0",
        b"\0vda\0\0\0\0\0\0",
        b"\0vda\0\0h\0a\0\0\0",
        b"\0vda\0\0h\0\0\0",
        b"\0vda\0\0h\0\0\0\0\0",
    ] {
        let frame = frame::Frame {
            process: 0,
            kind: 0x8c,
            payload,
        };
        let decoded = FromHost::decode(frame);
        assert!(matches!(decoded, Err(Error::WrongRoot(_))), "{payload:?}");
    }
    let payload = &b"\0vda\0\0h\0\0\0\0"[..];
    let frame = frame::Frame {
        process: 0,
        kind: 0x8c,
        payload,
    };
    assert!(FromHost::decode(frame).is_ok(), "none of these faults");
}

#[test]
fn invalid_messages_are_errors() {
    let long = frame::header(0x03, 0, frame::MAX_PAYLOAD + 1);
    assert_eq!(
        frame::first(&long),
        Err(Error::FrameTooLong { len: 65537 }),
        "told before the payload is there"
    );
    let decode = |kind, payload| {
        FromGuest::decode(frame::Frame {
            kind,
            process: 0,
            payload,
        })
    };
    assert_eq!(decode(0x01, b"HALL\x01\0\0\0"), Err(Error::WrongMagic));
    assert_eq!(decode(0x06, &[0, 0, 1, 0, 0]), Err(Error::WrongExit));
    assert_eq!(decode(0x06, &[1, 65, 0, 0, 0]), Err(Error::WrongExit));
    assert_eq!(
        decode(0x02, b"x"),
        Err(Error::WrongLength { kind: 2, len: 1 })
    );
    let interface = |payload: &[u8]| {
        let kind = 0x89;
        FromHost::decode(frame::Frame {
            kind,
            process: 0,
            payload,
        })
        .map(drop)
    };
    let with_prefix = |prefix| {
        let mut bytes = [1; 20];
        bytes[10] = prefix;
        interface(&bytes)
    };
    assert_eq!(with_prefix(32), Ok(()));
    assert_eq!(with_prefix(0), Err(Error::WrongInterface));
    assert_eq!(with_prefix(33), Err(Error::WrongInterface));
    assert_eq!(interface(&[1; 21]), Err(Error::WrongInterface));
    assert_eq!(interface(&[1; 19]), Err(Error::WrongInterface));
    let resumed = |payload: &[u8]| {
        let kind = 0x8a;
        FromHost::decode(frame::Frame {
            kind,
            process: 0,
            payload,
        })
        .map(drop)
    };
    assert_eq!(resumed(&[127; 42]), Ok(()));
    assert_eq!(resumed(&[128; 42]), Err(Error::WrongResumed), "256 windows");
    assert_eq!(resumed(&[0; 41]), Err(Error::WrongResumed));
    assert_eq!(resumed(&[0; 43]), Err(Error::WrongResumed));
    assert_eq!(decode(0x0a, b""), Err(Error::UnknownKind { kind: 10 }));
}

#[test]
fn a_message_that_does_not_fit_is_not_written() {
    let big = vec![0; frame::MAX_PAYLOAD + 1];
    let mut out = vec![0; 2 * frame::MAX_PAYLOAD];
    assert_eq!(FromGuest::Stdout(&big).encode(&mut out), None);
    assert_eq!(FromGuest::Ready.encode(&mut [0; 4]), None);
}

#[test]
fn a_frame_is_about_one_process_and_some_about_the_machine_alone() {
    let mut bytes = [0; 16];
    let last = MAX_PROCESSES as u8 - 1;
    let len = FromHost::Signal(9).encode_for(last, &mut bytes).unwrap();
    let frame = frame::first(&bytes[..len]).unwrap().unwrap();
    assert_eq!((frame.process, frame.payload), (last, &[9][..]));
    let unknown = FromHost::Signal(9).encode_for(last + 1, &mut bytes);
    let process = last + 1;
    assert_eq!(
        frame::first(&bytes[..unknown.unwrap()]),
        Err(Error::UnknownProcess { process })
    );
    let (kind, process) = (0x87, 1);
    let goodbye = frame::Frame {
        kind,
        process,
        payload: &[],
    };
    assert_eq!(
        FromHost::decode(goodbye),
        Err(Error::UnknownProcess { process })
    );
    let ready = frame::Frame {
        kind: 0x02,
        ..goodbye
    };
    assert_eq!(
        FromGuest::decode(ready),
        Err(Error::UnknownProcess { process })
    );
}
