//! The ends of a command's streams that init holds: three pipes or a terminal.

use hull_agent::WindowSize;

use crate::channel::Termios;
use crate::sys::{self, Fd};

/// The ends; -1 where there is none.
pub struct Streams {
    pub input: Fd,
    pub output: Fd,
    pub error: Fd,
    /// Input and output are one terminal.
    pub terminal: bool,
}

impl Streams {
    /// Whether the suspend character, typed now, would stop no process: the terminal makes a signal of
    /// it, and in its foreground is the session's leader `child`, whose process group is orphaned, so
    /// that its default action is to ignore it. A shell that has job control or edits its lines wants
    /// the character.
    pub fn suspend_nothing(&self, child: i32) -> bool {
        const ISIG_ICANON: u32 = 1 | 2;
        let (mut modes, mut foreground) = (Termios::default(), 0i32);
        self.terminal
            && self.input >= 0
            && sys::ioctl_into(self.input, sys::TCGETS, &mut modes).is_ok()
            && modes.local & ISIG_ICANON == ISIG_ICANON
            && sys::ioctl_into(self.input, sys::TIOCGPGRP, &mut foreground).is_ok()
            && foreground == child
    }
}

/// Three pipes: init's ends, and the command's standard streams.
pub fn pipes() -> sys::Result<(Streams, [Fd; 3])> {
    let mut streams = Streams {
        input: -1,
        output: -1,
        error: -1,
        terminal: false,
    };
    let mut stdio = [-1; 3];
    let mut made = || {
        (stdio[0], streams.input) = sys::pipe()?;
        (streams.output, stdio[1]) = sys::pipe()?;
        (streams.error, stdio[2]) = sys::pipe()?;
        sys::set_nonblocking(streams.input)
    };
    match made() {
        Ok(_) => Ok((streams, stdio)),
        Err(errno) => {
            let ends = [streams.input, streams.output, streams.error];
            for fd in ends.into_iter().chain(stdio).filter(|fd| *fd >= 0) {
                sys::close(fd);
            }
            Err(errno)
        }
    }
}

/// A pseudoterminal (pts(4)): its main side, and the command's standard streams.
pub fn terminal(window: WindowSize) -> sys::Result<(Streams, [Fd; 3])> {
    let flags = sys::O_RDWR | sys::O_NOCTTY | sys::O_CLOEXEC;
    let main = sys::open(c"/dev/ptmx", flags | sys::O_NONBLOCK)?;
    let side = sys::ioctl_with(main, sys::TIOCSPTLCK, &0i32)
        .and_then(|_| sys::ioctl(main, sys::TIOCGPTPEER, flags as usize));
    let side = side.inspect_err(|_| sys::close(main))? as Fd;
    resize(main, window);
    let streams = Streams {
        input: main,
        output: main,
        error: -1,
        terminal: true,
    };
    Ok((streams, [side; 3]))
}

/// Set the size of `terminal`.
pub fn resize(terminal: Fd, WindowSize { rows, cols }: WindowSize) {
    // struct winsize; the kernel sends SIGWINCH.
    let _ = sys::ioctl_with(terminal, sys::TIOCSWINSZ, &[rows, cols, 0, 0]);
}
