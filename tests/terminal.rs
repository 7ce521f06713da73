//! An interactive shell in the guest, on a terminal as a user has one.

mod machine;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use machine::{kvm, lab};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// hull on a terminal of 30 by 101 characters.
struct Session {
    hull: Child,
    keyboard: File,
    /// The terminal's other side, to look at its modes.
    terminal: OwnedFd,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Session {
    fn start(arguments: &[&str]) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&ours).expect("granted");
        unlockpt(&ours).expect("unlocked");
        let name = ptsname(&ours, Vec::new()).expect("its name");
        let name = name.to_str().expect("a path");
        let open = || File::options().read(true).write(true).open(name);
        let terminal = OwnedFd::from(open().expect("its other side"));
        resize(&terminal, 30, 101);
        let mut command = Command::new(env!("CARGO_BIN_EXE_hull"));
        command.args(arguments).env("TERM", "vt100");
        for set in [Command::stdin, Command::stdout, Command::stderr] {
            set(&mut command, Stdio::from(open().expect("its other side")));
        }
        // SAFETY: both are plain system calls, which may be made between fork and exec.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        let hull = command.spawn().expect("hull starts");
        let keyboard = File::from(ours);
        let mut screen = keyboard.try_clone().expect("a second descriptor");
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = screen.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            hull,
            keyboard,
            terminal,
            output,
            seen: String::new(),
        }
    }

    fn key(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("typed");
    }

    /// Wait until the screen shows `text`, and forget all before its end.
    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + machine::LIMIT;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen += &String::from_utf8_lossy(&bytes),
                Err(_) => panic!("no {text:?} on the screen: {:?}", self.seen),
            }
        }
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).expect("modes").local_modes;
        !modes.contains(LocalModes::ECHO | LocalModes::ICANON)
    }

    /// The end: hull's status, `None` after a signal; the terminal must be as it was.
    fn end(mut self) -> Option<i32> {
        let deadline = Instant::now() + machine::LIMIT;
        let status = loop {
            if let Some(status) = self.hull.try_wait().expect("waited") {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "hull does not end: {:?}",
                self.seen
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(!self.is_raw(), "the terminal was left in raw mode");
        status.code()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.hull.kill();
        let _ = self.hull.wait();
    }
}

fn resize(terminal: &OwnedFd, rows: u16, cols: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).expect("resized");
}

#[test]
fn a_shell_has_the_terminals_size_and_follows_it() {
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
        // The size is on its way while this is typed; the guest says when it has it.
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
    // A shell that is about to become its last command loses an interrupt: a user types another.
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
fn signals_leave_the_terminal_whole() {
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
fn an_error_leaves_the_terminal_whole() {
    if !kvm("error") {
        return;
    }
    let mut session = Session::start(&["run", "/etc/passwd"]);
    session.wait_for("error: /etc/passwd: ");
    assert_eq!(session.end(), Some(125));
}

#[test]
fn a_guest_is_typed_to_on_hvc0() {
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
