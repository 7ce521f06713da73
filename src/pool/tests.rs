use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;

use super::protocol::Reply;
use super::*;
use crate::agent::{Exec, Mount, MountKind, WindowSize};
use crate::control::Status;

fn exec() -> Exec {
    Exec {
        argv: vec!["/bin/echo".into(), OsString::from_vec(vec![0xff, b' '])],
        env: vec!["TERM=xterm".into()],
        tty: Some(WindowSize { rows: 24, cols: 80 }),
        ..Exec::default()
    }
}

#[test]
fn a_command_survives_its_encoding() {
    let command = Command::of(&exec(), true).unwrap();
    let bytes = postcard::to_allocvec(&command).unwrap();
    let command: Command = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(command.exec(), exec());
    assert!(command.raw);
}

#[test]
fn a_command_that_needs_a_device_is_not_for_a_pool() {
    let mut exec = exec();
    exec.mounts.push(Mount {
        kind: MountKind::Share,
        tag: "src".into(),
        path: "/src".into(),
        read_only: true,
    });
    assert_eq!(Command::of(&exec, false), None);
}

/// Let `talk` talk to a machine that waits; the command that it got.
fn waiting(talk: impl FnOnce(&dyn Fn() -> UnixStream) + Send) -> Option<Command> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (leave, left) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            talk(&|| UnixStream::connect(&path).unwrap());
            drop(left);
        });
        let (never, _open) = UnixStream::pair().unwrap();
        let fds = [&leave, &never].map(std::os::fd::AsFd::as_fd);
        let status = || Status {
            state: "ready".into(),
            resident_bytes: Some(1),
            uptime_seconds: 2,
        };
        let job = wait(&listener.into(), fds, status).unwrap();
        job.map(|job| job.command)
    })
}

fn answer(mut stream: UnixStream, line: &[u8]) -> String {
    // It may have been closed before all was sent.
    let _ = stream.write_all(line);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn a_waiting_machine_reports_its_status_and_refuses_other_actions() {
    let left_with = waiting(|connect| {
        for (request, part) in [
            ("\"status\"", "\"state\":\"ready\""),
            ("\"pause\"", "waits in a pool"),
            ("{\"take\":{\"bytes\":3}}", "three streams"),
            ("{\"take\":{\"bytes\":4294967295}}", "waits in a pool"),
        ] {
            let line = format!("{{\"version\":1,\"request\":{request}}}\n");
            let answer = answer(connect(), line.as_bytes());
            assert!(answer.contains(part), "{request}: {answer}");
        }
        let old = b"{\"version\":0,\"request\":\"status\"}\n";
        assert!(answer(connect(), old).contains("version 0"));
        for nonsense in [&b"\n"[..], b"{}\n", &[0xff; 9000]] {
            assert_eq!(answer(connect(), nonsense), "");
        }
        drop(connect());
    });
    assert_eq!(left_with, None);
}

#[test]
fn a_machine_gets_the_command_and_the_streams() {
    let wanted = Command::of(&exec(), false).unwrap();
    let left_with = waiting(|connect| {
        let null = File::open("/dev/null").unwrap();
        let body = postcard::to_allocvec(&wanted).unwrap();
        let streams = [&null, &null, &null].map(std::os::fd::AsFd::as_fd);
        let len = body.len() as u32;
        // First bytes that are not a command.
        let nonsense = client::ask(&mut connect(), 3, b"abc", &streams);
        assert!(nonsense.is_err());
        // Connected only now: clients are served in turn.
        let mut stream = connect();
        let reply = client::ask(&mut stream, len, &body, &streams);
        assert_eq!(reply.unwrap(), Reply::Taken);
    });
    assert_eq!(left_with, Some(Command::of(&exec(), false).unwrap()));
}
