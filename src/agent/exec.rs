//! The command to run, and its bytes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use hull_agent::{CommandHeader, FromHost, Interface, MAX_COMMAND, MAX_STRINGS, WindowSize, frame};

use super::AgentError;

/// What the guest's init runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// The program, looked up in the guest's PATH when it has no slash, and its arguments.
    pub argv: Vec<OsString>,
    /// `NAME=value` each. The guest adds PATH, HOME and TERM where they are missing.
    pub env: Vec<OsString>,
    /// Working directory; empty for the root directory.
    pub cwd: OsString,
    /// Run on a terminal of this size instead of three pipes.
    pub tty: Option<WindowSize>,
    /// Network interfaces that are set up before.
    pub networks: Vec<Interface>,
}

impl Exec {
    /// The frames that carry the command and what it needs before, one after the other.
    pub(super) fn frames(&self) -> Result<Vec<u8>, AgentError> {
        let body = self.encode()?;
        let mut frames = Vec::with_capacity(body.len() + frame::HEADER);
        for network in &self.networks {
            append(&mut frames, &FromHost::Interface(*network));
        }
        let mut chunks = body.chunks(frame::MAX_PAYLOAD).peekable();
        while let Some(chunk) = chunks.next() {
            append(
                &mut frames,
                &match chunks.peek() {
                    Some(_) => FromHost::ExecPart(chunk),
                    None => FromHost::Exec(chunk),
                },
            );
        }
        Ok(frames)
    }

    fn encode(&self) -> Result<Vec<u8>, AgentError> {
        if self.argv.is_empty() {
            return Err(AgentError::NoCommand);
        }
        let header = CommandHeader {
            tty: self.tty,
            argc: self.argv.len() as u32,
            envc: self.env.len() as u32,
        };
        let mut body = header.encode().to_vec();
        let strings = std::iter::once(("directory", &self.cwd))
            .chain(self.argv.iter().map(|string| ("argument", string)))
            .chain(self.env.iter().map(|string| ("variable", string)));
        for (what, string) in strings {
            if string.as_bytes().contains(&0) {
                let text = string.to_string_lossy().into_owned();
                return Err(AgentError::Nul { what, text });
            }
            body.extend_from_slice(string.as_bytes());
            body.push(0);
        }
        let (bytes, strings) = (body.len(), self.argv.len() + self.env.len());
        if bytes > MAX_COMMAND || strings > MAX_STRINGS {
            return Err(AgentError::TooLong { bytes, strings });
        }
        Ok(body)
    }
}

/// Append the frame of `message`, whose bytes the caller has cut to fit one.
pub(super) fn append(out: &mut Vec<u8>, message: &FromHost<'_>) {
    let payload = match message {
        FromHost::ExecPart(bytes) | FromHost::Exec(bytes) | FromHost::Stdin(bytes) => bytes.len(),
        FromHost::Interface(interface) => interface.encode().len(),
        _ => 4,
    };
    let start = out.len();
    out.resize(start + frame::HEADER + payload, 0);
    let len = out.get_mut(start..).and_then(|space| message.encode(space));
    debug_assert!(len.is_some(), "a frame of {payload} bytes");
    out.truncate(start + len.unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(argv: &[&str]) -> Exec {
        Exec {
            argv: argv.iter().map(Into::into).collect(),
            ..Exec::default()
        }
    }

    #[test]
    fn what_execve_cannot_take_is_refused_before_it_is_sent() {
        assert_eq!(exec(&[]).frames(), Err(AgentError::NoCommand));
        let text = "a\0b".to_string();
        let what = "argument";
        assert_eq!(
            exec(&["a\0b"]).frames(),
            Err(AgentError::Nul { what, text })
        );
        let long = "x".repeat(MAX_COMMAND);
        assert!(matches!(
            exec(&[&long]).frames(),
            Err(AgentError::TooLong { .. })
        ));
    }

    #[test]
    fn a_long_command_is_split_over_frames() {
        let argv: Vec<String> = (0..100_000).map(|n| format!("argument {n}")).collect();
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let frames = exec(&argv).frames().unwrap();
        let (mut rest, mut body, mut last) = (&frames[..], Vec::new(), false);
        while let Some(frame) = frame::first(rest).unwrap() {
            assert!(!last, "nothing follows the last part");
            rest = &rest[frame.wire_len()..];
            match FromHost::decode(frame).unwrap() {
                FromHost::ExecPart(bytes) => body.extend_from_slice(bytes),
                FromHost::Exec(bytes) => {
                    body.extend_from_slice(bytes);
                    last = true;
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(last && rest.is_empty());
        let command = hull_agent::Command::decode(&body).unwrap();
        assert!(
            command
                .argv()
                .map(|s| s.to_bytes())
                .eq(argv.iter().map(|s| s.as_bytes()))
        );
    }
}
