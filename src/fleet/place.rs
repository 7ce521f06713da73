//! Where what is known of machines in the background stays.

use std::path::PathBuf;

/// `hull` in `$XDG_STATE_HOME`, or in ~/.local/state; `None` if there is neither.
pub fn place() -> Option<PathBuf> {
    let absolute = |name| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME");
    let state = state.or_else(|| Some(absolute("HOME")?.join(".local/state")));
    state.map(|state| state.join("hull"))
}
