//! The keys by which a user leaves what is attached: ctrl-p ctrl-q, or others as docker writes them.

/// Longest sequence, in keys.
pub const MAX_KEYS: usize = 16;
const CTRL_P: u8 = 16;
const CTRL_Q: u8 = 17;

/// The keys, and those of them that were typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachKeys {
    keys: Vec<u8>,
    held: Vec<u8>,
}

impl Default for DetachKeys {
    fn default() -> Self {
        Self {
            keys: vec![CTRL_P, CTRL_Q],
            held: Vec::new(),
        }
    }
}

impl DetachKeys {
    /// Parse keys as `ctrl-x,q`: a character, or `ctrl-` and one of `a` to `z`, `@`, `[`, `\`, `]`, `^` and `_`.
    ///
    /// # Errors
    /// What the text must be instead, for the message behind its flag.
    pub fn parse(text: &str) -> Result<Self, String> {
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        let keys = keys.filter(|keys| keys.len() <= MAX_KEYS);
        let wrong =
            "write keys as ctrl-p,ctrl-q: a letter, or ctrl- and one of a-z, @, [, \\, ], ^ and _";
        keys.map(|keys| Self {
            keys,
            held: Vec::new(),
        })
        .ok_or_else(|| wrong.into())
    }

    /// The bytes of `typed` that are not the keys; what may still become them waits. `true` if the last key was
    /// typed: what is behind it is dropped.
    pub fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut bytes = Vec::with_capacity(typed.len() + self.held.len());
        for &byte in typed {
            self.held.push(byte);
            while !self.keys.starts_with(&self.held) {
                bytes.push(self.held.remove(0));
            }
            if self.held.len() == self.keys.len() {
                self.held.clear();
                return (bytes, true);
            }
        }
        (bytes, false)
    }
}

/// The byte that a key sends.
fn key(text: &str) -> Option<u8> {
    match (text.strip_prefix("ctrl-"), text.as_bytes()) {
        (Some(rest), _) => match rest.as_bytes() {
            [letter @ (b'a'..=b'z' | b'@' | b'['..=b'_')] => Some(letter & 0x1f),
            _ => None,
        },
        (None, [byte]) => Some(*byte),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_docker_has_them() {
        let keys = |text| DetachKeys::parse(text).map(|it| it.keys);
        assert_eq!(keys("ctrl-p,ctrl-q"), Ok(vec![16, 17]));
        assert_eq!(keys("ctrl-@,ctrl-[,ctrl-_,x"), Ok(vec![0, 27, 31, b'x']));
        for bad in ["", "ctrl-", "ctrl-1", "ctrl-p,", "ab", "ctrl-A"] {
            assert!(keys(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn keys_may_arrive_in_pieces_and_others_pass() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.filter(b"ls\n\x10"), (b"ls\n".to_vec(), false));
        assert_eq!(keys.filter(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11more"), (Vec::new(), true));
        assert_eq!(keys.filter(b"\x11"), (b"\x11".to_vec(), false));
        let mut keys = DetachKeys::parse("a,a,b").expect("keys");
        assert_eq!(keys.filter(b"aaab"), (b"a".to_vec(), true));
    }
}
