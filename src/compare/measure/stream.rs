//! A connection to what is measured: it waits as long as it may, and no longer when somebody asks for the
//! end.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::timed::{self, RunError};

/// Longest that a signal waits to be seen.
const LOOK: Duration = Duration::from_millis(100);

/// A socket's end.
pub struct Stream {
    socket: Box<dyn Socket>,
    /// Of one read or write.
    limit: Duration,
}

trait Socket: Read + Write {}
impl<T: Read + Write> Socket for T {}

impl Stream {
    /// Over a path of the host's.
    ///
    /// # Errors
    /// The host's kernel refused a time-out.
    pub fn unix(socket: UnixStream, limit: Duration) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(LOOK))?;
        socket.set_write_timeout(Some(LOOK))?;
        let socket = Box::new(socket);
        Ok(Self { socket, limit })
    }

    /// Over a network, without waiting for more to send (TCP_NODELAY).
    ///
    /// # Errors
    /// The host's kernel refused a time-out.
    pub fn tcp(socket: TcpStream, limit: Duration) -> io::Result<Self> {
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(LOOK))?;
        socket.set_write_timeout(Some(LOOK))?;
        let socket = Box::new(socket);
        Ok(Self { socket, limit })
    }

    fn patiently(
        &mut self,
        mut once: impl FnMut(&mut dyn Socket) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let started = Instant::now();
        loop {
            match once(&mut *self.socket) {
                Err(error) if is_wait(&error) => {}
                done => return done,
            }
            if timed::is_stopped() {
                return Err(io::Error::other(RunError::Stopped));
            }
            if started.elapsed() > self.limit {
                let seconds = self.limit.as_secs();
                let text = format!("no answer within {seconds} s");
                return Err(io::Error::new(ErrorKind::TimedOut, text));
            }
        }
    }
}

fn is_wait(error: &io::Error) -> bool {
    use ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.patiently(|socket| socket.read(buffer))
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.patiently(|socket| socket.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_ends_with_a_word_and_what_comes_late_comes() {
        let (one, mut other) = UnixStream::pair().expect("a pair");
        let mut stream = Stream::unix(one, Duration::from_millis(250)).expect("a stream");
        let error = stream.read(&mut [0]).expect_err("nobody writes");
        assert_eq!(error.to_string(), "no answer within 0 s");
        stream.limit = Duration::from_secs(60);
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            other.write_all(b"ab")
        });
        let mut both = [0; 2];
        stream.read_exact(&mut both).expect("comes");
        assert_eq!(&both, b"ab");
        late.join().expect("a thread").expect("written");
    }
}
