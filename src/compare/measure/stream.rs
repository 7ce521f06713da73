//! A connection to a measured program whose reads and writes have a timeout and end on the stop flag.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionbio;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::error::RunError;
use super::stop::{POLL_INTERVAL, is_stopped};

pub struct Stream {
    socket: File,
    /// Timeout of one read or write.
    timeout: Duration,
}

impl Stream {
    pub fn new(socket: impl Into<OwnedFd>, timeout: Duration) -> io::Result<Self> {
        let socket = socket.into();
        ioctl_fionbio(&socket, false)?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, direction, Some(POLL_INTERVAL))?;
        }
        let socket = socket.into();
        Ok(Self { socket, timeout })
    }

    fn retry(
        &mut self,
        mut transfer: impl FnMut(&mut File) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let started = Instant::now();
        loop {
            match transfer(&mut self.socket) {
                Err(error) if is_timeout(&error) => {}
                done => return done,
            }
            if is_stopped() {
                return Err(io::Error::other(RunError::Stopped));
            }
            if started.elapsed() > self.timeout {
                let text = format!("no answer within {} s", self.timeout.as_secs());
                return Err(io::Error::new(ErrorKind::TimedOut, text));
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    use ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.retry(|socket| socket.read(buffer))
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retry(|socket| socket.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_read_times_out_and_waits_for_late_data() {
        let (one, mut other) = UnixStream::pair().expect("a pair");
        let mut stream = Stream::new(one, Duration::from_millis(250)).expect("a stream");
        let error = stream.read(&mut [0]).expect_err("nothing is written");
        assert_eq!(error.to_string(), "no answer within 0 s");
        stream.timeout = Duration::from_secs(60);
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            other.write_all(b"ab")
        });
        let mut both = [0; 2];
        stream.read_exact(&mut both).expect("arrives");
        assert_eq!(&both, b"ab");
        late.join().expect("a thread").expect("written");
    }
}
