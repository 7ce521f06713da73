//! The session against a guest that plays by the rules, and against ones that do not.

use proptest::prelude::*;

use super::*;

fn session() -> Session {
    Session::new(Exec {
        argv: vec!["true".into()],
        ..Exec::default()
    })
    .unwrap()
}

fn wire(messages: &[FromGuest<'_>]) -> Vec<u8> {
    let mut all = Vec::new();
    let mut frame = vec![0; frame::HEADER + frame::MAX_PAYLOAD];
    for message in messages {
        let len = message.encode(&mut frame).unwrap();
        all.extend_from_slice(&frame[..len]);
    }
    all
}

const GREETING: [FromGuest<'static>; 2] = [FromGuest::Hello { version: VERSION }, FromGuest::Ready];

fn running() -> Session {
    let mut session = session();
    session.receive(&wire(&GREETING)).unwrap();
    assert_eq!(session.next_event(), Some(Event::Ready));
    session.sent(session.outgoing().len());
    session
}

/// All that waits for the guest, as names and bytes of input.
fn told(session: &mut Session) -> Vec<String> {
    let bytes = session.outgoing().to_vec();
    session.sent(bytes.len());
    let (mut rest, mut told) = (&bytes[..], Vec::new());
    while let Some(frame) = frame::first(rest).unwrap() {
        rest = &rest[frame.wire_len()..];
        told.push(match FromHost::decode(frame).unwrap() {
            FromHost::Stdin(bytes) => format!("Stdin {}", bytes.len()),
            FromHost::Exec(_) => "Exec".into(),
            other => format!("{other:?}"),
        });
    }
    told
}

#[test]
fn a_command_runs_and_its_output_and_status_come_out() {
    let mut session = session();
    assert_eq!(
        session.outgoing(),
        b"",
        "a port drops what comes before it is open"
    );
    session.receive(&wire(&GREETING)).unwrap();
    assert_eq!(told(&mut session), ["Exec"]);
    let said = [
        FromGuest::Stdout(b"on"),
        FromGuest::Stdout(b"e"),
        FromGuest::Stderr(b"two"),
        FromGuest::Exit(Exit::Signalled(9)),
    ];
    for byte in wire(&said) {
        session.receive(&[byte]).unwrap();
    }
    let events: Vec<Event> = std::iter::from_fn(|| session.next_event()).collect();
    let expected = [
        Event::Ready,
        Event::Stdout(b"one".to_vec()),
        Event::Stderr(b"two".to_vec()),
        Event::Exited(137),
    ];
    assert_eq!(events, expected);
    assert_eq!(session.exit(), Some(Exit::Signalled(9)));
    assert_eq!(told(&mut session), ["Goodbye"]);
}

#[test]
fn input_keeps_to_the_window() {
    let mut session = running();
    let data = vec![7; STDIN_WINDOW + 1];
    assert_eq!(session.send_stdin(&data), STDIN_WINDOW);
    assert_eq!((session.stdin_room(), session.send_stdin(&data)), (0, 0));
    session.receive(&wire(&[FromGuest::StdinAck(100)])).unwrap();
    assert_eq!(session.send_stdin(&data), 100);
    session.close_stdin();
    session.sent(frame::HEADER + STDIN_WINDOW);
    assert_eq!(told(&mut session), ["Stdin 100", "StdinClose"]);
    assert_eq!(session.stdin_room(), 0);
    let acked = STDIN_WINDOW as u32 + 1;
    let sent = STDIN_WINDOW;
    assert_eq!(
        session.receive(&wire(&[FromGuest::StdinAck(acked)])),
        Err(AgentError::FalseAck { acked, sent })
    );
}

#[test]
fn what_is_asked_before_the_guest_is_ready_follows_the_command() {
    let mut session = session();
    session.close_stdin();
    session.signal(15);
    session.signal(15);
    session.signal(0);
    for rows in 1..100 {
        session.resize(WindowSize { rows, cols: 80 });
    }
    assert_eq!((session.outgoing(), session.stdin_room()), (&b""[..], 0));
    session.receive(&wire(&GREETING)).unwrap();
    let size = "Resize(WindowSize { rows: 99, cols: 80 })";
    assert_eq!(
        told(&mut session),
        ["Exec", size, "Signal(15)", "StdinClose"]
    );
}

#[test]
fn a_channel_that_takes_nothing_cannot_make_the_queue_grow() {
    let mut session = running();
    session.send_stdin(&vec![0; STDIN_WINDOW]);
    for n in 0..1_000_000u32 {
        session.signal((n % 70) as u8);
        session.resize(WindowSize { rows: 1, cols: 2 });
    }
    assert!(session.outgoing().len() < 2 * OUTGOING_FULL);
}

#[test]
fn messages_out_of_turn_end_the_session() {
    let hello = FromGuest::Hello { version: VERSION };
    let exit = FromGuest::Exit(Exit::Exited(0));
    for (before, message, name) in [
        (&[][..], FromGuest::Ready, "Ready"),
        (&[], FromGuest::Stdout(b"x"), "Stdout"),
        (&[hello], FromGuest::Exit(Exit::Exited(0)), "Exit"),
        (&[hello], hello, "Hello"),
        (&[hello, FromGuest::Ready], FromGuest::Ready, "Ready"),
        (
            &[hello, FromGuest::Ready, exit],
            FromGuest::Stderr(b"x"),
            "Stderr",
        ),
        (
            &[hello, FromGuest::Ready, exit],
            FromGuest::Error(b"x"),
            "Error",
        ),
    ] {
        let mut session = session();
        session.receive(&wire(before)).unwrap();
        let message = wire(&[message]);
        let error = AgentError::OutOfTurn { message: name };
        assert_eq!(session.receive(&message), Err(error));
        assert_eq!(session.receive(&message), Err(AgentError::Ended));
    }
    let version = VERSION + 1;
    assert_eq!(
        session().receive(&wire(&[FromGuest::Hello { version }])),
        Err(AgentError::Version { version })
    );
}

#[test]
fn a_caller_that_takes_no_events_is_told_to() {
    let mut session = running();
    let chunk = wire(&[FromGuest::Stdout(&[b'x'; 60_000])]);
    while session.receive_room() >= chunk.len() {
        session.receive(&chunk).unwrap();
    }
    assert!(session.buffered <= MAX_BUFFERED);
    let stuck = vec![0; session.receive_room() + 1];
    assert!(matches!(
        session.receive(&stuck),
        Err(AgentError::NoRoom { .. })
    ));
}

#[test]
fn texts_of_the_guest_cannot_drive_the_terminal() {
    let mut session = session();
    session
        .receive(&wire(&[FromGuest::Error(b"\x1b[2Jno\xff\n")]))
        .unwrap();
    let text = " [2Jno\u{fffd} ".into();
    assert_eq!(session.next_event(), Some(Event::Error(text)));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_stay_bounded(
        greet: bool, chunks in proptest::collection::vec(
            (0..9u8, proptest::collection::vec(any::<u8>(), 0..40)), 0..60,
        ),
    ) {
        let mut session = if greet { running() } else { session() };
        for (kind, payload) in chunks {
            let mut bytes = frame::header(kind, payload.len()).to_vec();
            bytes.extend_from_slice(&payload);
            if session.receive(&bytes).is_err() {
                break;
            }
            prop_assert!(session.partial.len() <= frame::HEADER + frame::MAX_PAYLOAD);
        }
        while session.next_event().is_some() {}
        prop_assert_eq!(session.buffered, 0);
        prop_assert_eq!(session.receive_room(), MAX_BUFFERED);
    }

    #[test]
    fn output_is_the_same_however_it_is_cut(cuts in proptest::collection::vec(1..9000usize, 1..40)) {
        let output: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(n) >> 5) as u8).collect();
        let messages: Vec<_> = output.chunks(frame::MAX_PAYLOAD).map(FromGuest::Stdout).collect();
        let bytes = wire(&messages);
        let (mut session, mut rest, mut got) = (running(), &bytes[..], Vec::new());
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            session.receive(now).unwrap();
            while let Some(Event::Stdout(bytes)) = session.next_event() {
                got.extend(bytes);
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(got == output);
    }
}
