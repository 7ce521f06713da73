//! Whether hull enters a jail before the guest runs: `[uid=N[,gid=N]]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::table::{Separators, Table};

/// A jail in a file as a table.
pub const TABLE: Table = Table::new("jail", &[], &["uid", "gid"], Separators::Commas);

/// A jail as the user asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jail {
    /// The user as whom hull runs there, not root; hull chooses one if `None`.
    pub uid: Option<u32>,
    /// The group, not root's; the number of the user if `None`.
    pub gid: Option<u32>,
}

impl FromStr for Jail {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut jail = Self::default();
        for option in text.split(',').filter(|_| !text.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let place = match key {
                "uid" => &mut jail.uid,
                "gid" => &mut jail.gid,
                _ => {
                    return Err(format!(
                        "'{option}' is no option of a jail; there are uid=N and gid=N"
                    ));
                }
            };
            *place = Some(match value.parse() {
                Ok(0) => {
                    return Err(format!(
                        "{key}=0 is root's, who could leave the jail; name another number, or leave {key}= \
                         out for one of hull's choice"
                    ));
                }
                // The kernel's mark for no change (setresuid(2)).
                Ok(u32::MAX) | Err(_) => {
                    return Err(format!(
                        "{key}={value}: it is a number from 1 to {}, not a name",
                        u32::MAX - 1
                    ));
                }
                Ok(id) => id,
            });
        }
        if jail.gid.is_some() && jail.uid.is_none() {
            return Err("gid= is for uid=: name both, or the uid alone".into());
        }
        Ok(jail)
    }
}

impl fmt::Display for Jail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = [("uid", self.uid), ("gid", self.gid)];
        let ids = ids
            .iter()
            .filter_map(|(key, id)| Some(format!("{key}={}", (*id)?)));
        f.write_str(&ids.collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jail_has_a_user_who_is_not_root_or_none() {
        let parse = |text: &str| text.parse::<Jail>();
        assert_eq!(parse(""), Ok(Jail::default()));
        let both = Jail {
            uid: Some(123),
            gid: Some(100),
        };
        assert_eq!(parse("uid=123,gid=100"), Ok(both));
        assert_eq!(both.to_string().parse(), Ok(both));
        for (wrong, part) in [
            ("uid=0", "root's"),
            ("uid=1,gid=0", "root's"),
            ("uid=nobody", "not a name"),
            ("uid=4294967295", "from 1 to 4294967294"),
            ("uid=", "from 1 to"),
            ("gid=5", "name both"),
            ("chroot=/srv", "no option of a jail"),
        ] {
            let refusal = parse(wrong).unwrap_err();
            assert!(refusal.contains(part), "{wrong}: {refusal}");
        }
    }
}
