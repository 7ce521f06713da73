//! What follows `--vsock`.

pub use crate::vmm::vsock::Config;
use crate::vmm::vsock::{MAX_CID, MIN_CID, PATH_MOST};

/// Parse `cid=N,socket=PATH`; PATH is the rest, commas and all.
pub fn parse(text: &str) -> Result<Config, String> {
    let form = "write cid=N,socket=PATH, such as cid=3,socket=/tmp/guest.vsock";
    let rest = text.strip_prefix("cid=").ok_or(form)?;
    let (cid, socket) = rest.split_once(",socket=").ok_or(form)?;
    let (least, most) = (MIN_CID, MAX_CID);
    let cid = match cid.parse() {
        Ok(cid) if (least..=most).contains(&cid) => cid,
        _ => return Err(format!("a guest's cid is {least} to {most}")),
    };
    match socket.len() {
        0 => Err(form.into()),
        1..=PATH_MOST => Ok(Config {
            cid,
            socket: socket.into(),
        }),
        len => Err(format!(
            "the path has {len} bytes and a socket's has at most {} here, to leave room for \
             _PORT; choose a shorter one",
            PATH_MOST
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_vsock_has_a_cid_and_a_path() {
        let config = parse("cid=3,socket=/tmp/a,socket=b").unwrap();
        assert_eq!(config.cid, 3);
        assert_eq!(config.socket, Path::new("/tmp/a,socket=b"));
        let path = |len| format!("cid=4294967294,socket={}", "x".repeat(len));
        assert!(parse(&path(PATH_MOST)).is_ok());
        for (bad, part) in [
            ("", "write cid=N,socket=PATH"),
            ("cid=3", "write cid=N,socket=PATH"),
            ("cid=3,socket=", "write cid=N,socket=PATH"),
            ("socket=x,cid=3", "write cid=N,socket=PATH"),
            ("cid=2,socket=x", "3 to 4294967294"),
            ("cid=4294967295,socket=x", "3 to 4294967294"),
            ("cid=-1,socket=x", "3 to 4294967294"),
            (&path(PATH_MOST + 1), "has 97 bytes"),
        ] {
            let refusal = parse(bad).unwrap_err();
            assert!(refusal.contains(part), "{bad}: {refusal}");
        }
    }
}
