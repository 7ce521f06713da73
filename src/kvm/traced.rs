//! A thread under ptrace(2) goes on, with any signal: vCPUs are kicked out of KVM_RUN by real-time ones,
//! which safe wrappers do not have.

/// Have a stopped thread that this thread traces go on to its next system call, with `signal` if it is not
/// 0. One that is gone stays so.
pub fn resume(thread: i32, signal: i32) {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_SYSCALL reads and writes no memory of ours: its address is ignored, and its data is
    // the number of a signal.
    unsafe {
        libc::ptrace(
            libc::PTRACE_SYSCALL,
            thread,
            nothing,
            libc::c_long::from(signal),
        )
    };
}
