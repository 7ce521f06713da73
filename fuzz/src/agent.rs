//! The host's session with a guest's init, which may send anything.

use arbitrary::Arbitrary;
use hull::agent::{
    Event, Exec, Exit, Interface, MAX_BUFFERED, Mount, Output, Processes, Resumed, Root, Session,
    WindowSize,
};
use hull_agent::{FromGuest, FromHost, MountKind};

/// A session.
#[derive(Arbitrary, Debug)]
pub struct Input {
    start: Start,
    argv: Vec<String>,
    tty: Option<(u16, u16)>,
    /// The command's root, whose texts may be too long, and its mounts.
    root: Option<(bool, [u16; 3])>,
    mounts: Vec<(u8, u8)>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Start {
    New,
    Waiting,
    Restored,
    /// One with a command beside the main one, and one with a machine's keeper; they are never saved.
    Beside,
    Attached,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// The guest sends bytes that need not be a frame.
    Bytes(Vec<u8>),
    /// A message of the guest's.
    Hello(Option<u32>),
    Ready,
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Flood(u16),
    Ack(u32),
    Exit(u8, u8),
    Error(Vec<u8>),
    Suspend,
    Started,
    /// A message about another process.
    About(u8, Box<Step>),
    /// A client comes, says something, reads, and leaves.
    Client,
    Says(u8, Vec<u8>),
    Commands(u8, u16),
    Reads(u8, u16),
    Leaves(u8),
    PassOn,
    /// The host's calls.
    Start(bool),
    Resumed(u8, u8),
    Networks(u8),
    Take(u8),
    Sent(u16),
    Stdin(u16),
    CloseStdin,
    Resize(u16, u16),
    Signal(u8),
    CloseOutput(bool),
    /// The session continues in another process.
    Save,
}

fn resumed(first_slot: u8, slots: u8) -> Resumed {
    Resumed {
        unix_ns: 1,
        entropy: [7; 32],
        first_slot,
        slots,
    }
}

/// A root with texts of these lengths.
fn root((read_only, [hostname, hosts, resolver]): (bool, [u16; 3])) -> Root {
    let text = |len: u16, most: u16| "a".repeat(usize::from(len % most));
    Root {
        read_only,
        disk: "vda".into(),
        upper: String::new(),
        hostname: text(hostname, 66),
        hosts: text(hosts, 33_000),
        resolver: text(resolver, 4100),
    }
}

/// A mount, mostly one that can be.
fn mount((kind, path): &(u8, u8)) -> Mount {
    let kinds = [MountKind::Share, MountKind::Memory, MountKind::Disk];
    let paths = ["/a", "/srv/data", "/", "a", "/a/../b"];
    Mount {
        kind: kinds[usize::from(*kind) % kinds.len()],
        tag: "tag".into(),
        path: paths[usize::from(*path) % paths.len()].into(),
        read_only: path & 1 != 0,
    }
}

/// Talk.
pub fn check(input: &Input) {
    let exec = Exec {
        argv: input.argv.iter().map(Into::into).collect(),
        tty: input.tty.map(|(rows, cols)| WindowSize { rows, cols }),
        root: input.root.map(root),
        mounts: input.mounts.iter().map(mount).collect(),
        ..Exec::default()
    };
    let fits = exec.check().is_ok();
    let beside = matches!(input.start, Start::Beside | Start::Attached);
    let session = match input.start {
        Start::New => Session::new(exec),
        Start::Waiting => Session::waiting(exec),
        Start::Restored => Session::restored(exec, resumed(0, 1)),
        Start::Beside => Session::beside(exec),
        Start::Attached => Ok(Session::attached()),
    };
    let Ok(mut session) = session else {
        assert!(!fits);
        return;
    };
    assert!(fits || matches!(input.start, Start::Attached));
    let mut ended = false;
    for step in &input.steps {
        play(&mut session, step);
        assert!(session.receive_room() <= MAX_BUFFERED);
        if let Step::Save = step
            && !beside
        {
            // Its owner has taken all events.
            while let Some(event) = session.next_event() {
                assert!(!ended, "{event:?} after the end");
                ended = matches!(event, Event::Exited(_));
            }
            let saved = session.save();
            let bytes = postcard::to_allocvec(&saved).unwrap();
            let again = postcard::from_bytes(&bytes).unwrap();
            assert_eq!(saved, again);
            session = Session::load(again).unwrap();
            assert_eq!(session.save(), saved);
        }
    }
    // All of it can be taken; the guest gets whole frames.
    while let Some(event) = session.next_event() {
        assert!(!ended, "{event:?} after the end");
        ended = matches!(event, Event::Exited(_));
        if let Event::Error(text) = event {
            assert!(!text.contains(|c: char| c.is_control()), "{text:?}");
        }
    }
    assert_eq!(session.receive_room(), MAX_BUFFERED);
}

fn play(session: &mut Session, step: &Step) {
    let (step, process) = match step {
        Step::About(process, step) => (&**step, process % 64),
        step => (step, 0),
    };
    let mut buffer = vec![0; 1 << 17];
    let mut tell = |session: &mut Session, message: FromGuest| {
        let len = message.encode_for(process, &mut buffer).unwrap();
        receive(session, &buffer[..len]);
    };
    match step {
        Step::Bytes(bytes) => receive(session, bytes),
        Step::Hello(version) => {
            let version = version.unwrap_or(hull_agent::VERSION);
            tell(session, FromGuest::Hello { version });
        }
        Step::Ready => tell(session, FromGuest::Ready),
        Step::Stdout(bytes) => tell(session, FromGuest::Stdout(bytes)),
        Step::Stderr(bytes) => tell(session, FromGuest::Stderr(bytes)),
        Step::Flood(len) => tell(session, FromGuest::Stdout(&vec![b'x'; (*len).into()])),
        Step::Ack(count) => tell(session, FromGuest::StdinAck(*count)),
        Step::Exit(kind, value) => {
            let exit = match kind % 5 {
                0 => Exit::Exited(*value),
                1 => Exit::Signalled(value % 64 + 1),
                2 => Exit::NotExecutable((*value).into()),
                3 => Exit::NotFound((*value).into()),
                _ => Exit::Error((*value).into()),
            };
            tell(session, FromGuest::Exit(exit));
        }
        Step::Error(text) => tell(session, FromGuest::Error(text)),
        Step::Suspend => tell(session, FromGuest::Suspend),
        Step::Started => tell(session, FromGuest::Started),
        Step::About(..) => {}
        Step::PassOn => session.pass_on(),
        Step::Client | Step::Says(..) | Step::Commands(..) | Step::Reads(..) | Step::Leaves(_) => {
            if let Some(processes) = session.processes() {
                serve(processes, step);
            }
        }
        Step::Start(with) => session.start(with.then(|| resumed(1, 2))),
        Step::Resumed(first, slots) => session.resumed(resumed(first % 100, slots % 100)),
        Step::Networks(count) => {
            let network = Interface {
                mac: [2; 6],
                address: [10, 0, 0, 1],
                prefix: 24,
                gateway: None,
                dns: None,
                index: Some(0),
            };
            session.set_networks(&vec![network; usize::from(count % 4)]);
        }
        Step::Take(count) => {
            for _ in 0..*count {
                session.next_event();
            }
        }
        Step::Sent(count) => session.sent((*count).into()),
        Step::Stdin(len) => {
            let room = session.stdin_room();
            let taken = session.send_stdin(&vec![b'i'; (*len).into()]);
            assert_eq!(taken, room.min((*len).into()));
        }
        Step::CloseStdin => session.close_stdin(),
        Step::Resize(rows, cols) => session.resize(WindowSize {
            rows: *rows,
            cols: *cols,
        }),
        Step::Signal(number) => session.signal(*number),
        Step::CloseOutput(first) => session.close_output(match first {
            true => Output::Stdout,
            false => Output::Stderr,
        }),
        Step::Save => {}
    }
}

/// What a client does.
fn serve(processes: &mut Processes, step: &Step) {
    let frame = |message: FromHost| {
        let mut frame = vec![0; 1 << 17];
        let len = message.encode(&mut frame).unwrap();
        frame.truncate(len);
        frame
    };
    let receive = |processes: &mut Processes, number, bytes: &[u8]| {
        if processes.receive(number, bytes).is_err() {
            processes.leave(number);
        }
    };
    match step {
        Step::Client => _ = processes.open(),
        Step::Says(number, bytes) => receive(processes, *number, bytes),
        Step::Commands(number, len) => {
            let command = frame(FromHost::Exec(&vec![0; (*len).into()]));
            receive(processes, *number, &command);
        }
        Step::Reads(number, len) => {
            let waiting = processes.for_client(*number).len();
            let over = processes.sent(*number, (*len).into());
            assert!(!over || waiting <= (*len).into());
        }
        Step::Leaves(number) => processes.leave(*number),
        _ => {}
    }
}

fn receive(session: &mut Session, bytes: &[u8]) {
    let (room, before) = (session.receive_room(), session.exit());
    let took = session.receive(bytes);
    if bytes.len() > room {
        assert!(took.is_err());
    }
    if took.is_err() {
        assert!(session.receive(&[]).is_err(), "it goes on after an error");
    }
    if before.is_some() && took.is_ok() {
        assert_eq!(session.exit(), before);
    }
}
