//! What a command writes arrives, whoever reads it and however slowly; what it reads is its own; and a
//! run that lost something is no success.

mod machine;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use machine::user::{User, wait_until};
use machine::{kvm, run, script};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};

/// `hull run FLAGS -- sh -c SCRIPT` with nothing on its streams yet.
fn hull(flags: &[&str], script: &str) -> Command {
    let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
    hull.arg("run").args(flags).args(["--", "sh", "-c", script]);
    hull.stdin(Stdio::null());
    hull
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `bash -c SCRIPT`, in which `hull` is this program.
fn bash(script: &str, input: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_hull");
    let mut bash = Command::new("bash")
        .args([
            "-c",
            &format!("hull() {{ {program} \"$@\"; }}; export -f hull; {script}"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bash starts");
    let mut stdin = bash.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("bash reads");
    drop(stdin);
    bash.wait_with_output().expect("an end")
}

#[test]
fn a_slow_reader_gets_all_output_and_the_status() {
    if !kvm("a slow reader") {
        return;
    }
    let mut hull = hull(&[], "echo up; head -c 300000 /dev/zero; exit 3")
        .stdout(Stdio::piped())
        .spawn()
        .expect("hull starts");
    let mut output = hull.stdout.take().expect("a pipe");
    let mut up = [0; 3];
    output.read_exact(&mut up).expect("it runs");
    // Longer than a guest took to give up waiting: hull has nobody to write to meanwhile.
    thread::sleep(Duration::from_secs(5));
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).expect("read");
    let status = hull.wait().expect("an end").code();
    assert_eq!((status, rest.len()), (Some(3), 300_000));
}

#[test]
fn a_reader_that_leaves_ends_the_writer_alone() {
    if !kvm("a reader that leaves") {
        return;
    }
    // One command is killed by SIGPIPE, one that ignores it sees EPIPE, and the script goes on.
    let script = "(while echo y; do :; done); echo killed $? >&2
        trap '' PIPE; while echo y 2> /dev/null; do :; done; echo refused >&2; exit 4";
    let mut hull = hull(&[], script)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("hull starts");
    let mut first = String::new();
    let mut output = BufReader::new(hull.stdout.take().expect("a pipe"));
    output.read_line(&mut first).expect("a line");
    assert_eq!(first, "y\n");
    drop(output);
    let ended = hull.wait_with_output().expect("an end");
    assert_eq!(
        (ended.status.code(), text(&ended.stderr).as_str()),
        (Some(4), "killed 141\nrefused\n")
    );
}

#[test]
fn output_that_cannot_be_written_is_named_once_and_is_no_success() {
    if !kvm("a full disk") {
        return;
    }
    let full = || {
        File::options()
            .write(true)
            .open("/dev/full")
            .expect("/dev/full")
    };
    let message = "hull: standard output cannot be written: No space left on device (os error 28); \
                   the rest of the output is lost\n";
    let finite = hull(&[], "echo lost").stdout(full()).output();
    let finite = finite.expect("hull starts");
    assert_eq!(
        (finite.status.code(), text(&finite.stderr).as_str()),
        (Some(125), message)
    );
    let endless = hull(&[], "while echo more; do :; done")
        .stdout(full())
        .output();
    let endless = endless.expect("hull starts");
    assert_eq!(
        (endless.status.code(), text(&endless.stderr).as_str()),
        (Some(141), message)
    );
    // A closed one is like a pipe that has no reader.
    let closed = bash(
        "hull run -n -- sh -c 'echo lost; echo on >&2; exit 5' >&-",
        "",
    );
    assert_eq!(closed.status.code(), Some(141), "{}", text(&closed.stderr));
}

#[test]
fn reports_that_cannot_be_written_are_named_and_no_success() {
    if !kvm("reports") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let profile = folder.path().join("full.svg");
    std::os::unix::fs::symlink("/dev/full", &profile).expect("a link");
    let profile = profile.display().to_string();
    for (flag, file) in [
        ("--json", "/dev/full"),
        ("--trace", "/dev/full"),
        ("--profile", profile.as_str()),
    ] {
        // Only the first starts warm; the lab boots in a second.
        if flag != "--json" && !machine::lab_also(flag, "a boot each") {
            continue;
        }
        let finished = run(&["run", flag, file, "--", "true"]);
        assert_eq!(finished.status, Some(125), "{flag}: {}", finished.stderr);
        assert!(
            finished.stderr.contains(&format!("{flag} {file}"))
                && finished.stderr.contains("No space left on device"),
            "{}",
            finished.stderr
        );
    }
}

#[test]
fn a_scripts_own_lines_are_left_to_it_on_request() {
    if !kvm("a script's input") {
        return;
    }
    let script = "hull run -n -- cat\necho two\nhull run -i -- cat\nthe rest is cat's\n";
    let ran = bash("exec bash", script);
    assert_eq!(
        (
            ran.status.code(),
            text(&ran.stdout).as_str(),
            text(&ran.stderr).as_str()
        ),
        (Some(0), "two\nthe rest is cat's\n", "")
    );
    let looped = bash(
        "while read line; do hull run --no-stdin -- echo $line; done",
        "a\nb\n",
    );
    assert_eq!(text(&looped.stdout), "a\nb\n");
}

#[test]
fn input_is_taken_as_far_as_documented_and_ends_as_pipes_and_sockets_do() {
    if !kvm("input") {
        return;
    }
    // A command that reads nothing.
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("input");
    fs::write(&path, vec![0; 1 << 20]).expect("written");
    let mut file = File::open(&path).expect("there");
    let same = file.try_clone().expect("a descriptor");
    let status = hull(&[], "sleep 1").stdin(same).status();
    assert_eq!(status.expect("hull starts").code(), Some(0));
    let taken = file.stream_position().expect("a position");
    assert!(taken <= 128 << 10, "{taken} bytes were taken");

    // A FIFO without a writer is not at its end, and then has one.
    let fifo = folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RWXU).expect("a FIFO");
    let reader = rustix::fs::open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
    let mut late = hull(&[], "echo up; cat; echo end")
        .stdin(reader.expect("opened"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("hull starts");
    let mut output = BufReader::new(late.stdout.take().expect("a pipe"));
    let mut up = String::new();
    output.read_line(&mut up).expect("a line");
    fs::write(&fifo, "late\n").expect("written");
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("text");
    assert_eq!((up.as_str(), rest.as_str()), ("up\n", "late\nend\n"));
    assert!(late.wait().expect("an end").success());

    // Half of a socket is closed, and the other half still brings the answer.
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    let theirs = OwnedFd::from(theirs);
    let mut half = hull(&[], "cat; echo end")
        .stdin(theirs.try_clone().expect("a descriptor"))
        .stdout(theirs)
        .spawn()
        .expect("hull starts");
    ours.write_all(b"question\n").expect("sent");
    ours.shutdown(Shutdown::Write).expect("closed");
    let mut answer = String::new();
    // The command's Stdio was dropped with it, so hull has the only other end.
    ours.read_to_string(&mut answer).expect("text");
    assert_eq!(answer, "question\nend\n");
    assert!(half.wait().expect("an end").success());
}

#[test]
fn a_scripts_background_children_keep_their_output() {
    if !kvm("background children") {
        return;
    }
    script(&[], "(sleep 1; echo late) & echo early; exit 3").assert(3, "early\nlate\n", "");
}

#[test]
fn a_machine_without_a_status_is_no_success() {
    if !kvm("no status") {
        return;
    }
    let halted = script(&[], "busybox halt -f");
    assert_eq!(halted.status, Some(125), "{}", halted.stderr);
    assert!(
        halted
            .stderr
            .contains("error: the guest has halted, and nothing can wake it"),
        "{}",
        halted.stderr
    );
    if machine::lab_also(
        "a guest out of memory",
        "each page is a fault of an emulated kernel",
    ) {
        let eater = "awk 'BEGIN { s = \"x\"; while (1) s = s s }'; exit $?";
        let full = script(&["--memory", "64M"], eater);
        assert_eq!(full.status, Some(137), "{}", full.stderr);
        assert!(
            full.stderr.contains(
                "hull: the guest has run out of its 64 MiB of memory, so its kernel has killed awk; "
            ),
            "{}",
            full.stderr
        );
    }
}

#[test]
fn a_process_that_is_stopped_is_stopped_for_good() {
    if !kvm("a stopped hull") {
        return;
    }
    let user = User::new();
    let mut hull = user.hull(&[
        "run",
        "--name",
        "still",
        "--",
        "sh",
        "-c",
        "echo up; sleep 1000",
    ]);
    let mut hull = hull
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("hull starts");
    let mut up = String::new();
    let mut output = BufReader::new(hull.stdout.take().expect("a pipe"));
    output.read_line(&mut up).expect("a line");
    kill_process(Pid::from_child(&hull), Signal::STOP).expect("sent");
    let done = user.run(&["stop", "still", "--timeout", "2"]);
    assert_eq!((done.status, done.stdout.as_str()), (Some(0), "still\n"));
    let status = hull.wait().expect("an end");
    assert!(
        status.code() == Some(143) || done.stderr.contains("killed after"),
        "{status:?}"
    );
    wait_until(|| !user.folder().exists());
}
