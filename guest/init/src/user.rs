//! The user as whom a command runs: passwd(5), group(5).

use core::ffi::CStr;

use hull_agent::Command;

use crate::sys;
use crate::text::{each_line, join};

/// Most groups that a user gets, with the first.
const MAX_GROUPS: usize = 2 * hull_agent::MAX_GROUPS + 1;

/// A user, and HOME as a variable.
pub struct User {
    id: u32,
    group: u32,
    more: [u32; MAX_GROUPS],
    count: usize,
    home: [u8; 256],
}

/// A user or group that the guest does not have.
pub enum Unknown<'a> {
    User(&'a [u8]),
    Group(&'a [u8]),
}

/// Longest name in a message, in bytes.
const MAX_SHOWN: usize = 96;

impl Unknown<'_> {
    /// A message for the user, in docker's words.
    pub fn text<'b>(&self, buffer: &'b mut [u8; 192]) -> &'b [u8] {
        let (name, parts): (&[u8], [&[u8]; 2]) = match self {
            Self::User(name) => (
                name,
                [b"unable to find user ", b": no matching entries in passwd file"],
            ),
            Self::Group(name) => (
                name,
                [b"unable to find group ", b": no matching entries in group file"],
            ),
        };
        let name = name.get(..MAX_SHOWN).unwrap_or(name);
        join(buffer, &[parts[0], name, parts[1]]).map_or(b"", CStr::to_bytes)
    }
}

impl User {
    /// The user and groups of `command`; `None` if it names none.
    ///
    /// # Errors
    /// As [`User::find`].
    pub fn of<'a>(command: &Command<'a>) -> Result<Option<Self>, Unknown<'a>> {
        let mut groups = command.groups().peekable();
        if command.user().is_empty() && groups.peek().is_none() {
            return Ok(None);
        }
        let mut user = match command.user().is_empty() {
            true => {
                let mut root = Self::numbered(0);
                let _ = root.set_home(b"/root");
                root
            }
            false => Self::find(command.user())?,
        };
        groups.for_each(|group| user.add_group(group));
        // So that a program cannot step out of its first group, and past modes that refuse it something
        // (CVE-2022-36109).
        user.add_group(user.group);
        Ok(Some(user))
    }

    const fn numbered(id: u32) -> Self {
        Self {
            id,
            group: 0,
            more: [0; MAX_GROUPS],
            count: 0,
            home: [0; 256],
        }
    }

    fn add_group(&mut self, group: u32) {
        if let Some(place) = self.more.get_mut(self.count) {
            *place = group;
            self.count += 1;
        }
    }

    /// The user that `text` names as [`Command::user`] has it. Without a group it has those of /etc/passwd
    /// and /etc/group. A number need not be there.
    ///
    /// # Errors
    /// There is no such user or group.
    fn find(text: &CStr) -> Result<Self, Unknown<'_>> {
        let mut all = text.to_bytes().split(|&byte| byte == b',');
        let mut user = Self::named(all.next().unwrap_or_default())?;
        for group in all {
            user.add_group(find_group(group).ok_or(Unknown::Group(group))?);
        }
        Ok(user)
    }

    fn named(text: &[u8]) -> Result<Self, Unknown<'_>> {
        let mut parts = text.splitn(2, |&byte| byte == b':');
        let (wanted, group) = (parts.next().unwrap_or_default(), parts.next());
        let wanted = if wanted.is_empty() { b"0" } else { wanted };
        let mut user = Self::numbered(number(wanted).unwrap_or(u32::MAX));
        let mut found = user.set_home(b"/").is_some() && number(wanted).is_some();
        each_line(c"/etc/passwd", |line| {
            let [name, _, id, first, _, home] = fields(line);
            let (Some(id), Some(first)) = (number(id), number(first)) else {
                return false;
            };
            if name != wanted && number(wanted) != Some(id) {
                return false;
            }
            (user.id, user.group, found) = (id, first, true);
            if group.is_none() {
                user.add_groups(name);
            }
            user.set_home(home).is_some()
        });
        if let Some(group) = group {
            user.group = find_group(group).ok_or(Unknown::Group(group))?;
        }
        match found {
            true => Ok(user),
            false => Err(Unknown::User(wanted)),
        }
    }

    fn set_home(&mut self, home: &[u8]) -> Option<()> {
        join(&mut self.home, &[b"HOME=", home]).map(drop)
    }

    fn add_groups(&mut self, name: &[u8]) {
        each_line(c"/etc/group", |line| {
            let [_, _, id, members, ..] = fields(line);
            if members
                .split(|&byte| byte == b',')
                .any(|member| member == name)
                && let Some(id) = number(id)
            {
                self.add_group(id);
            }
            false
        });
    }

    /// HOME for the command's environment.
    pub fn home(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.home).unwrap_or(c"HOME=/")
    }

    /// Become this user, for good, who may open the standard streams again by their names in /dev.
    pub fn become_it(&self) -> sys::Result<()> {
        for stream in 0..3 {
            sys::give(stream, self.id);
        }
        sys::set_groups(self.more.get(..self.count).unwrap_or_default())?;
        sys::set_group(self.group)?;
        sys::set_user(self.id)
    }
}

fn find_group(wanted: &[u8]) -> Option<u32> {
    let mut found = number(wanted);
    each_line(c"/etc/group", |line| {
        let [name, _, id, ..] = fields(line);
        let is_it = name == wanted && number(id).is_some();
        if is_it {
            found = number(id);
        }
        is_it
    });
    found
}

/// The first fields of a line, empty where there is none.
fn fields(line: &[u8]) -> [&[u8]; 6] {
    let mut parts = line.split(|&byte| byte == b':');
    [(); 6].map(|()| parts.next().unwrap_or_default())
}

fn number(text: &[u8]) -> Option<u32> {
    core::str::from_utf8(text).ok()?.parse().ok()
}
