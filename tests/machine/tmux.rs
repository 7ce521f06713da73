//! bash with job control in a window of tmux, as a user sees it.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::termios::{LocalModes, tcgetattr};

use super::LIMIT;
use super::user::User;

/// The window of a tmux server of its own, in the user's folder, where `hull` is this program.
pub struct Window {
    socket: PathBuf,
    terminal: OwnedFd,
}

impl Window {
    /// A window of 100 by 50 characters; `None` if there is no tmux, which is printed.
    pub fn open(user: &User, test: &str) -> Option<Self> {
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("skipped: {test}: there is no tmux (make test-deps)");
            return None;
        }
        let socket = user.0.path().join("tmux");
        let started = Command::new("tmux")
            .arg("-S")
            .arg(&socket)
            .args(["-f", "/dev/null", "new-session", "-d"])
            .args(["-x", "100", "-y", "50", "-c"])
            .arg(user.0.path())
            .args(["bash", "--norc", "--noprofile", "-i"])
            .env("XDG_RUNTIME_DIR", user.0.path())
            .env("PATH", path())
            .env("PS1", "$ ")
            .env("TERM", "xterm")
            .stdin(Stdio::null())
            .status();
        assert!(started.expect("tmux starts").success());
        let tty = tmux(&socket, &["display-message", "-p", "#{pane_tty}"]);
        let tty = String::from_utf8_lossy(&tty.stdout).trim().to_string();
        let terminal = File::options()
            .read(true)
            .custom_flags(OFlags::NOCTTY.bits() as i32)
            .open(tty)
            .expect("its terminal");
        Some(Self {
            socket,
            terminal: terminal.into(),
        })
    }

    /// Types keys by tmux's names, such as `C-z`.
    pub fn keys(&self, keys: &[&str]) {
        let sent = tmux(&self.socket, &[&["send-keys"], keys].concat());
        assert!(
            sent.status.success(),
            "{}",
            String::from_utf8_lossy(&sent.stderr)
        );
    }

    /// Types a line.
    pub fn enter(&self, line: &str) {
        self.keys(&["-l", line]);
        self.keys(&["Enter"]);
    }

    /// The text of the window and of what has left it at the top.
    pub fn text(&self) -> String {
        let captured = tmux(&self.socket, &["capture-pane", "-p", "-J", "-S", "-"]);
        String::from_utf8_lossy(&captured.stdout).into_owned()
    }

    /// Waits until `is_so` for the text.
    #[track_caller]
    pub fn wait_for(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        let start = Instant::now();
        loop {
            let text = self.text();
            if is_so(&text) {
                return;
            }
            assert!(start.elapsed() < LIMIT, "no {what}: {text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a program has the terminal in raw mode, or none.
    #[track_caller]
    pub fn wait_for_raw(&self, raw: bool) {
        self.wait_for(if raw { "raw mode" } else { "cooked mode" }, |_| {
            self.is_raw() == raw
        });
    }

    /// Whether the keys for signals are passed on as bytes. bash, which edits lines, leaves these.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).expect("modes").local_modes;
        !modes.contains(LocalModes::ISIG)
    }

    /// The terminal goes away, as when its window is closed.
    pub fn close(&self) {
        tmux(&self.socket, &["kill-pane"]);
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        tmux(&self.socket, &["kill-server"]);
    }
}

/// The folders in which programs are found; `hull` is in the first.
fn path() -> OsString {
    let folder = Path::new(env!("CARGO_BIN_EXE_hull")).parent();
    let mut path = OsString::from(folder.expect("a folder"));
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

fn tmux(socket: &Path, arguments: &[&str]) -> Output {
    let tmux = Command::new("tmux")
        .arg("-S")
        .arg(socket)
        .args(arguments)
        .output();
    tmux.expect("tmux starts")
}
