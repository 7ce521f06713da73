//! An interactive shell in the guest, on a pseudo-terminal.

mod machine;

use std::io::Write;
use std::time::Duration;

use machine::terminal::{Session, resize};
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
    let mut shell = Session::start(&["run"]);
    while !shell.is_raw() {
        std::thread::sleep(Duration::from_millis(5));
    }
    shell.key("\x01x");
    assert_eq!(shell.end(), Some(0));
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
