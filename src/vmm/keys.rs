//! Ctrl-A, the key for commands to hull instead of the guest.

const CTRL_A: u8 = 1;
const CTRL_C: u8 = 3;
const CTRL_Z: u8 = 26;

/// A command to hull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End the machine without asking the guest.
    Quit,
    /// End the machine, as SIGINT does before its guest is up.
    Interrupt,
    /// Stop hull, as Ctrl-Z stops any process.
    Suspend,
    /// List the keys on standard error.
    Help,
}

/// The keys, as Ctrl-A h lists them.
pub const HELP: &str = "\
Ctrl-A h  this list
Ctrl-A x  end the virtual machine
Ctrl-A z  stop hull, until the shell's fg or bg
Ctrl-A Ctrl-A  send Ctrl-A to the guest";

/// Separates hull's keys from what is typed for the guest.
#[derive(Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    /// The bytes of `typed` for the guest, and the commands in order. An unknown key after Ctrl-A goes
    /// to the guest together with the Ctrl-A. While the guest's command is not `up`, Ctrl-C and Ctrl-Z
    /// are hull's.
    pub fn filter(&mut self, typed: &[u8], up: bool) -> (Vec<u8>, Vec<Command>) {
        let (mut bytes, mut commands) = (Vec::with_capacity(typed.len()), Vec::new());
        for &byte in typed {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, CTRL_A) => self.escaped = true,
                (false, CTRL_C) if !up => commands.push(Command::Interrupt),
                (false, CTRL_Z) if !up => commands.push(Command::Suspend),
                (false, byte) => bytes.push(byte),
                (true, b'x' | b'X') => commands.push(Command::Quit),
                (true, b'z' | b'Z') => commands.push(Command::Suspend),
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
        let mut typed = |bytes: &[u8], up| keys.filter(bytes, up);
        assert_eq!(typed(b"ls\n\x01", true), (b"ls\n".to_vec(), vec![]));
        assert_eq!(typed(b"x", true), (vec![], vec![Command::Quit]));
        assert_eq!(typed(b"\x01\x01h", true), (b"\x01h".to_vec(), vec![]));
        assert_eq!(
            typed(b"\x01h\x01q", true),
            (b"\x01q".to_vec(), vec![Command::Help])
        );
        assert_eq!(
            typed(b"\x03\x1a\x01z", true),
            (b"\x03\x1a".to_vec(), vec![Command::Suspend])
        );
        assert_eq!(
            typed(b"a\x03\x1a", false),
            (b"a".to_vec(), vec![Command::Interrupt, Command::Suspend])
        );
    }
}
