//! `hull run --vsock`: streams between programs on the host and in the guest.

mod machine;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use machine::vsock_program::vsock_program;
use machine::{LIMIT, kvm, run};

/// A running hull, killed when a test fails.
struct Hull(Child);

impl Drop for Hull {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connects to the guest's `port`; the answer is empty if there was none.
fn connect(socket: &Path, port: &str) -> (UnixStream, String) {
    let mut stream = UnixStream::connect(socket).expect("hull listens");
    stream.set_read_timeout(Some(LIMIT)).expect("a limit");
    // At once: hull may close the connection before the end of a line that is too long.
    let line = format!("CONNECT {port}\n");
    stream.write_all(line.as_bytes()).expect("hull reads");
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\n") && matches!(stream.read(&mut byte), Ok(1)) {
        answer.extend(byte);
    }
    (stream, String::from_utf8(answer).expect("text"))
}

/// tests/all runs this first, so that the program is there when the lab starts.
#[test]
fn the_guests_program_is_built() {
    assert!(vsock_program().starts_with(b"\x7fELF"));
}

#[test]
fn programs_on_both_sides_connect_to_each_other() {
    if !kvm("vsock") {
        return;
    }
    let program = vsock_program();
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("v");
    let server = UnixListener::bind(folder.path().join("v_53")).expect("a listener");
    let flag = format!("cid=7,socket={}", socket.display());
    let started = Command::new(env!("CARGO_BIN_EXE_hull"))
        .args(["run", "--vsock", &flag, "--", "sh", "-c"])
        .arg("cat >/tmp/v && chmod +x /tmp/v && exec /tmp/v")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut hull = Hull(started.expect("hull starts"));
    let mut stdin = hull.0.stdin.take().expect("a pipe");
    stdin.write_all(program).expect("hull reads");
    drop(stdin);
    let mut stdout = BufReader::new(hull.0.stdout.take().expect("a pipe"));
    let mut line = || {
        let mut line = String::new();
        stdout.read_line(&mut line).expect("text");
        line
    };
    assert_eq!(line(), "listening\n");

    // No program listens there; then malformed lines, the last one without an end.
    for bad in ["51", "", "52 52", "x", "4294967296", &"5".repeat(200)] {
        assert_eq!(connect(&socket, bad).1, "", "{bad}");
    }
    let (stream, answer) = connect(&socket, "52");
    let port = answer
        .strip_prefix("OK ")
        .and_then(|rest| rest.trim_end().parse().ok());
    assert!(port.is_some_and(|port: u32| port >= 1 << 30), "{answer:?}");

    // More than the buffers of either side hold.
    let sent: Vec<u8> = (0..300_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut writer = stream.try_clone().expect("a descriptor");
    let copy = sent.clone();
    let sending = thread::spawn(move || {
        writer.write_all(&copy).expect("hull reads");
        writer
            .shutdown(std::net::Shutdown::Write)
            .expect("one half");
    });
    let mut echoed = Vec::new();
    { &stream }.read_to_end(&mut echoed).expect("the echo");
    sending.join().expect("all was sent");
    assert!(echoed == sent, "{} bytes came back", echoed.len());
    assert_eq!(line(), "echoed\n");

    let (mut client, _) = server.accept().expect("the guest connects");
    let mut heard = String::new();
    client.read_to_string(&mut heard).expect("text");
    assert_eq!(heard, "hello from the guest\n");
    client
        .write_all(b"hello from the host\n")
        .expect("hull reads");
    drop(client);
    assert_eq!(line(), "hello from the host\n");
    assert_eq!(line(), "54 is reset\n");

    assert_eq!(hull.0.wait().expect("an end").code(), Some(0));
    assert!(!socket.exists(), "hull leaves its socket behind");
}

#[test]
fn an_existing_socket_is_left_alone() {
    if !kvm("vsock exists") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("v");
    fs::write(&socket, "mine").expect("a file");
    let flag = format!("cid=3,socket={}", socket.display());
    let finished = run(&["run", "--vsock", &flag, "--", "true"]);
    assert_eq!(finished.status, Some(125));
    let message = format!(
        "error: --vsock {}: a program listens there, or it is another kind of file; name another path\n",
        socket.display()
    );
    assert_eq!(finished.stderr, message);
    assert_eq!(fs::read(&socket).expect("the file"), b"mine");
}

#[test]
fn the_socket_is_removed_when_a_signal_ends_hull() {
    if !kvm("vsock and a signal") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("v");
    // A hull that was killed has left one.
    drop(UnixListener::bind(&socket).expect("a socket"));
    let flag = format!("cid=3,socket={}", socket.display());
    let started = Command::new(env!("CARGO_BIN_EXE_hull"))
        .args(["run", "--vsock", &flag, "--", "true"])
        .spawn();
    let mut hull = Hull(started.expect("hull starts"));
    let start = Instant::now();
    // A program that connects before the guest is up waits for it.
    let caller = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(_) => assert!(start.elapsed() < LIMIT, "there is no socket"),
        }
        thread::sleep(Duration::from_millis(1));
    };
    let pid = rustix::process::Pid::from_child(&hull.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("hull runs");
    assert_eq!(hull.0.wait().expect("an end").code(), Some(128 + 15));
    assert!(!socket.exists(), "hull leaves its socket behind");
    drop(caller);
}

#[test]
fn socat_talks_to_socat() {
    // Less where the guest's kernel is emulated.
    let bytes = if machine::in_lab() { 64 << 20 } else { 1 << 20 };
    if !kvm("socat") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let data: Vec<u8> = (0..bytes as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(at("data"), &data).expect("a file");
    let back = Command::new("socat")
        .args(["-u", &format!("UNIX-LISTEN:{}", at("v_53"))])
        .arg(format!("CREATE:{}", at("back")))
        .spawn();
    let mut back = Hull(back.expect("socat starts"));
    let started = Command::new(env!("CARGO_BIN_EXE_hull"))
        .args(["run", "--memory", "256M", "--share", "/usr:/usr:ro"])
        .args(["--vsock", &format!("cid=3,socket={}", at("v"))])
        .args(["--", "sh", "-c"])
        .arg(
            "ln -s usr/lib /lib; ln -s usr/lib64 /lib64
             socat -u VSOCK-LISTEN:52 CREATE:/tmp/data && sha256sum </tmp/data
             socat -u OPEN:/tmp/data VSOCK-CONNECT:2:53; read line",
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut hull = Hull(started.expect("hull starts"));
    let send = format!(
        "(echo CONNECT 52; cat {}) | socat -t 600 - UNIX-CONNECT:{}",
        at("data"),
        at("v")
    );
    let start = Instant::now();
    // The guest refuses connections until its program listens.
    loop {
        let answer = Command::new("sh").args(["-c", &send]).output();
        let answer = answer.expect("a shell").stdout;
        if answer.starts_with(b"OK ") {
            break;
        }
        assert!(start.elapsed() < LIMIT, "the guest does not listen");
        thread::sleep(Duration::from_millis(300));
    }
    let mut stdout = BufReader::new(hull.0.stdout.take().expect("a pipe"));
    let mut sum = String::new();
    stdout.read_line(&mut sum).expect("text");
    let expected = Command::new("sha256sum").arg(at("data")).output();
    let expected = String::from_utf8(expected.expect("sha256sum").stdout).expect("text");
    assert_eq!(sum[..64], expected[..64]);
    assert!(back.0.wait().expect("an end").success());
    assert!(fs::read(at("back")).expect("a file") == data);
    let mut stdin = hull.0.stdin.take().expect("a pipe");
    stdin.write_all(b"\n").expect("hull reads");
    assert_eq!(hull.0.wait().expect("an end").code(), Some(0));
}
