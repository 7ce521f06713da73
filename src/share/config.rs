//! A share's configuration, and how it is typed: `HOSTDIR:/guest/path[:ro][:lock=host][:xattr=on]`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::table::{Separators, Table};
use crate::devices::virtio::fs::MAX_TAG;

/// A share in a file as a table.
pub const TABLE: Table = Table::new(
    "share",
    &["folder", "path"],
    &["ro", "lock", "xattr"],
    Separators::ColonsButInFirst,
);

/// PATH_MAX (uapi/linux/limits.h).
const MAX_PATH: usize = 4096;

/// A share as the user asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The folder of the host.
    pub folder: PathBuf,
    /// Where hull's init mounts it.
    pub guest_path: String,
    /// The guest may not change anything.
    pub read_only: bool,
    /// Locks of files apply between guest and host, not in the guest alone.
    pub host_locks: bool,
    /// The guest has the extended attributes of files that begin with `user.`.
    pub xattrs: bool,
    /// By which the guest mounts it; at most [`MAX_TAG`] bytes.
    pub tag: String,
}

impl FromStr for Config {
    type Err = String;

    /// The last `:/` splits, so that HOSTDIR may have colons. The tag is chosen by [`name`].
    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write HOSTDIR:/guest/path or HOSTDIR:/guest/path:ro, such as .:/src:ro";
        let Some(at) = text.rfind(":/") else {
            let path = text.split_once(':').map(|(_, path)| path);
            let path = path.filter(|path| !path.is_empty());
            return Err(path.map_or(form.into(), |path| {
                let path = path.split(':').next().unwrap_or_default();
                format!("the path in the guest is absolute: write /{path}")
            }));
        };
        let (folder, rest) = (&text[..at], &text[at + 1..]);
        if folder.is_empty() {
            return Err(form.into());
        }
        let (path, options) = rest.split_once(':').unwrap_or((rest, ""));
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return Err("the guest's / is its own; name a path below it, such as /share".into());
        }
        if parts.iter().any(|part| matches!(*part, "." | "..")) {
            return Err("the path in the guest has no . and no ..".into());
        }
        let guest_path = format!("/{}", parts.join("/"));
        if guest_path.len() >= MAX_PATH {
            return Err(format!("a path has less than {MAX_PATH} bytes"));
        }
        let mut config = Config {
            folder: folder.into(),
            guest_path,
            read_only: false,
            host_locks: false,
            xattrs: false,
            tag: String::new(),
        };
        for option in options
            .split([':', ','])
            .filter(|option| !option.is_empty())
        {
            match option {
                "ro" => config.read_only = true,
                "rw" => config.read_only = false,
                "lock=host" => config.host_locks = true,
                "lock=guest" => config.host_locks = false,
                "xattr=on" => config.xattrs = true,
                "xattr=off" => config.xattrs = false,
                _ => {
                    return Err(format!(
                        "`{option}`: after the path in the guest comes ro, rw, lock=host or xattr=on"
                    ));
                }
            }
        }
        Ok(config)
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (folder, path) = (self.folder.display(), &self.guest_path);
        write!(f, "{folder}:{path}")?;
        let options = [
            (self.read_only, "ro"),
            (self.host_locks, "lock=host"),
            (self.xattrs, "xattr=on"),
        ];
        for (_, option) in options.iter().filter(|(is_set, _)| *is_set) {
            write!(f, ":{option}")?;
        }
        Ok(())
    }
}

/// Give each share its tag: the last part of its path in the guest, or `shareN`, N from 0 on in
/// the order of the flags, when that is taken or too long for one.
///
/// # Errors
/// Two have the same path.
pub fn name(mut shares: Vec<&mut Config>) -> Result<(), String> {
    for index in 0..shares.len() {
        let path = shares[index].guest_path.clone();
        let before = &shares[..index];
        if before.iter().any(|share| share.guest_path == path) {
            return Err(format!(
                "{path}: two folders have this path in the guest; give each its own"
            ));
        }
        let taken = |tag: &str| before.iter().any(|share| share.tag == tag);
        let last = path.rsplit('/').next().unwrap_or_default();
        let fits = last.len() <= MAX_TAG && !taken(last);
        let numbered = (index..).map(|n| format!("share{n}"));
        let tag = std::iter::once(last.to_string())
            .filter(|_| fits)
            .chain(numbered)
            .find(|tag| !taken(tag));
        shares[index].tag = tag.unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        text.parse()
    }

    #[test]
    fn a_share_has_a_folder_and_a_path() {
        let config = parse("/a:/b:/mnt//src/:ro").unwrap();
        assert_eq!(config.folder, Path::new("/a:/b"));
        assert_eq!(config.guest_path, "/mnt/src");
        assert!(config.read_only);
        assert!(!parse(".:/src").unwrap().read_only);
        assert!(!parse(".:/src:rw").unwrap().read_only);
        let config = parse(".:/src:ro,lock=host:xattr=on").unwrap();
        assert!(config.read_only && config.host_locks && config.xattrs);
        assert_eq!(config.to_string(), ".:/src:ro:lock=host:xattr=on");
        assert_eq!(parse(&config.to_string()), Ok(config));
        for (bad, part) in [
            ("", "write HOSTDIR:/guest/path"),
            ("/a", "write HOSTDIR:/guest/path"),
            (":/b", "write HOSTDIR:/guest/path"),
            ("/a:", "write HOSTDIR:/guest/path"),
            ("/a:b", "write /b"),
            ("/a:b:ro", "write /b"),
            ("/a:/", "the guest's / is its own"),
            ("/a:/b/../c", "no . and no .."),
            ("/a:/b:rx", "`rx`"),
            (&format!("/a:/{}", "x".repeat(4095)), "less than 4096"),
        ] {
            let refusal = parse(bad).unwrap_err();
            assert!(refusal.contains(part), "{bad}: {refusal}");
        }
    }

    #[test]
    fn tags_are_last_parts_and_differ() {
        let long = "x".repeat(MAX_TAG + 1);
        let paths = ["/src", "/b/src", "/share1", "/share2", &format!("/{long}")];
        let mut shares = paths.map(|path| parse(&format!("/a:{path}")).unwrap());
        name(shares.iter_mut().collect()).unwrap();
        let tags: Vec<&str> = shares.iter().map(|share| share.tag.as_str()).collect();
        assert_eq!(tags, ["src", "share1", "share2", "share3", "share4"]);
        let mut twice = ["/a:/src", "/b:/src/"].map(|text| parse(text).unwrap());
        assert!(
            name(twice.iter_mut().collect())
                .unwrap_err()
                .contains("/src: two folders")
        );
    }
}
