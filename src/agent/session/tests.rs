//! The session against a guest that plays by the rules, and against ones that do not.

use proptest::prelude::*;

use super::saved::SavedSession;
use super::*;
use crate::agent::ClientFault;

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

const RESUMED: Resumed = Resumed {
    unix_ns: 1_700_000_000_000_000_000,
    entropy: [7; 32],
    first_slot: 2,
    slots: 3,
};

fn network(last: u8) -> Interface {
    Interface {
        mac: [2, 0, 0, 0, 0, last],
        address: [192, 0, 2, last],
        prefix: 24,
        gateway: None,
        dns: None,
        index: Some(0),
    }
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
            FromHost::Resumed(resumed) => format!("Resumed {}", resumed.slots),
            FromHost::Interface(interface) => format!("Interface {}", interface.mac[5]),
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
        FromGuest::Stdout(b"one"),
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

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.next_event()).collect()
}

fn held() -> Session {
    let exec = Exec {
        argv: vec!["true".into()],
        networks: vec![network(1)],
        ..Exec::default()
    };
    let mut session = Session::waiting(exec).unwrap();
    session.signal(15);
    session.close_stdin();
    session.receive(&wire(&GREETING)).unwrap();
    session
}

#[test]
fn a_held_session_sends_nothing_before_it_is_started() {
    let mut session = held();
    assert!(session.is_held());
    assert_eq!(events(&mut session), [Event::Ready]);
    assert_eq!((told(&mut session).len(), session.stdin_room()), (0, 0));
    let mut other = held();
    other.start(None);
    let all = ["Interface 1", "Exec", "Signal(15)", "StdinClose"];
    assert_eq!(told(&mut other), all);

    session.start(Some(RESUMED));
    assert_eq!(told(&mut session), ["Resumed 3", "Interface 1", "Exec"]);
    session.receive(&wire(&[FromGuest::Ready])).unwrap();
    assert_eq!(told(&mut session), ["Signal(15)", "StdinClose"]);
    session
        .receive(&wire(&[FromGuest::Exit(Exit::Exited(3))]))
        .unwrap();
    let end = [Event::Ready, Event::Exited(3)];
    assert_eq!(events(&mut session), end[1..], "ready is told once");

    let mut early = Session::waiting(Exec {
        argv: vec!["true".into()],
        ..Exec::default()
    })
    .unwrap();
    early.start(None);
    early.receive(&wire(&GREETING)).unwrap();
    assert_eq!(told(&mut early), ["Exec"], "it is answered once");
}

#[test]
fn a_restored_session_says_all_at_once_and_wants_one_answer() {
    let exec = Exec {
        argv: vec!["true".into()],
        ..Exec::default()
    };
    let mut session = Session::restored(exec, RESUMED).unwrap();
    assert_eq!(told(&mut session), ["Resumed 3", "Exec"]);
    assert_eq!(events(&mut session), []);
    session.receive(&wire(&[FromGuest::Ready])).unwrap();
    assert_eq!(events(&mut session), [Event::Ready]);
    assert_eq!(session.stdin_room(), STDIN_WINDOW);
    let error = AgentError::OutOfTurn { message: "Ready" };
    assert_eq!(session.receive(&wire(&[FromGuest::Ready])), Err(error));
}

#[test]
fn a_clone_is_told_so_at_whatever_moment_it_was_saved() {
    let later = Resumed {
        slots: 0,
        ..RESUMED
    };
    let clone = |session: &Session| {
        let mut clone = Session::load(session.save()).unwrap();
        clone.resumed(later);
        clone.set_networks(&[network(9)]);
        clone
    };
    let mut greeting = clone(&session());
    assert_eq!(told(&mut greeting).len(), 0, "the session is not open yet");
    greeting.receive(&wire(&GREETING)).unwrap();
    assert_eq!(told(&mut greeting), ["Resumed 0", "Interface 9", "Exec"]);

    let mut waiting = clone(&held());
    assert_eq!(told(&mut waiting).len(), 0);
    waiting.start(None);
    assert_eq!(told(&mut waiting), ["Resumed 0", "Interface 9", "Exec"]);

    let mut resuming = held();
    resuming.start(Some(RESUMED));
    let again = [
        "Resumed 3",
        "Interface 1",
        "Exec",
        "Resumed 0",
        "Interface 9",
    ];
    assert_eq!(told(&mut clone(&resuming)), again);

    let mut busy = running();
    busy.send_stdin(b"input");
    let mut busy = clone(&busy);
    assert_eq!(told(&mut busy), ["Stdin 5", "Resumed 0", "Interface 9"]);
    let output = FromGuest::Stdout(b"out");
    let exit = FromGuest::Exit(Exit::Signalled(9));
    busy.receive(&wire(&[FromGuest::StdinAck(5), output, exit]))
        .unwrap();
    let end = [Event::Stdout(b"out".to_vec()), Event::Exited(137)];
    assert_eq!(events(&mut busy), end);

    let mut over = clone(&busy);
    assert_eq!(over.exit(), Some(Exit::Signalled(9)));
    assert_eq!(told(&mut over), ["Goodbye"]);
}

#[test]
fn a_guest_that_sends_more_than_it_may_is_refused() {
    let mut session = running();
    let chunk = wire(&[FromGuest::Stdout(&[b'x'; 60_000])]);
    for _ in 0..output_window(0) / output_cost(60_000) {
        session.receive(&chunk).unwrap();
    }
    assert!(session.buffered <= MAX_BUFFERED);
    let mut slow = Session::load(session.save()).unwrap();
    assert_eq!(
        session.receive(&chunk),
        Err(AgentError::Flood { process: 0 })
    );
    // Whoever reads it may be sent more.
    slow.pass_on();
    slow.sent(0);
    assert!(told(&mut slow)[0].starts_with("OutputAck"));
    slow.receive(&chunk).unwrap();
}

#[test]
fn errors_that_nobody_reads_hold_up_the_guest() {
    let mut session = running();
    let chunk = wire(&[FromGuest::Error(&[b'x'; 1000])]);
    while session.receive_room() >= chunk.len() {
        session.receive(&chunk).unwrap();
    }
    let stuck = vec![0; session.receive_room() + 1];
    assert!(matches!(
        session.receive(&stuck),
        Err(AgentError::NoRoom { .. })
    ));
}

/// The frames of `messages` about a process.
fn about(process: u8, messages: &[FromGuest<'_>]) -> Vec<u8> {
    let mut all = Vec::new();
    let mut frame = vec![0; frame::HEADER + frame::MAX_PAYLOAD];
    for message in messages {
        let len = message.encode_for(process, &mut frame).unwrap();
        all.extend_from_slice(&frame[..len]);
    }
    all
}

/// A client with its session, whose command the guest has.
fn client(main: &mut Session, argv: &str) -> (u8, Session) {
    let number = main.processes().unwrap().open().unwrap();
    let exec = Exec {
        argv: vec![argv.into()],
        ..Exec::default()
    };
    let mut client = Session::beside(exec).unwrap();
    to_guest(main, number, &mut client).unwrap();
    (number, client)
}

/// Move what the client has for the guest.
fn to_guest(main: &mut Session, number: u8, client: &mut Session) -> Result<(), ClientFault> {
    let bytes = told_raw(client);
    main.processes().unwrap().receive(number, &bytes)?;
    main.pass_on();
    Ok(())
}

/// Move what the guest has sent for the client; whether the process is over.
fn to_client(main: &mut Session, number: u8, client: &mut Session) -> bool {
    let processes = main.processes().unwrap();
    let bytes = processes.for_client(number).to_vec();
    client.receive(&bytes).unwrap();
    processes.sent(number, bytes.len())
}

#[test]
fn commands_beside_the_main_one_have_streams_and_statuses_of_their_own() {
    let mut main = running();
    let (first, mut one) = client(&mut main, "one");
    let (second, mut two) = client(&mut main, "two");
    assert_eq!((first, second), (1, 2));
    assert_eq!(one.send_stdin(b"in"), 2);
    one.signal(2);
    to_guest(&mut main, first, &mut one).unwrap();
    assert_eq!(told(&mut main), ["Exec", "Exec", "Stdin 2", "Signal(2)"]);
    let said = [
        FromGuest::Stdout(b"out"),
        FromGuest::StdinAck(2),
        FromGuest::Exit(Exit::NotFound(2)),
    ];
    main.receive(&about(first, &said)).unwrap();
    main.receive(&about(second, &[FromGuest::Stderr(b"err")]))
        .unwrap();
    assert_eq!(events(&mut main), [], "the main command is not concerned");
    assert!(to_client(&mut main, first, &mut one));
    assert!(!to_client(&mut main, second, &mut two));
    let why = "\"one\" is not in the guest: No such file or directory (os error 2)";
    let expected = [
        Event::Stdout(b"out".to_vec()),
        Event::Error(why.into()),
        Event::Exited(127),
    ];
    assert_eq!(events(&mut one), expected);
    assert_eq!(events(&mut two), [Event::Stderr(b"err".to_vec())]);
    // The number is free again, and a frame about a process that is over is none of the protocol.
    let (again, _) = client(&mut main, "three");
    assert_eq!(again, first);
    let late = main.receive(&about(9, &[FromGuest::Stdout(b"x")]));
    let message = "Stdout";
    assert_eq!(late, Err(AgentError::OutOfTurn { message }));
}

#[test]
fn a_client_that_does_not_read_stalls_no_other() {
    let mut main = running();
    let (slow, _) = client(&mut main, "slow");
    let (quick, mut two) = client(&mut main, "quick");
    let chunk = vec![b'x'; 60_000];
    for _ in 0..output_window(slow) / output_cost(chunk.len()) {
        main.receive(&about(slow, &[FromGuest::Stdout(&chunk)]))
            .unwrap();
    }
    for _ in 0..100 {
        main.receive(&about(quick, &[FromGuest::Stdout(&chunk)]))
            .unwrap();
        to_client(&mut main, quick, &mut two);
        assert_eq!(events(&mut two).len(), 1);
        to_guest(&mut main, quick, &mut two).unwrap();
        main.receive(&wire(&[FromGuest::Stdout(b"main")])).unwrap();
        assert_eq!(events(&mut main), [Event::Stdout(b"main".to_vec())]);
        told(&mut main);
    }
    // Gone: its output is taken from the guest and dropped, and its command goes on.
    main.processes().unwrap().leave(slow);
    main.pass_on();
    let taken = output_window(slow) / output_cost(60_000) * output_cost(60_000);
    let acked = format!("OutputAck({taken})");
    assert_eq!(told(&mut main), [acked, "StdinClose".into()]);
    for _ in 0..100 {
        main.receive(&about(slow, &[FromGuest::Stdout(&chunk)]))
            .unwrap();
    }
    main.receive(&about(slow, &[FromGuest::Exit(Exit::Exited(0))]))
        .unwrap();
    assert_eq!(main.processes().unwrap().open(), Ok(slow));
}

#[test]
fn clients_are_as_many_as_there_are_numbers_and_keep_to_the_protocol() {
    let mut main = running();
    let all: Vec<u8> = (1..64)
        .map(|_| main.processes().unwrap().open().unwrap())
        .collect();
    let processes = main.processes().unwrap();
    assert_eq!(processes.open(), Err(ClientFault::TooMany));
    all.iter().for_each(|number| processes.leave(*number));
    let wrong = [
        FromHost::Stdin(b"before the command"),
        FromHost::Goodbye,
        FromHost::Resumed(RESUMED),
    ];
    for message in wrong {
        let number = processes.open().unwrap();
        let mut bytes = Vec::new();
        append(&mut bytes, &message);
        assert_eq!(
            processes.receive(number, &bytes),
            Err(ClientFault::Protocol)
        );
        processes.leave(number);
    }
    main.pass_on();
    assert_eq!(told(&mut main).len(), 0, "nothing was passed on");
}

#[test]
fn texts_of_the_guest_cannot_drive_the_terminal() {
    let mut session = session();
    session
        .receive(&wire(&[FromGuest::Error(b"\x1b[2Jno\xff\n")]))
        .unwrap();
    let text = "guest: \\u{1b}[2Jno\u{fffd}".into();
    assert_eq!(session.next_event(), Some(Event::Error(text)));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_stay_bounded(
        greet: bool, chunks in proptest::collection::vec(
            (0..10u8, proptest::collection::vec(any::<u8>(), 0..40)), 0..60,
        ),
        hold: bool, start in proptest::option::of(0..60usize), with: bool,
    ) {
        let mut session = match (greet, hold) {
            (true, true) => held(),
            (true, false) => running(),
            (false, hold) => Session { hold, ..session() },
        };
        for (n, (kind, payload)) in chunks.into_iter().enumerate() {
            if start == Some(n) {
                session.start(with.then_some(RESUMED));
            }
            if hold && start.is_none_or(|start| start > n) {
                prop_assert_eq!(session.outgoing(), b"");
            }
            let mut bytes = frame::header(kind, 0, payload.len()).to_vec();
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

    /// Whatever guest and clients say, in whatever order: what is kept is bounded, and what is saved loads.
    #[test]
    fn arbitrary_clients_and_guests_stay_bounded(
        steps in proptest::collection::vec(
            (0..6u8, 0..6u8, 0..12u8, proptest::collection::vec(any::<u8>(), 0..40)), 0..80,
        ),
    ) {
        let mut main = running();
        for (step, number, kind, payload) in steps {
            let bytes = [&frame::header(kind, number, payload.len())[..], &payload].concat();
            if step == 0 && main.receive(&bytes).is_err() {
                break;
            }
            while main.next_event().is_some() {}
            let Some(processes) = main.processes() else { break };
            match step {
                1 => _ = processes.open(),
                2 => processes.leave(number),
                3 => _ = processes.sent(number, payload.len()),
                4 | 5 => {
                    let kind = if step == 4 { 0x82 } else { 0x80 | kind };
                    let bytes = [&frame::header(kind, 0, payload.len())[..], &payload].concat();
                    if processes.receive(number, &bytes).is_err() {
                        processes.leave(number);
                    }
                }
                _ => {}
            }
            prop_assert!(processes.for_client(number).len() < 80 * 64);
            main.pass_on();
            prop_assert!(Session::load(main.save()).is_ok());
        }
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

    /// Whatever the moment: what was saved goes on as the original does.
    #[test]
    fn a_saved_session_goes_on_as_it_would_have(
        said in proptest::collection::vec(
            prop_oneof![
                Just(FromGuest::Ready), Just(FromGuest::Stdout(b"out")),
                Just(FromGuest::StdinAck(3)), Just(FromGuest::Exit(Exit::NotFound(2))),
                Just(FromGuest::Error(b"oh")),
            ],
            0..6,
        ),
        hold: bool, start: bool, at: prop::sample::Index, typed in 0..9usize, sent in 0..99usize,
    ) {
        let mut session = Session { hold, ..session() };
        let mut bytes = wire(&GREETING);
        bytes.extend(wire(&said));
        let (before, after) = bytes.split_at(at.index(bytes.len()));
        let result = session.receive(before);
        session.send_stdin(&b"123456789"[..typed]);
        session.resize(WindowSize { rows: 1, cols: 2 });
        if start {
            session.start(Some(RESUMED));
        }
        session.close_stdin();
        session.sent(sent);
        events(&mut session);
        let saved = session.save();
        let bytes = postcard::to_allocvec(&saved).unwrap();
        let read: SavedSession = postcard::from_bytes(&bytes).unwrap();
        let mut other = Session::load(read).unwrap();
        prop_assert_eq!(other.save(), saved);
        if result.is_ok() {
            prop_assert_eq!(session.receive(after), other.receive(after));
            prop_assert_eq!(events(&mut session), events(&mut other));
            prop_assert_eq!(told_raw(&mut session), told_raw(&mut other));
        }
    }

    #[test]
    fn bytes_that_are_no_session_are_refused_or_make_one_that_keeps_its_bounds(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        hold: bool,
    ) {
        let session = if hold { held() } else { running() };
        let mut bytes = postcard::to_allocvec(&session.save()).unwrap();
        for (index, with) in flips {
            let len = bytes.len();
            bytes[index.index(len)] = with;
        }
        let Ok(saved) = postcard::from_bytes::<SavedSession>(&bytes) else {
            return Ok(());
        };
        if let Ok(mut session) = Session::load(saved) {
            prop_assert!(session.stdin_room() <= STDIN_WINDOW);
            session.resumed(RESUMED);
            session.start(None);
            let _ = session.receive(&wire(&GREETING));
            session.send_stdin(&[0; 100]);
            session.close_stdin();
        }
    }
}

#[test]
fn sessions_that_cannot_have_been_are_refused() {
    let bytes = |session: Session| postcard::to_allocvec(&session.save()).unwrap();
    let refused = |session: Session| {
        let saved = postcard::from_bytes(&bytes(session)).unwrap();
        matches!(Session::load(saved), Err(AgentError::Saved { .. }))
    };
    assert!(!refused(running()) && !refused(session()) && !refused(held()));
    let unacked = STDIN_WINDOW + 1;
    assert!(refused(Session {
        unacked,
        ..running()
    }));
    let exec = vec![1; 9];
    assert!(refused(Session { exec, ..held() }));
    let partial = vec![0; frame::HEADER + frame::MAX_PAYLOAD];
    assert!(refused(Session {
        partial,
        ..running()
    }));
    let outgoing = vec![0; 8 << 20];
    assert!(refused(Session {
        outgoing,
        ..running()
    }));
    let exec = session().exec;
    assert!(refused(Session { exec, ..running() }));
}

/// All bytes that wait for the guest; the first may be the rest of a frame.
fn told_raw(session: &mut Session) -> Vec<u8> {
    let bytes = session.outgoing().to_vec();
    session.sent(bytes.len());
    bytes
}
