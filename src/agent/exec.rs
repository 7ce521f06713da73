//! The command to run, and its encoding for the guest.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use hull_agent::{
    ALL_CAPABILITIES, CommandHeader, FromHost, Interface, Limit, MAX_COMMAND, MAX_GROUPS,
    MAX_STRINGS, MountKind, RESOURCES, WindowSize, frame,
};

use super::error::AgentError;

/// What the guest's init runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// The program, looked up in the guest's PATH when it has no slash, and its arguments.
    pub argv: Vec<OsString>,
    /// `NAME=value` each. The guest adds PATH and HOME where they are missing, and TERM on a terminal.
    pub env: Vec<OsString>,
    /// Working directory; empty for the root directory.
    pub cwd: OsString,
    /// The user, as `NAME|UID[:GROUP|GID]`, or nothing for root; and more groups, a comma before each.
    pub user: OsString,
    /// Run on a terminal of this size instead of three pipes.
    pub tty: Option<WindowSize>,
    /// What it may do, beside what its user may.
    pub privileges: Privileges,
    /// Have init report that it runs, as [`super::Event::Started`].
    pub report_start: bool,
    /// Run a function of init's own, which the arguments name, and not a program of the guest.
    pub own: bool,
    /// Network interfaces that init sets up before the command.
    pub networks: Vec<Interface>,
    /// The image that becomes the root file system before all mounts.
    pub root: Option<Root>,
    /// What init mounts before the command, in this order.
    pub mounts: Vec<Mount>,
}

/// What a command may do, beside what its user may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// Groups beside those of the user, at most [`MAX_GROUPS`].
    pub groups: Vec<u32>,
    /// The bounding set, bit N for capability N (capabilities(7)): a command of root has all that are in it,
    /// another one gets them from files alone.
    pub capabilities: u64,
    /// Limits, one a resource at most.
    pub limits: Vec<Limit>,
}

impl Default for Privileges {
    /// All of the user's.
    fn default() -> Self {
        Self {
            groups: Vec::new(),
            capabilities: ALL_CAPABILITIES,
            limits: Vec::new(),
        }
    }
}

/// An image as the root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Mount it read-only.
    pub read_only: bool,
    /// The name in /dev of the image's disk.
    pub disk: String,
    /// The name in /dev of the disk for what is written; empty for memory.
    pub upper: String,
    /// The guest's name in its network, 1 to 64 bytes.
    pub hostname: String,
    /// The content of /etc/hosts.
    pub hosts: String,
    /// Lines for /etc/resolv.conf; without a name server among them, behind those of the networks.
    pub resolver: String,
}

/// A folder in the guest: of the host, in memory or on a disk; or, at `/`, the disk that becomes its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Whether it is a shared folder, memory or a disk.
    pub kind: MountKind,
    /// Tag of the virtio file system, a disk's name in /dev, or options.
    pub tag: String,
    /// Absolute path in the guest; missing folders are created.
    pub path: String,
    /// Mount it read-only; the device enforces that, too.
    pub read_only: bool,
}

impl Exec {
    /// Check that the command can be sent.
    ///
    /// # Errors
    /// [`AgentError::NoCommand`], [`AgentError::Nul`], [`AgentError::TooLong`],
    /// [`AgentError::TooManyGroups`] or [`AgentError::Mount`].
    pub fn check(&self) -> Result<(), AgentError> {
        self.frames().map(drop)
    }

    /// The frames of the networks, the mounts and the command, one after the other.
    pub(super) fn frames(&self) -> Result<Vec<u8>, AgentError> {
        let body = self.encode()?;
        let mut frames = Vec::with_capacity(body.len() + frame::HEADER);
        append_networks(&mut frames, &self.networks);
        if let Some(root) = &self.root {
            root.append_to(&mut frames, &self.cwd)?;
        }
        for mount in &self.mounts {
            mount.append_to(&mut frames)?;
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
        let Privileges {
            groups,
            capabilities,
            limits,
        } = &self.privileges;
        if groups.len() > MAX_GROUPS || limits.len() > RESOURCES {
            return Err(AgentError::TooManyGroups);
        }
        let header = CommandHeader {
            tty: self.tty,
            report_start: self.report_start,
            own: self.own,
            argc: self.argv.len() as u32,
            envc: self.env.len() as u32,
            capabilities: *capabilities,
            groups: groups.len() as u8,
            limits: limits.len() as u8,
        };
        let mut body = header.encode().to_vec();
        body.extend(groups.iter().flat_map(|group| group.to_le_bytes()));
        body.extend(limits.iter().flat_map(Limit::encode));
        let strings = [("directory", &self.cwd), ("user", &self.user)]
            .into_iter()
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

fn string(what: &'static str, text: &str) -> Result<CString, AgentError> {
    CString::new(text).map_err(|_| AgentError::Nul {
        what,
        text: text.into(),
    })
}

impl Root {
    fn append_to(&self, frames: &mut Vec<u8>, cwd: &OsStr) -> Result<(), AgentError> {
        let (disk, upper) = (string("disk", &self.disk)?, string("disk", &self.upper)?);
        let hostname = string("host name", &self.hostname)?;
        let hosts = string("text of /etc/hosts", &self.hosts)?;
        let resolver = string("text of /etc/resolv.conf", &self.resolver)?;
        let workdir = CString::new(cwd.as_bytes()).unwrap_or_default();
        let root = hull_agent::Root {
            read_only: self.read_only,
            disk: &disk,
            upper: &upper,
            hostname: &hostname,
            workdir: &workdir,
            hosts: &hosts,
            resolver: &resolver,
        };
        root.check().map_err(AgentError::Root)?;
        append(frames, &FromHost::Root(root));
        Ok(())
    }
}

impl Mount {
    fn append_to(&self, frames: &mut Vec<u8>) -> Result<(), AgentError> {
        let (tag, path) = (string("tag", &self.tag)?, string("path", &self.path)?);
        let mount = hull_agent::Mount {
            kind: self.kind,
            read_only: self.read_only,
            tag: &tag,
            path: &path,
        };
        mount.check().map_err(|reason| AgentError::Mount {
            path: self.path.clone(),
            reason,
        })?;
        append(frames, &FromHost::Mount(mount));
        Ok(())
    }
}

/// Append a frame for each of `networks`.
pub(super) fn append_networks(out: &mut Vec<u8>, networks: &[Interface]) {
    for network in networks {
        append(out, &FromHost::Interface(*network));
    }
}

/// Append the frame of `message`; the caller has limited its bytes to [`frame::MAX_PAYLOAD`].
pub(super) fn append(out: &mut Vec<u8>, message: &FromHost<'_>) {
    append_for(out, 0, message);
}

/// As [`append`], about `process`.
pub(super) fn append_for(out: &mut Vec<u8>, process: u8, message: &FromHost<'_>) {
    let payload = match message {
        FromHost::ExecPart(bytes) | FromHost::Exec(bytes) | FromHost::Stdin(bytes) => bytes.len(),
        FromHost::Interface(interface) => interface.encode().len(),
        FromHost::Resumed(resumed) => resumed.encode().len(),
        FromHost::Root(root) => root.wire_len(),
        FromHost::Mount(_) => 1 + hull_agent::MAX_TAG + 1 + hull_agent::MAX_PATH,
        _ => 4,
    };
    let start = out.len();
    out.resize(start + frame::HEADER + payload, 0);
    let len = out
        .get_mut(start..)
        .and_then(|space| message.encode_for(process, space));
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
    fn a_command_that_execve_cannot_take_is_refused_before_it_is_sent() {
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
    fn mounts_come_before_the_command() {
        let mount = |path: &str| Mount {
            kind: MountKind::Share,
            tag: "src".into(),
            path: path.into(),
            read_only: true,
        };
        let mut exec = exec(&["true"]);
        exec.mounts = vec![mount("/src"), mount("/a/b")];
        let frames = exec.frames().unwrap();
        let mut rest = &frames[..];
        for path in [c"/src", c"/a/b"] {
            let frame = frame::first(rest).unwrap().unwrap();
            rest = &rest[frame.wire_len()..];
            let sent = FromHost::Mount(hull_agent::Mount {
                kind: MountKind::Share,
                read_only: true,
                tag: c"src",
                path,
            });
            assert_eq!(FromHost::decode(frame), Ok(sent));
        }
        let frame = frame::first(rest).unwrap().unwrap();
        assert!(matches!(FromHost::decode(frame), Ok(FromHost::Exec(_))));
        exec.mounts = vec![mount("/a/../b")];
        let refused = exec.frames();
        assert!(matches!(refused, Err(AgentError::Mount { .. })));
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
