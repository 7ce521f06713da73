//! An interactive shell in the guest, on a pseudo-terminal.

mod machine;

use std::io::Write;
use std::time::Duration;

use machine::terminal::{Session, resize};
use machine::tmux::Window;
use machine::user::{User, wait_until};
use machine::{kvm, lab};

#[test]
fn a_shell_has_the_terminals_size_and_follows_its_changes() {
    if !kvm("shell") {
        return;
    }
    for arguments in [&["run"][..], &["run", "--cold"]] {
        let mut shell = Session::start(arguments);
        shell.wait_for("# ");
        assert!(shell.is_raw());
        shell.key("stty size; echo $TERM\r");
        shell.wait_for("30 101\r\nvt100\r\n");
        resize(&shell.terminal, 25, 80);
        // The new size may arrive after this line; the guest prints it when it has it.
        shell.key("while [ \"$(stty size)\" != '25 80' ]; do :; done; echo re''sized\r");
        shell.wait_for("resized");
        shell.key("\x01h");
        shell.wait_for("Ctrl-A x");
        shell.key("exit 7\r");
        assert_eq!(shell.end(), Some(7));
    }
}

#[test]
fn a_key_ends_the_machine_even_before_it_is_up() {
    if !kvm("key") {
        return;
    }
    for (key, status) in [("\x01x", 0), ("\x03", 130)] {
        // A cold one takes a while.
        let mut shell = Session::start(&["run", "--cold"]);
        while !shell.is_raw() {
            std::thread::sleep(Duration::from_millis(5));
        }
        shell.key(key);
        assert_eq!(shell.end(), Some(status), "{key:?}");
    }
}

/// The last number that the loop in NAME printed.
fn count(text: &str, name: &str) -> usize {
    let numbers = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix(name));
    numbers
        .filter_map(|number| number.parse().ok())
        .max()
        .unwrap_or(0)
}

#[test]
fn a_machine_is_a_job_of_its_shell() {
    if !kvm("jobs") {
        return;
    }
    let user = User::new();
    let Some(window) = Window::open(&user, "jobs") else {
        return;
    };
    let counts_with = |name: &str, flags: &str| {
        format!(
            "hull run --name {name} {flags} -- sh -c 'i=0; while sleep 1; do i=$((i+1)); echo {name}$i; done'"
        )
    };
    let counts = |name: &str| counts_with(name, "");
    let counts_on = |name: &str| {
        let before = count(&window.text(), name);
        window.wait_for("further number", |text| count(text, name) > before);
    };
    // In the background: neither stopped by the terminal nor changing it.
    window.enter(&format!("{} &", counts("dice")));
    counts_on("dice");
    window.enter("jobs; echo listed");
    window.wait_for("list", |text| text.contains("\nlisted"));
    assert!(window.text().contains("Running"), "{}", window.text());
    assert!(!window.is_raw());
    // In the foreground it has the terminal; Ctrl-Z, which stops nothing in this guest, stops it.
    window.enter("fg");
    window.wait_for_raw(true);
    counts_on("dice");
    window.keys(&["C-z"]);
    window.wait_for("job that is stopped", |text| text.contains("Stopped"));
    window.wait_for_raw(false);
    let before = count(&window.text(), "dice");
    window.enter("sleep 3; echo slept");
    window.wait_for("pause", |text| text.contains("\nslept"));
    assert_eq!(
        count(&window.text(), "dice"),
        before,
        "the guest stood still"
    );
    window.enter("bg");
    counts_on("dice");
    assert!(!window.is_raw());
    // Two in one terminal.
    window.enter(&format!("{} &", counts("coin")));
    counts_on("coin");
    counts_on("dice");
    window.enter("fg %1");
    window.wait_for_raw(true);
    window.keys(&["C-c"]);
    window.wait_for_raw(false);
    window.enter("echo status=$?");
    window.wait_for("status", |text| text.contains("status=130"));
    counts_on("coin");
    // In a jail it is the supervisor that the shell sees, and Ctrl-Z stops both.
    if rustix::process::geteuid().is_root() {
        window.enter(&counts_with("jail", "--jail"));
        window.wait_for_raw(true);
        counts_on("jail");
        window.keys(&["C-z"]);
        window.wait_for_raw(false);
        let before = count(&window.text(), "jail");
        window.enter("sleep 3; echo 'slept again'");
        window.wait_for("pause", |text| text.contains("\nslept again"));
        assert_eq!(count(&window.text(), "jail"), before, "it stood still");
        window.enter("fg");
        window.wait_for_raw(true);
        counts_on("jail");
        window.keys(&["C-c"]);
        window.wait_for_raw(false);
    }
    // The terminal is gone, and with it what ran there.
    window.close();
    wait_until(|| !user.folder().exists());
}

#[test]
fn a_shell_in_the_guest_has_its_own_job_control() {
    if !kvm("jobs in the guest") {
        return;
    }
    let mut shell = Session::start(&["run"]);
    shell.wait_for("# ");
    shell.key("cat\r");
    shell.wait_for("cat\r\n");
    // The shell may not have started it yet, and ignores the key itself.
    for _ in 0..100 {
        shell.key("\x1a");
        std::thread::sleep(Duration::from_millis(100));
        if let Ok(bytes) = shell.output.try_recv() {
            shell.seen += &String::from_utf8_lossy(&bytes);
        }
        if shell.seen.contains("Stopped") {
            break;
        }
    }
    shell.wait_for("Stopped");
    shell.key("exit 6\r");
    shell.wait_for("You have stopped jobs.");
    shell.key("exit 6\r");
    assert_eq!(shell.end(), Some(6));
}

#[test]
fn ctrl_c_reaches_the_command_and_not_hull() {
    if !kvm("Ctrl-C") || !lab("Ctrl-C", "one more boot") {
        return;
    }
    let mut shell = Session::start(&["run", "--", "sh", "-c", "echo ready; sleep 1000"]);
    shell.wait_for("ready");
    // A shell that is about to exec its last command loses an interrupt, so it is typed again.
    for _ in 0..100 {
        if shell.hull.try_wait().expect("waited").is_some() {
            break;
        }
        let _ = shell.keyboard.write_all(b"\x03");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(shell.end(), Some(130));
}

#[test]
fn output_that_the_terminal_or_a_pager_holds_up_arrives_whole() {
    if !kvm("XOFF") {
        return;
    }
    // The guest's terminal is stopped before the command writes; or, with -n, hull's own.
    for (input, key, script) in [
        (&[][..], "\x13\r", "echo go; read line; seq 1 100; exit 3"),
        (&["-n"], "\x13", "seq 1 100; exit 3"),
    ] {
        let arguments = [&["run"], input, &["--", "sh", "-c", script]].concat();
        let mut shell = Session::start(&arguments);
        if input.is_empty() {
            shell.wait_for("go\r\n");
        }
        shell.key(key);
        assert!(!shell.sees("\n100\r\n", Duration::from_secs(3)));
        shell.key("\x11");
        shell.wait_for("1\r\n2\r\n");
        shell.wait_for("\n99\r\n100\r\n");
        assert_eq!(shell.end(), Some(3));
    }
    let user = User::new();
    let Some(window) = Window::open(&user, "pager") else {
        return;
    };
    window.enter("hull run -- seq 1 60000 | less; echo ${PIPESTATUS[0]}");
    window.wait_for("first page", |text| text.contains("\n49\n"));
    window.keys(&["G"]);
    window.wait_for("end", |text| text.contains("\n60000\n"));
    window.keys(&["q"]);
    window.wait_for("status", |text| text.contains("\n0\n"));
}

#[test]
fn signals_restore_the_terminal() {
    if !kvm("signals") {
        return;
    }
    for (signal, status) in [
        (rustix::process::Signal::TERM, 143),
        (rustix::process::Signal::INT, 130),
        (rustix::process::Signal::HUP, 129),
    ] {
        let shell = Session::start(&["run"]);
        while !shell.is_raw() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let pid = rustix::process::Pid::from_child(&shell.hull);
        rustix::process::kill_process(pid, signal).expect("sent");
        assert_eq!(shell.end(), Some(status));
    }
}

#[test]
fn an_error_restores_the_terminal() {
    if !kvm("error") {
        return;
    }
    let mut session = Session::start(&["run", "/etc/passwd"]);
    session.wait_for("error: /etc/passwd: ");
    assert_eq!(session.end(), Some(125));
}

#[test]
fn keys_reach_a_guest_on_hvc0() {
    if !kvm("hvc0") {
        return;
    }
    let initrd = machine::built("guest/initramfs.cpio");
    let mut shell = Session::start(&["run", "--console", "virtio", "--initrd", &initrd]);
    shell.wait_for("# ");
    shell.key("cat /sys/class/tty/console/active; stty size\r");
    shell.wait_for("hvc0\r\n30 101\r\n");
    resize(&shell.terminal, 25, 80);
    shell.key("while [ \"$(stty size)\" != '25 80' ]; do :; done; echo re''sized\r");
    shell.wait_for("resized");
    shell.key("exit\r");
    assert_eq!(shell.end(), Some(0));
}
