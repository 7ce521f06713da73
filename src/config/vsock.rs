//! The socket device's configuration: `cid=N,socket=PATH`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::table::{Separators, Table};
use crate::devices::virtio::vsock::{MAX_CID, MIN_CID};

/// A socket device in a file as a table.
pub const TABLE: Table = Table::new(
    "vsock",
    &[],
    &["cid", "socket"],
    Separators::CommasButInLast,
);
/// Longest path of a socket, in bytes: with `_4294967295` behind it, it still fits into the 107
/// bytes of an address (unix(7)).
pub const MAX_PATH: usize = 107 - 11;

/// A virtio socket device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vsock {
    /// The guest's CID, 3 to 4294967294.
    pub cid: u32,
    /// The Unix socket that programs on the host connect to, at most [`MAX_PATH`] bytes. hull
    /// creates it, and removes it after the run.
    pub socket: PathBuf,
}

impl FromStr for Vsock {
    type Err = String;

    /// PATH is the rest, commas and all.
    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write cid=N,socket=PATH, such as cid=3,socket=/tmp/guest.vsock";
        let rest = text.strip_prefix("cid=").ok_or(form)?;
        let (cid, socket) = rest.split_once(",socket=").ok_or(form)?;
        let cid = match cid.parse() {
            Ok(cid) if (MIN_CID..=MAX_CID).contains(&cid) => cid,
            _ => return Err(format!("a guest's cid is {MIN_CID} to {MAX_CID}")),
        };
        match socket.len() {
            0 => Err(form.into()),
            1..=MAX_PATH => Ok(Self {
                cid,
                socket: socket.into(),
            }),
            len => Err(format!(
                "the path has {len} bytes and a socket's has at most {MAX_PATH} here, to leave \
                 room for _PORT; choose a shorter one"
            )),
        }
    }
}

impl fmt::Display for Vsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cid={},socket={}", self.cid, self.socket.display())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_vsock_has_a_cid_and_a_path() {
        let config: Vsock = "cid=3,socket=/tmp/a,socket=b".parse().unwrap();
        assert_eq!(config.cid, 3);
        assert_eq!(config.socket, Path::new("/tmp/a,socket=b"));
        let path = |len| format!("cid=4294967294,socket={}", "x".repeat(len));
        assert!(path(MAX_PATH).parse::<Vsock>().is_ok());
        for (bad, part) in [
            ("", "write cid=N,socket=PATH"),
            ("cid=3", "write cid=N,socket=PATH"),
            ("cid=3,socket=", "write cid=N,socket=PATH"),
            ("socket=x,cid=3", "write cid=N,socket=PATH"),
            ("cid=2,socket=x", "3 to 4294967294"),
            ("cid=4294967295,socket=x", "3 to 4294967294"),
            ("cid=-1,socket=x", "3 to 4294967294"),
            (&path(MAX_PATH + 1), "has 97 bytes"),
        ] {
            let refusal = bad.parse::<Vsock>().unwrap_err();
            assert!(refusal.contains(part), "{bad}: {refusal}");
        }
    }
}
