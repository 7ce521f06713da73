//! Resumes a thread under ptrace(2) with any signal: kicks of vCPUs are real-time signals, which safe
//! wrappers do not support.

/// Resume a stopped thread that this thread traces until its next system call, with `signal` if it is not
/// 0. Does nothing if the thread has ended.
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
