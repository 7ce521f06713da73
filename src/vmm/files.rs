//! The limit of open files.

use rustix::process::Resource;

/// Every connection of a guest's, and every file of the host that it has, is a descriptor, and the
/// usual limit is 1024: go up to what may be.
pub fn allow_many() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it there are fewer.
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
}
