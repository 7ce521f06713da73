//! hull on a pseudo-terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::LIMIT;

/// hull on a terminal of 30 by 101 characters.
pub struct Session {
    pub hull: Child,
    pub keyboard: File,
    /// hull's side of the terminal, to read its modes.
    pub terminal: OwnedFd,
    pub output: Receiver<Vec<u8>>,
    pub seen: String,
}

impl Session {
    pub fn start(arguments: &[&str]) -> Self {
        let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
        hull.args(arguments);
        Self::of(hull)
    }

    /// Starts `command`, which runs hull, on a new terminal.
    pub fn of(mut command: Command) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("a terminal");
        grantpt(&ours).expect("granted");
        unlockpt(&ours).expect("unlocked");
        let name = ptsname(&ours, Vec::new()).expect("its name");
        let name = name.to_str().expect("a path");
        let open = || File::options().read(true).write(true).open(name);
        let terminal = OwnedFd::from(open().expect("its other side"));
        resize(&terminal, 30, 101);
        command.env("TERM", "vt100");
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

    pub fn key(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("typed");
    }

    /// Waits until the screen shows `text` and drops everything up to its end.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let seen = self.sees(text, LIMIT);
        assert!(seen, "no {text:?} on the screen: {:?}", self.seen);
    }

    /// As [`Session::wait_for`]; false if it does not show within `limit`.
    pub fn sees(&mut self, text: &str, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen += &String::from_utf8_lossy(&bytes),
                Err(_) => return false,
            }
        }
    }

    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).expect("modes").local_modes;
        !modes.contains(LocalModes::ECHO | LocalModes::ICANON)
    }

    /// Waits for hull's end and returns its status, `None` after a signal; the terminal must not be in raw mode.
    pub fn end(mut self) -> Option<i32> {
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.hull.try_wait().expect("waited") {
                break status;
            }
            assert!(
                Instant::now() < deadline,
                "hull does not exit: {:?}",
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

pub fn resize(terminal: &OwnedFd, rows: u16, cols: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).expect("resized");
}
