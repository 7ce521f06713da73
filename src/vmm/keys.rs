//! Ctrl-A, the key for commands to hull instead of the guest.

const CTRL_A: u8 = 1;

/// A command to hull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End the machine without asking the guest.
    Quit,
    /// List the keys on standard error.
    Help,
}

/// The keys, as Ctrl-A h lists them.
pub const HELP: &str = "\
Ctrl-A h  this list
Ctrl-A x  end the virtual machine
Ctrl-A Ctrl-A  send Ctrl-A to the guest";

/// Separates hull's keys from what is typed for the guest.
#[derive(Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// The bytes of `typed` for the guest, and the commands in order. An unknown key after Ctrl-A goes
    /// to the guest together with the Ctrl-A.
    pub fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, Vec<Command>) {
        let (mut bytes, mut commands) = (Vec::with_capacity(typed.len()), Vec::new());
        for &byte in typed {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, CTRL_A) => self.escaped = true,
                (false, byte) => bytes.push(byte),
                (true, b'x' | b'X') => commands.push(Command::Quit),
                (true, b'h' | b'H' | b'?') => commands.push(Command::Help),
                (true, CTRL_A) => bytes.push(CTRL_A),
                (true, byte) => bytes.extend([CTRL_A, byte]),
            }
        }
        (bytes, commands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_may_arrive_in_pieces_and_other_bytes_pass() {
        let mut keys = Keys::default();
        assert_eq!(keys.filter(b"ls\n\x01"), (b"ls\n".to_vec(), vec![]));
        assert_eq!(keys.filter(b"x"), (vec![], vec![Command::Quit]));
        assert_eq!(keys.filter(b"\x01\x01h"), (b"\x01h".to_vec(), vec![]));
        assert_eq!(
            keys.filter(b"\x01h\x01q"),
            (b"\x01q".to_vec(), vec![Command::Help])
        );
    }
}
