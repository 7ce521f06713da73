//! Enters a machine's jail once all that the machine needs is open.

use super::config::Config;
use super::error::VmmError;
use super::story::{self, Story};
use super::timeline::Timeline;
use super::tty::in_foreground;
use crate::config::Jail;
use crate::inspect::lockdown;
use crate::sandbox::enter_jail;

/// The first of the users that hull chooses for jails: that many numbers up to the highest process id are no
/// user's by default on any host (systemd's table of them, docs/UIDS-GIDS.md there, has them as unused).
const FIRST_UID: u32 = 0x7000_0000;

/// Enter the jail of `config`, if it has one.
///
/// # Errors
/// The kernel refuses.
pub fn enter(config: &Config, timeline: &Timeline, story: &Story) -> Result<(), VmmError> {
    let (Some(jail), Some(supervised)) = (config.machine.jail, &config.attachments.supervised)
    else {
        return Ok(());
    };
    // The namespace of an ordinary user maps no other user than this one.
    let root = rustix::process::geteuid().is_root();
    let ids = root.then(|| ids(jail, supervised.pid));
    // /proc is out of reach there.
    in_foreground();
    lockdown::keep_proc();
    timeline.span("jail", || enter_jail(ids))?;
    story.tell_all(story::jail);
    Ok(())
}

/// User and group: those in `jail`, or one of this machine's own.
fn ids(jail: Jail, pid: u32) -> (u32, u32) {
    let uid = jail.uid.unwrap_or(FIRST_UID + pid);
    (uid, jail.gid.unwrap_or(uid))
}
