//! The filters as the build script has compiled them, and the names of the calls on them.

use libc::sock_filter;

include!(concat!(env!("OUT_DIR"), "/filters.rs"));

/// The name of a system call that is on any list.
pub fn name_of(number: i64) -> Option<&'static str> {
    let at = NAMES.binary_search_by_key(&number, |(number, _)| *number);
    at.ok().and_then(|at| NAMES.get(at)).map(|(_, name)| *name)
}
