//! The user at the other end of a Unix socket.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

/// The user whose process connected to a listening Unix socket, or made this pair of sockets (SO_PEERCRED in
/// unix(7)). The process itself has the id 0 if it is outside of this process's PID namespace, as all others
/// are to a process in a jail; so it is not looked at.
///
/// # Errors
/// It is no such socket.
pub fn peer_user(socket: impl AsFd) -> io::Result<u32> {
    let mut peer = MaybeUninit::<libc::ucred>::uninit();
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `peer`, which are all of it if it succeeds.
    unsafe {
        let socket = socket.as_fd().as_raw_fd();
        let into = peer.as_mut_ptr().cast();
        match libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            into,
            &raw mut len,
        ) {
            0 => Ok(peer.assume_init().uid),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_of_sockets_is_this_users() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(peer_user(&socket).expect("a peer"), own);
        assert!(peer_user(std::io::stdin()).is_err());
    }
}
