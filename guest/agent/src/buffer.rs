//! A byte queue of fixed size.

/// A contiguous queue of bytes.
///
/// It restarts at the front when it becomes empty, so that little traffic touches few pages.
pub struct Buffer<const N: usize> {
    bytes: [u8; N],
    start: usize,
    end: usize,
}

impl<const N: usize> Buffer<N> {
    /// An empty buffer; all zero, so that a static one takes no room in a program file.
    pub const fn new() -> Self {
        Self {
            bytes: [0; N],
            start: 0,
            end: 0,
        }
    }

    /// The queued bytes, oldest first.
    pub fn data(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// How many bytes can be added.
    pub fn room(&self) -> usize {
        N - (self.end - self.start)
    }

    /// The free space to write to; [`Buffer::filled`] then adds what was written.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// Queue the first `n` bytes of [`Buffer::space`].
    pub fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(N);
    }

    /// Drop the `n` oldest bytes.
    pub fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Append `bytes`. If they do not all fit, append nothing and return `false`.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let Some(target) = self.space().get_mut(..bytes.len()) else {
            return false;
        };
        target.copy_from_slice(bytes);
        self.filled(bytes.len());
        true
    }
}

impl<const N: usize> Default for Buffer<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::Buffer;

    #[test]
    fn bytes_leave_in_order_and_free_their_space() {
        let mut buffer = Buffer::<8>::new();
        assert!(buffer.push(b"abcdef"));
        assert!(!buffer.push(b"xyz"), "nine bytes do not fit");
        buffer.consume(4);
        assert_eq!(buffer.room(), 6);
        assert!(buffer.push(b"ghijkl"));
        assert_eq!(buffer.data(), b"efghijkl");
        buffer.consume(99);
        assert_eq!((buffer.data(), buffer.room()), (&b""[..], 8));
    }
}
