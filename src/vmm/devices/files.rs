//! The limit of open files (RLIMIT_NOFILE).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The wanted limit, which only the superuser can set beyond the hard limit.
const WANTED: u64 = 1 << 20;

/// Raise the limit as far as allowed: every connection of a guest and every file of the host that it
/// has open needs a descriptor, and the usual limit is 1024.
pub fn allow_many() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Not more than fs.nr_open (proc(5)), whose default is WANTED.
    let more = maximum.map(|maximum| maximum.max(WANTED));
    for most in [more, maximum] {
        let limit = Rlimit {
            current: most,
            maximum: most,
        };
        // On failure, try the hard limit, then keep the old one.
        if setrlimit(Resource::Nofile, limit).is_ok() {
            return;
        }
    }
}
