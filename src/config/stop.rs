//! How a machine's own command is asked to end, and the names of signals.

use std::str::FromStr;

use nix::libc::{SIGRTMAX, SIGRTMIN};
use nix::sys::signal::Signal;

/// How `hull stop` asks the command to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stop {
    /// The signal, 1 to 64; SIGTERM if `None`.
    pub signal: Option<u8>,
    /// Seconds until it is killed, unless `hull stop` says otherwise; 10 if `None`.
    pub seconds: Option<u32>,
}

impl Stop {
    /// The signal's number.
    pub fn signal(&self) -> u8 {
        self.signal.unwrap_or(Signal::SIGTERM as u8)
    }
}

/// Parse a signal's name, with or without SIG, or its number: `TERM`, `SIGRTMIN+3`, `15`.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn parse_signal(text: &str) -> Result<u8, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = Signal::from_str(&format!("SIG{name}")).map(|signal| signal as u8);
    let number = text.parse().ok().filter(|number| (1..=64).contains(number));
    let number = known.ok().or(number).or_else(|| real_time(name));
    number.ok_or_else(|| "unknown signal; write its name, as TERM or SIGHUP, or its number".into())
}

/// `RTMIN+N` or `RTMAX-N`.
fn real_time(name: &str) -> Option<u8> {
    let (start, rest) = match name.strip_prefix("RTMIN") {
        Some(rest) => (SIGRTMIN(), rest),
        None => (SIGRTMAX(), name.strip_prefix("RTMAX")?),
    };
    let offset: i32 = if rest.is_empty() {
        0
    } else {
        rest.parse().ok()?
    };
    let number = start.checked_add(offset)?;
    let within = rest.is_empty() || rest.starts_with(['+', '-']);
    let range = SIGRTMIN()..=SIGRTMAX();
    u8::try_from(number)
        .ok()
        .filter(|_| within && range.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("sigquit", 3),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("rtmin", 34),
            ("9", 9),
            ("64", 64),
        ] {
            assert_eq!(parse_signal(text), Ok(number), "{text}");
        }
        for bad in [
            "", "SIG", "0", "65", "-1", "WINNER", "RTMIN+31", "RTMIN3", "RTMAX+1", "SIG15",
        ] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }
}
