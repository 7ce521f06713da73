//! The guest's init runs commands for a session, here as an ordinary process whose channel is a socket.
//! `make build` puts it at target/guest/init; HULL_INIT names another one.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hull::agent::{Event, Exec, Interface, Resumed, Session, WindowSize};

const LIMIT: Duration = Duration::from_secs(20);

fn init() -> Option<PathBuf> {
    let path = match std::env::var_os("HULL_INIT") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/guest/init"),
    };
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {}: not built (make build)", path.display());
    None
}

/// An init with one command, and what came of it so far.
struct Run {
    init: Child,
    channel: UnixStream,
    session: Session,
    stdin: Vec<u8>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Whether the user wanted to stop hull.
    suspended: bool,
    status: Option<u8>,
}

impl Run {
    fn new(exec: Exec) -> Option<Self> {
        Self::with(Session::new(exec).unwrap())
    }

    fn with(session: Session) -> Option<Self> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        ours.set_nonblocking(false).unwrap();
        let mut command = Command::new(init()?);
        command.arg("0").stdin(Stdio::from(OwnedFd::from(theirs)));
        // In a guest no signal is ignored; here SIGINT is, if a shell runs the test in the background.
        // SAFETY: signal(2) may be called between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            });
        }
        let init = command.spawn().unwrap();
        Some(Self {
            init,
            channel: ours,
            session,
            stdin: Vec::new(),
            stdout: Vec::new(),
            stderr: Vec::new(),
            suspended: false,
            status: None,
        })
    }

    /// Moves bytes until `done` returns true or the command has ended.
    fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while self.status.is_none() && !done(self) {
            assert!(start.elapsed() < LIMIT, "init makes no progress");
            self.once();
        }
    }

    /// Moves the bytes that are there, or waits a moment for some.
    fn once(&mut self) {
        let mut buffer = vec![0; 64 * 1024];
        let taken = self.session.send_stdin(&self.stdin);
        self.stdin.drain(..taken);
        self.send();
        let room = self.session.receive_room().min(buffer.len());
        match self.channel.read(&mut buffer[..room]) {
            Ok(0) => panic!("init closed the channel before the status"),
            Ok(len) => self.session.receive(&buffer[..len]).unwrap(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        while let Some(event) = self.session.next_event() {
            match event {
                Event::Ready | Event::Started => {}
                Event::Suspend => self.suspended = true,
                Event::Stdout(bytes) => self.stdout.extend(bytes),
                Event::Stderr(bytes) => self.stderr.extend(bytes),
                // hull prints it on standard error.
                Event::Error(text) => self.stderr.extend(text.bytes()),
                Event::Exited(status) => self.status = Some(status),
            }
        }
    }

    fn send(&mut self) {
        let len = self.session.outgoing().len();
        self.channel.write_all(self.session.outgoing()).unwrap();
        self.session.sent(len);
    }

    /// Runs the command to its end; init itself must exit with success.
    fn finish(mut self) -> (u8, String, String) {
        self.until(|_| false);
        self.send();
        assert!(self.init.wait().unwrap().success());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (self.status.unwrap(), text(&self.stdout), text(&self.stderr))
    }
}

fn exec(argv: &[&str]) -> Exec {
    Exec {
        argv: argv.iter().map(Into::into).collect(),
        ..Exec::default()
    }
}

/// Runs a command without input; `None` if init is not built.
fn run(exec: Exec) -> Option<(u8, String, String)> {
    let mut run = Run::new(exec)?;
    run.session.close_stdin();
    Some(run.finish())
}

fn shell(script: &str) -> Option<(u8, String, String)> {
    run(exec(&["sh", "-c", script]))
}

fn result(status: u8, stdout: &str, stderr: &str) -> (u8, String, String) {
    (status, stdout.into(), stderr.into())
}

#[test]
fn arguments_arrive_unchanged() {
    let argv = [
        "printf",
        "<%s>",
        "",
        "a b",
        "'\"$HOME",
        "new\nline",
        "grüße",
        "*",
    ];
    let Some(got) = run(exec(&argv)) else { return };
    assert_eq!(got, result(0, "<><a b><'\"$HOME><new\nline><grüße><*>", ""));
}

#[test]
fn a_megabyte_of_arguments_arrives() {
    let argument = "x".repeat(1000);
    let mut argv = vec!["sh", "-c", "echo $#", "sh"];
    argv.resize(1004, argument.as_str());
    let Some(got) = run(exec(&argv)) else { return };
    assert_eq!(got, result(0, "1000\n", ""));
}

#[test]
fn streams_and_status_are_separate() {
    let Some(got) = shell("echo out; echo err >&2; exit 7") else {
        return;
    };
    assert_eq!(got, result(7, "out\n", "err\n"));
}

#[test]
fn a_signal_gives_status_128_and_its_number() {
    let Some(got) = shell("kill -KILL $$") else {
        return;
    };
    assert_eq!(got.0, 137);
}

#[test]
fn a_missing_command_gives_127_and_one_that_cannot_run_126() {
    let Some(got) = run(exec(&["no-such-program-here"])) else {
        return;
    };
    assert_eq!((got.0, got.1.as_str()), (127, ""));
    assert!(
        got.2
            .starts_with("\"no-such-program-here\" is not in the guest: "),
        "{}",
        got.2
    );
    assert_eq!(run(exec(&["/no/such/program"])).unwrap().0, 127);
    assert_eq!(run(exec(&[""])).unwrap().0, 127);
    assert_eq!(run(exec(&["/etc/passwd"])).unwrap().0, 126);
    assert_eq!(run(exec(&["/etc"])).unwrap().0, 126);
    let elsewhere = Exec {
        cwd: "/no/such/place".into(),
        ..exec(&["true"])
    };
    assert_eq!(run(elsewhere).unwrap().0, 126);
}

#[test]
fn environment_and_directory_are_as_requested() {
    let env = vec!["HOME=/here".into(), "X=a b=c\n".into()];
    let exec = Exec {
        env,
        cwd: "/usr".into(),
        ..exec(&["sh", "-c", "pwd; env -0"])
    };
    let Some((status, stdout, _)) = run(exec) else {
        return;
    };
    assert_eq!(status, 0);
    let (cwd, env) = stdout.split_once('\n').unwrap();
    assert_eq!(cwd, "/usr");
    let mut env: Vec<&str> = env
        .split_terminator('\0')
        .filter(|v| !v.starts_with("PWD="))
        .collect();
    env.sort_unstable();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(env, ["HOME=/here", path, "X=a b=c\n"]);
}

#[test]
fn the_path_of_the_given_environment_is_searched() {
    let env = vec!["PATH=/no/such:/etc/passwd:".into()];
    let here = Exec {
        env: env.clone(),
        cwd: "/bin".into(),
        ..exec(&["true"])
    };
    let Some(got) = run(here) else { return };
    assert_eq!(got.0, 0, "an empty entry is the working directory");
    assert_eq!(
        run(Exec {
            env,
            ..exec(&["true"])
        })
        .unwrap()
        .0,
        127
    );
}

#[test]
fn a_megabyte_of_input_comes_back_unchanged() {
    let Some(mut run) = Run::new(exec(&["cat"])) else {
        return;
    };
    let data: Vec<u8> = (0..1u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    run.stdin = data.clone();
    run.until(|run| run.stdin.is_empty());
    run.session.close_stdin();
    run.until(|_| false);
    assert!(run.stdout == data, "{} bytes came back", run.stdout.len());
    assert_eq!(run.finish().0, 0);
}

#[test]
fn unread_input_does_not_stop_the_rest() {
    let Some(mut run) = Run::new(exec(&["sh", "-c", "exec <&-; sleep 0.2; echo done"])) else {
        return;
    };
    run.stdin = vec![0; 1 << 20];
    assert_eq!(run.finish(), result(0, "done\n", ""));
}

#[test]
fn pending_input_does_not_delay_a_signal() {
    let Some(mut run) = Run::new(exec(&["sleep", "100"])) else {
        return;
    };
    run.stdin = vec![0; 1 << 20];
    run.until(|run| run.session.stdin_room() == 0 && run.stdin.len() < (1 << 20) - (64 << 10));
    run.session.signal(15);
    assert_eq!(run.finish().0, 143);
}

#[test]
fn a_signal_reaches_the_whole_process_group() {
    let script = "trap 'echo caught; exit 3' INT; echo ready; sleep 100 & wait";
    let Some(mut run) = Run::new(exec(&["sh", "-c", script])) else {
        return;
    };
    run.until(|run| run.stdout == b"ready\n");
    run.session.signal(2);
    assert_eq!(run.finish(), result(3, "ready\ncaught\n", ""));
}

#[test]
fn a_background_child_does_not_keep_the_session() {
    // The child outlives LIMIT.
    let Some(got) = shell("echo out; sleep 30 & exit 5") else {
        return;
    };
    assert_eq!(got, result(5, "out\n", ""));
    assert_eq!(shell("yes & exit 6").unwrap().0, 6);
    // What it writes before it ends is output of the command.
    let late = shell("(sleep 1; echo late; sleep 1; echo later >&2) & exit 7");
    assert_eq!(late, Some(result(7, "late\n", "later\n")));
}

#[test]
fn an_output_without_a_reader_is_closed() {
    // SIGPIPE kills the writer alone, and who ignores it sees EPIPE.
    let script = "(yes); echo $? >&2; trap '' PIPE; (yes 2>/dev/null); echo $? >&2; exit 9";
    let Some(mut run) = Run::new(exec(&["sh", "-c", script])) else {
        return;
    };
    run.until(|run| !run.stdout.is_empty());
    run.session.close_output(hull::agent::Output::Stdout);
    let (status, _, stderr) = run.finish();
    assert_eq!((status, stderr.as_str()), (9, "141\n1\n"));
}

#[test]
fn the_suspend_character_is_reported_where_it_stops_nothing() {
    let tty = Some(WindowSize { rows: 24, cols: 80 });
    let script = "echo ready; read line; echo \"<$line>\"; stty raw -echo; printf raw; dd bs=1 count=1 2>/dev/null";
    let Some(mut run) = Run::new(Exec {
        tty,
        ..exec(&["sh", "-c", script])
    }) else {
        return;
    };
    run.until(|run| run.stdout == b"ready\r\n");
    run.stdin = b"a\x1ab\n".to_vec();
    run.until(|run| run.suspended && run.stdout.ends_with(b"raw"));
    let seen = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(seen.contains("<ab>"), "{seen:?}");
    // A program that wants it gets it.
    run.stdin = b"\x1a".to_vec();
    let (status, stdout, _) = run.finish();
    assert_eq!(
        (status, stdout.ends_with("raw\x1a")),
        (0, true),
        "{stdout:?}"
    );
}

#[test]
fn output_written_before_the_exit_arrives() {
    let script = "head -c 3000000 /dev/zero; head -c 60000 /dev/zero >&2";
    let Some((status, stdout, stderr)) = shell(script) else {
        return;
    };
    assert_eq!((status, stdout.len(), stderr.len()), (0, 3_000_000, 60_000));
}

#[test]
fn a_terminal_has_the_requested_size() {
    let tty = Some(WindowSize {
        rows: 33,
        cols: 101,
    });
    let script = "tty >/dev/null || exit 1; stty size </dev/tty; read x; stty size; cat; exit 4";
    let Some(mut run) = Run::new(Exec {
        tty,
        ..exec(&["sh", "-c", script])
    }) else {
        return;
    };
    run.until(|run| run.stdout == b"33 101\r\n");
    run.session.resize(WindowSize { rows: 7, cols: 9 });
    run.stdin = b"\n".to_vec();
    run.until(|run| run.stdout.ends_with(b"7 9\r\n"));
    run.session.close_stdin();
    assert_eq!(run.finish().0, 4, "the end of input ends cat");
}

#[test]
fn ctrl_c_on_the_terminal_interrupts() {
    let tty = Some(WindowSize { rows: 24, cols: 80 });
    let script = "echo ready; sleep 100";
    let Some(mut run) = Run::new(Exec {
        tty,
        ..exec(&["sh", "-c", script])
    }) else {
        return;
    };
    run.until(|run| run.stdout == b"ready\r\n");
    // A shell that is about to exec its last command loses an interrupt, so it is sent again.
    for _ in 0..100 {
        run.stdin = vec![3];
        run.until(|run| run.stdin.is_empty());
        if run.status.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(run.finish().0, 130);
}

#[test]
fn a_closed_channel_ends_init() {
    let Some(mut run) = Run::new(exec(&["sh", "-c", "echo ready; exec cat"])) else {
        return;
    };
    run.until(|run| run.stdout == b"ready\n");
    drop(run.channel);
    assert!(run.init.wait().unwrap().success());
}

#[test]
fn a_missing_network_interface_is_reported() {
    let exec = Exec {
        networks: vec![Interface {
            mac: [2, 0xff, 0xff, 0xff, 0xff, 0xff],
            address: [192, 0, 2, 1],
            prefix: 24,
            gateway: None,
            dns: None,
            index: None,
        }],
        ..exec(&["true"])
    };
    let Some((status, stdout, stderr)) = run(exec) else {
        return;
    };
    assert_eq!((status, stdout.as_str()), (125, ""));
    assert!(
        stderr.contains("a network interface cannot be set up"),
        "{stderr}"
    );
    assert!(stderr.contains("No such device"), "{stderr}");
}

fn resumed(slots: u8) -> Resumed {
    Resumed {
        unix_ns: 0,
        entropy: [1; 32],
        first_slot: 19,
        slots,
    }
}

#[test]
fn init_is_ready_again_after_a_restore() {
    let waiting = Session::waiting(exec(&["sh", "-c", "cat; echo end"])).unwrap();
    let Some(mut run) = Run::with(waiting) else {
        return;
    };
    run.until(|run| run.session.is_held());
    run.session.start(Some(resumed(0)));
    run.stdin = b"typed ".to_vec();
    run.until(|run| run.stdin.is_empty());
    run.session.resumed(resumed(0));
    run.session.close_stdin();
    assert_eq!(run.finish(), result(0, "typed end\n", ""));
}

#[test]
fn a_slot_without_a_driver_is_reported_and_the_command_does_not_run() {
    let waiting = Session::waiting(exec(&["echo", "ran"])).unwrap();
    let Some(mut run) = Run::with(waiting) else {
        return;
    };
    run.until(|run| run.session.is_held());
    run.session.start(Some(resumed(2)));
    let (status, stdout, stderr) = run.finish();
    assert_eq!((status, stdout.as_str()), (125, ""));
    assert!(stderr.contains("virtio slot 19"), "{stderr}");
}

#[test]
fn a_network_error_does_not_stop_a_running_command() {
    let Some(mut run) = Run::new(exec(&["sh", "-c", "echo ready; read x; echo $x"])) else {
        return;
    };
    run.until(|run| run.stdout == b"ready\n");
    run.session.set_networks(&[Interface {
        mac: [2, 0xff, 0xff, 0xff, 0xff, 0xff],
        address: [192, 0, 2, 1],
        prefix: 24,
        gateway: None,
        dns: None,
        index: Some(254),
    }]);
    run.until(|run| !run.stderr.is_empty());
    run.stdin = b"on\n".to_vec();
    let (status, stdout, stderr) = run.finish();
    assert_eq!((status, stdout.as_str()), (0, "ready\non\n"));
    assert!(stderr.contains("network interface"), "{stderr}");
}

/// A command beside the main one, and what came of it so far.
struct Beside {
    number: u8,
    session: Session,
    events: Vec<Event>,
}

impl Beside {
    fn new(main: &mut Run, exec: Exec) -> Self {
        main.until(|run| run.session.is_ready());
        let number = main.session.processes().unwrap().open().unwrap();
        Self {
            number,
            session: Session::beside(exec).unwrap(),
            events: Vec::new(),
        }
    }

    /// Moves frames both ways; true once it is over.
    fn pass(&mut self, main: &mut Run) -> bool {
        let processes = main.session.processes().unwrap();
        let bytes = processes.for_client(self.number).to_vec();
        self.session.receive(&bytes).unwrap();
        processes.sent(self.number, bytes.len());
        self.events
            .extend(std::iter::from_fn(|| self.session.next_event()));
        let outgoing = self.session.outgoing().to_vec();
        if self.session.exit().is_none() {
            processes.receive(self.number, &outgoing).unwrap();
        }
        self.session.sent(outgoing.len());
        main.session.pass_on();
        self.session.exit().is_some()
    }

    fn text(&self, stderr: bool) -> String {
        let mut text = Vec::new();
        for event in &self.events {
            match event {
                Event::Stdout(bytes) if !stderr => text.extend(bytes),
                Event::Stderr(bytes) if stderr => text.extend(bytes),
                _ => {}
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Moves bytes until `done` is true of all.
fn until_all(main: &mut Run, all: &mut [Beside], done: impl Fn(&Beside) -> bool) {
    let start = Instant::now();
    loop {
        for beside in all.iter_mut() {
            beside.pass(main);
        }
        if all.iter().all(&done) {
            return;
        }
        assert!(start.elapsed() < LIMIT, "init makes no progress");
        main.once();
    }
}

#[test]
fn commands_beside_the_main_one_have_their_own_streams_and_statuses() {
    let Some(mut main) = Run::new(exec(&["sleep", "100"])) else {
        return;
    };
    let shell = |script: &str| exec(&["sh", "-c", script]);
    let tty = Exec {
        tty: Some(WindowSize { rows: 7, cols: 50 }),
        report_start: true,
        ..shell("stty size; exit 4")
    };
    let mut all = [
        Beside::new(&mut main, shell("echo out; echo err >&2; exit 3")),
        Beside::new(&mut main, exec(&["no-such-program-here"])),
        Beside::new(&mut main, tty),
        Beside::new(
            &mut main,
            shell("echo ready; trap 'exit 9' TERM; sleep 100 & wait"),
        ),
        Beside::new(&mut main, shell("sleep 100 & echo $0")),
        Beside::new(&mut main, exec(&["cat"])),
    ];
    assert_eq!(all[5].session.send_stdin(b"typed"), 5);
    all[5].session.close_stdin();
    until_all(&mut main, &mut all, |it| {
        it.session.exit().is_some() || (it.number == 4 && it.text(false) == "ready\n")
    });
    all[3].session.signal(15);
    until_all(&mut main, &mut all, |it| it.session.exit().is_some());
    let statuses = all.each_ref().map(|it| it.session.exit().unwrap().status());
    assert_eq!(statuses, [3, 127, 4, 9, 0, 0]);
    assert_eq!(
        (all[0].text(false), all[0].text(true)),
        ("out\n".into(), "err\n".into())
    );
    assert!(all[2].events.contains(&Event::Started));
    assert_eq!(all[2].text(false), "7 50\r\n");
    assert_eq!(all[4].text(false), "sh\n");
    assert_eq!(all[5].text(false), "typed");
    main.session.signal(15);
    assert_eq!(main.finish().0, 143);
}

#[test]
fn a_reader_that_is_slow_stalls_no_other() {
    let Some(mut main) = Run::new(exec(&["sleep", "100"])) else {
        return;
    };
    let mut slow = Beside::new(&mut main, exec(&["yes"]));
    slow.pass(&mut main);
    // Nothing is read of it from here on, until its credit is used up.
    let mut quick = [Beside::new(
        &mut main,
        exec(&[
            "sh",
            "-c",
            "head -c 3000000 /dev/zero | wc -c; seq 1 200000",
        ]),
    )];
    until_all(&mut main, &mut quick, |it| it.session.exit().is_some());
    let text = quick[0].text(false);
    assert!(text.starts_with("3000000\n") && text.ends_with("200000\n"));
    main.session.processes().unwrap().leave(slow.number);
    main.session.signal(15);
    assert_eq!(main.finish().0, 143);
}

#[test]
fn limits_and_capabilities_are_as_requested() {
    let limit = hull::agent::Limit {
        resource: libc::RLIMIT_CORE as u8,
        soft: 4096,
        hard: 8192,
    };
    let mut limited = exec(&["sh", "-c", "ulimit -c; grep CapBnd /proc/self/status"]);
    limited.privileges.limits = vec![limit];
    limited.privileges.capabilities = 1 << libc_cap::CHOWN | 1 << libc_cap::KILL;
    let Some((status, stdout, stderr)) = run(limited) else {
        return;
    };
    if stderr.contains("cannot be executed") {
        println!("skipped: this process may not drop capabilities");
        return;
    }
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(stdout, "8\nCapBnd:\t0000000000000021\n");
}

/// linux/capability.h.
mod libc_cap {
    pub const CHOWN: u32 = 0;
    pub const KILL: u32 = 5;
}
