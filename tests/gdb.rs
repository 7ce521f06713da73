//! `hull run --gdb` with the real gdb.

mod machine;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use machine::{LIMIT, built, in_lab, kvm, run};
use rustix::process::{Pid, Signal, kill_process};

/// hull with a guest that can be debugged.
struct Hull {
    child: Child,
    /// The address for gdb's `target remote`.
    remote: String,
    /// The rest of standard error.
    stderr: JoinHandle<String>,
}

impl Hull {
    /// Start it with `--gdb` at a free port.
    fn start(arguments: &[&str]) -> Hull {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hull"))
            .args(["run", "--gdb", "0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("hull starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("a line");
        let remote = line
            .split_once("target remote ")
            .and_then(|(_, rest)| rest.split_once('\''))
            .map(|(remote, _)| remote.to_string())
            .unwrap_or_else(|| panic!("no address for gdb in: {line}"));
        let mut warning = String::new();
        stderr.read_line(&mut warning).expect("a line");
        assert!(warning.contains("every user of this host"), "{warning}");
        let stderr = thread::spawn(move || {
            let mut rest = String::new();
            let _ = stderr.read_to_string(&mut rest);
            rest
        });
        Hull {
            child,
            remote,
            stderr,
        }
    }

    fn flat(payload: &str, arguments: &[&str]) -> Hull {
        let payload = built(&format!("guest/payloads/{payload}.bin"));
        Hull::start(&[&[payload.as_str()], arguments].concat())
    }

    /// Starts gdb, which connects and runs `script`.
    fn gdb(&self, program: Option<&str>, script: &[&str]) -> Gdb {
        let remote = format!("target remote {}", self.remote);
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-batch"]);
        let before = [
            "set confirm off",
            "set pagination off",
            "set width 0",
            "set remotetimeout 60",
            "set architecture i386:x86-64",
        ];
        for command in before.iter().chain([&remote.as_str()]).chain(script) {
            gdb.args(["-ex", command]);
        }
        gdb.args(program);
        gdb.stdin(Stdio::null()).stdout(Stdio::piped());
        gdb.stderr(Stdio::piped());
        Gdb(gdb.spawn().expect("gdb: run make test-deps"))
    }

    /// Waits until vCPU 0, whose guest causes no exits, has used CPU time.
    fn wait_until_it_runs(&self) {
        let before = self.vcpu_time();
        let deadline = Instant::now() + LIMIT;
        while self.vcpu_time() < before + 5 {
            assert!(Instant::now() < deadline, "vCPU 0 does not run");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// CPU time of vCPU 0's thread, in ticks (proc(5), /proc/pid/stat).
    fn vcpu_time(&self) -> u64 {
        let tasks = format!("/proc/{}/task", self.child.id());
        let stats = fs::read_dir(tasks).expect("hull is there").flatten();
        let stats = stats.map(|task| fs::read_to_string(task.path().join("stat")));
        let stat = stats
            .flatten()
            .find(|stat| stat.contains("(vcpu0)"))
            .expect("vCPU 0 has a thread");
        let (_, fields) = stat.split_once(") ").expect("fields");
        let times = fields.split(' ').skip(11).take(2);
        times.map(|time| time.parse::<u64>().expect("a time")).sum()
    }

    /// Waits for the end: status, standard output and the rest of standard error.
    fn end(self) -> (Option<i32>, String, String) {
        let output = self.child.wait_with_output().expect("hull ends");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        (
            output.status.code(),
            stdout,
            self.stderr.join().expect("read"),
        )
    }
}

struct Gdb(Child);

impl Gdb {
    /// Waits for the end and returns the output.
    fn output(self) -> String {
        let output = self.0.wait_with_output().expect("gdb ends");
        let (out, err) = (output.stdout, output.stderr);
        format!(
            "{}{}",
            String::from_utf8_lossy(&out),
            String::from_utf8_lossy(&err)
        )
    }

    /// Reads its output up to a line with `text`.
    fn until(&mut self, text: &str) {
        let stdout = self.0.stdout.as_mut().expect("a pipe");
        let mut seen = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).contains(text) {
            let read = stdout.read(&mut byte).expect("output");
            assert!(read == 1, "no {text} in {}", String::from_utf8_lossy(&seen));
            seen.extend(byte);
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("gdb is there");
    }
}

/// `text` has all of `parts`, in this order.
#[track_caller]
fn assert_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        match rest.split_once(part) {
            Some((_, behind)) => rest = behind,
            None => panic!("{part:?} is missing or out of order in:\n{text}"),
        }
    }
}

#[test]
fn a_guest_is_stopped_inspected_changed_and_resumed() {
    if !kvm("a_guest_is_stopped_inspected_changed_and_resumed") {
        return;
    }
    let hull = Hull::flat("debug", &["--gdb-wait"]);
    let gdb = hull.gdb(
        None,
        &[
            "printf \"at %#lx\\n\", $pc",
            "info registers cr0 efer cs fs_base",
            "break *0x8040",
            "continue",
            "printf \"at %#lx rbx %ld\\n\", $pc, $rbx",
            // gdb must see the guest's instruction, not the breakpoint.
            "x/i 0x8040",
            "stepi",
            "printf \"at %#lx rbx %ld\\n\", $pc, $rbx",
            "continue",
            "continue",
            "printf \"rbx %ld counter %ld\\n\", $rbx, *(long *)0x8100",
            "delete",
            "set $rbx = 4",
            "set $xmm3.uint128 = 77",
            "printf \"xmm3 %d\\n\", $xmm3.v4_int32[0]",
            "set *(long *)0x8100 = 1234",
            "printf \"counter %ld\\n\", *(long *)0x8100",
            "set $cr4 = 0xffffffff00000000",
            "set $rip = 0x8040",
            "continue",
        ],
    );
    let gdb = gdb.output();
    assert_in_order(
        &gdb,
        &[
            "at 0x8000",
            "[ PE ET PG ]",
            "[ LME LMA ]",
            "Breakpoint 1, 0x0000000000008040",
            "at 0x8040 rbx 0",
            "0x8040:\tinc    %rbx",
            "at 0x8043 rbx 1",
            "Breakpoint 1,",
            "Breakpoint 1,",
            "rbx 2 counter 2",
            "xmm3 77",
            "counter 1234",
            "exited normally",
        ],
    );
    assert!(gdb.contains("Could not write register"), "{gdb}");
    let (status, stdout, _) = hull.end();
    assert_eq!((status, stdout.as_str()), (Some(0), "counted\n"));
}

#[test]
fn unmapped_memory_takes_no_reads_and_no_breakpoints() {
    if !kvm("unmapped_memory_takes_no_reads_and_no_breakpoints") {
        return;
    }
    let hull = Hull::flat("debug", &["--gdb-wait"]);
    let gdb = hull.gdb(
        None,
        &[
            "python\n\
             for command in ['x/x 0xffff800000000000', 'x/x 0x100000000', \
             'set *(char *)0xfee00000 = 1', 'x/x 0xfffffffffffffffc']:\n\
             \x20   try: gdb.execute(command)\n\
             \x20   except gdb.error as error: print(error)\n",
            "break *0x100000000",
            "stepi",
        ],
    );
    let gdb = gdb.output();
    for address in ["0xffff800000000000", "0x100000000", "0xfee00000"] {
        let refusal = format!("Cannot access memory at address {address}");
        assert!(gdb.contains(&refusal), "{gdb}");
    }
    assert!(gdb.contains("Cannot insert breakpoint 1"), "{gdb}");
    // The guest runs on after gdb has left.
    let (status, stdout, _) = hull.end();
    assert_eq!((status, stdout.as_str()), (Some(0), "counted\n"));
}

#[test]
fn debug_registers_stop_the_guest_or_are_refused() {
    if !kvm("debug_registers_stop_the_guest_or_are_refused") {
        return;
    }
    let hull = Hull::flat("debug", &["--gdb-wait"]);
    let gdb = hull.gdb(
        None,
        &[
            "monitor kvm",
            "hbreak *0x8043",
            "continue",
            "printf \"at %#lx\\n\", $pc",
            "delete",
            "watch *(long *)0x8100",
            "continue",
            "printf \"counter %ld\\n\", *(long *)0x8100",
        ],
    );
    let gdb = gdb.output();
    let refused = "Could not insert hardware";
    let breakpoint = ["Breakpoint 1,", "at 0x8043"];
    let watchpoint = ["Hardware watchpoint 2", "New value = 1", "counter 1"];
    for (feature, hits) in [
        ("hardware breakpoints: yes", &breakpoint[..]),
        ("watchpoints: yes", &watchpoint[..]),
    ] {
        if gdb.contains(feature) {
            assert_in_order(&gdb, hits);
        } else {
            assert!(gdb.contains(refused), "{gdb}");
        }
    }
    let (status, _, stderr) = hull.end();
    assert_eq!(status, Some(0));
    // hull explains it before gdb reports that there may be too many.
    let told = stderr.contains("this host's KVM has no");
    assert_eq!(told, gdb.contains(refused), "{stderr}");
}

#[test]
fn gdb_watches_by_single_steps_without_hardware_watchpoints() {
    if !kvm("gdb_watches_by_single_steps_without_hardware_watchpoints") {
        return;
    }
    let hull = Hull::flat("debug", &["--gdb-wait"]);
    let gdb = hull.gdb(
        None,
        &[
            "set can-use-hw-watchpoints 0",
            "watch *(long *)0x8100",
            "continue",
            "printf \"at %#lx counter %ld\\n\", $pc, *(long *)0x8100",
            "kill",
        ],
    );
    assert_in_order(&gdb.output(), &["New value = 1", "at 0x804b counter 1"]);
    let (status, stdout, _) = hull.end();
    assert_eq!((status, stdout.as_str()), (Some(137), ""), "killed");
}

#[test]
fn ctrl_c_stops_all_vcpus_and_detaching_resumes_them() {
    if !kvm("ctrl_c_stops_all_vcpus_and_detaching_resumes_them") {
        return;
    }
    let hull = Hull::flat("spin", &["--cpus", "2"]);
    for last in ["detach", "monitor quit"] {
        let mut gdb = hull.gdb(
            None,
            &[
                // It has written all its output before.
                "shell echo ready",
                "continue",
                "info threads",
                "thread 2",
                "thread 1",
                "printf \"at %#lx\\n\", $pc",
                "set scheduler-locking on",
                "stepi",
                "printf \"at %#lx\\n\", $pc",
                last,
            ],
        );
        gdb.until("ready");
        hull.wait_until_it_runs();
        gdb.signal(Signal::INT);
        assert_in_order(
            &gdb.output(),
            &[
                "SIGINT",
                "Thread 1.1 (vCPU 0)",
                "Thread 1.2 (vCPU 1)",
                "at 0x8010",
                "at 0x8010",
            ],
        );
    }
    let (status, ..) = hull.end();
    assert_eq!(status, Some(137), "ended by gdb");
}

#[test]
fn a_killed_gdb_leaves_no_breakpoints() {
    if !kvm("a_killed_gdb_leaves_no_breakpoints") {
        return;
    }
    let hull = Hull::flat("debug", &["--gdb-wait"]);
    let mut gdb = hull.gdb(
        None,
        &[
            "break *0x8040",
            "continue",
            "echo stopped\\n",
            "shell sleep 1000",
        ],
    );
    gdb.until("stopped");
    gdb.signal(Signal::KILL);
    let _ = gdb.0.wait();
    let (status, stdout, _) = hull.end();
    assert_eq!((status, stdout.as_str()), (Some(0), "counted\n"));
}

#[test]
fn a_client_that_is_not_gdb_only_loses_its_connection() {
    if !kvm("a_client_that_is_not_gdb_only_loses_its_connection") {
        return;
    }
    let hull = Hull::flat("debug", &["--gdb-wait"]);
    let address = format!("127.0.0.1{}", hull.remote);
    for garbage in [
        &b""[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"$#00$g#67$Hgffff#ff$mffffffffffffffff,ffffffffffffffff#aa+++---\x03\x03",
        &[b'$'; 100_000],
        &[0xff; 5000],
    ] {
        let mut client = TcpStream::connect(&address).expect("hull listens");
        // hull may close the connection in the middle.
        let _ = client.write_all(garbage);
    }
    // None of them started the guest.
    let gdb = hull.gdb(None, &["printf \"at %#lx\\n\", $pc", "continue"]);
    assert_in_order(&gdb.output(), &["at 0x8000", "exited normally"]);
    assert_eq!(hull.end().0, Some(0));
}

#[test]
fn linux_is_debugged_with_the_symbols_of_an_exported_kernel() {
    if !kvm("linux_is_debugged_with_the_symbols_of_an_exported_kernel") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let exported = run(&["guest", "export", &folder.path().display().to_string()]);
    assert_eq!(exported.status, Some(0), "{}", exported.stderr);
    let vmlinux = folder.path().join("vmlinux").display().to_string();
    let hull = Hull::start(&["--gdb-wait", "--", "/bin/sh", "-c", "echo out; exit 3"]);
    let gdb = hull.gdb(
        Some(&vmlinux),
        &[
            // Before the kernel has page tables of its own.
            "x/i start_kernel",
            "break start_kernel",
            "continue",
            "backtrace 3",
            "stepi",
            "info registers rip cr3",
            "delete",
            "break kernel_init",
            "continue",
            "delete",
            "detach",
        ],
    );
    assert_in_order(
        &gdb.output(),
        &[
            "<start_kernel>:",
            "Breakpoint 1,",
            "#0  0x",
            "in start_kernel",
            "#1  0x",
            "in x86_64_start_reservations",
            "<start_kernel+",
            "Breakpoint 2,",
            "in kernel_init",
            "detached",
        ],
    );
    let (status, stdout, stderr) = hull.end();
    assert_eq!((status, stdout.as_str()), (Some(3), "out\n"), "{stderr}");
}

#[test]
fn an_impossible_address_is_refused_before_the_boot() {
    let payload = built("guest/payloads/hello.bin");
    let folder = tempfile::tempdir().expect("a folder");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port().to_string();
    let file = folder.path().join("file");
    fs::write(&file, "mine").expect("written");
    let missing = folder.path().join("missing/socket");
    for (place, part) in [
        (port.as_str(), "Address already in use"),
        (
            file.to_str().expect("text"),
            "a program listens there, or it is another kind of file",
        ),
        (
            missing.to_str().expect("text"),
            "cannot create the gdb socket",
        ),
        (&"x".repeat(200), "has 200 bytes"),
        ("70000", "0 to 65535"),
        ("0.0.0.0:0", "can be reached by others"),
    ] {
        let refused = run(&["run", &payload, "--gdb", place]);
        assert_eq!(refused.status, Some(125), "{place}");
        assert!(refused.stderr.contains("--gdb"), "{}", refused.stderr);
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
        assert_eq!(refused.stdout_text(), "");
    }
    assert_eq!(fs::read(&file).expect("still there"), b"mine");
    let alone = run(&["run", &payload, "--gdb-wait"]);
    assert_eq!(alone.status, Some(125));
}

#[test]
fn the_socket_is_removed_however_the_machine_ends() {
    if !kvm("the_socket_is_removed_however_the_machine_ends") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("gdb");
    let start = |flags: &[&str]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hull"))
            .arg("run")
            .arg(built("guest/payloads/spin.bin"))
            .arg("--gdb")
            .arg(&socket)
            .args(flags)
            .stderr(Stdio::null())
            .spawn()
            .expect("hull starts");
        wait_for(&socket, &mut child);
        child
    };
    // While it waits, while gdb has it, and while it runs.
    for (flags, connects) in [(&["--gdb-wait"][..], false), (&[], true), (&[], false)] {
        let mut child = start(flags);
        // A process beside hull removes it, too, when hull is killed after that has started.
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        while fs::read_to_string(&children).expect("hull runs").is_empty() {
            thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("killed");
        child.wait().expect("reaped");
        let deadline = Instant::now() + LIMIT;
        while socket.exists() {
            assert!(Instant::now() < deadline, "it stays");
            thread::sleep(Duration::from_millis(10));
        }
        let mut child = start(flags);
        wait_until_it_listens(&socket);
        let client = connects.then(|| UnixStream::connect(&socket).expect("it listens"));
        kill_process(Pid::from_child(&child), Signal::TERM).expect("hull is there");
        let status = child.wait().expect("hull ends");
        assert_eq!(status.code(), Some(143));
        assert!(!socket.exists());
        drop(client);
    }
}

fn wait_until_it_listens(socket: &Path) {
    let deadline = Instant::now() + LIMIT;
    while UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < deadline, "nothing listens");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for a socket.
fn wait_for(socket: &Path, child: &mut Child) {
    let deadline = Instant::now() + LIMIT;
    while !socket.exists() {
        let ended = child.try_wait().expect("hull's state");
        assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_lab_reports_which_breakpoints_it_has() {
    // The other tests rely on this: debug registers do nothing under emulated SVM.
    if !in_lab() {
        return;
    }
    let hull = Hull::flat("debug", &["--gdb-wait"]);
    let gdb = hull.gdb(None, &["monitor kvm", "monitor help", "kill"]);
    let gdb = gdb.output();
    assert!(gdb.contains("in kernel code alone"), "{gdb}");
    assert!(gdb.contains("monitor quit"), "{gdb}");
    assert_eq!(hull.end().0, Some(137));
}
