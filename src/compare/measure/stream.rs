//! A connection to a measured program whose reads and writes have a timeout and end on the stop flag.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::error::RunError;
use super::stop::{POLL_INTERVAL, is_stopped};

/// A connected socket of either family.
pub struct Stream {
    socket: Box<dyn Socket>,
    /// Timeout of one read or write.
    timeout: Duration,
}

trait Socket: Read + Write {}
impl<T: Read + Write> Socket for T {}

impl Stream {
    pub fn unix(socket: UnixStream, timeout: Duration) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(POLL_INTERVAL))?;
        socket.set_write_timeout(Some(POLL_INTERVAL))?;
        let socket = Box::new(socket);
        Ok(Self { socket, timeout })
    }

    /// Sets TCP_NODELAY, so that a byte is sent at once.
    pub fn tcp(socket: TcpStream, timeout: Duration) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(POLL_INTERVAL))?;
        socket.set_write_timeout(Some(POLL_INTERVAL))?;
        let socket = Box::new(socket);
        Ok(Self { socket, timeout })
    }

    fn retry(
        &mut self,
        mut transfer: impl FnMut(&mut dyn Socket) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let started = Instant::now();
        loop {
            match transfer(&mut *self.socket) {
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
    use super::*;

    #[test]
    fn a_read_times_out_and_waits_for_late_data() {
        let (one, mut other) = UnixStream::pair().expect("a pair");
        let mut stream = Stream::unix(one, Duration::from_millis(250)).expect("a stream");
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
