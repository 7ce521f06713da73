//! The limit of open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is tried beyond the hard limit, which only the superuser may raise.
const ENOUGH: u64 = 1 << 20;

/// Every connection of a guest's, and every file of the host that it knows of, is a descriptor,
/// and the usual limit is 1024: go up to what may be.
pub fn allow_many() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // No more than fs.nr_open (proc(5)), which is this much unless somebody changed it.
    let more = maximum.map(|maximum| maximum.max(ENOUGH));
    for most in [more, maximum] {
        let limit = Rlimit {
            current: most,
            maximum: most,
        };
        // Without it there are fewer.
        if setrlimit(Resource::Nofile, limit).is_ok() {
            return;
        }
    }
}
