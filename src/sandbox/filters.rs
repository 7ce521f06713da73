//! The system calls that each of hull's threads may make: the lists of the seccomp filters.
//!
//! The build script compiles them to BPF (`compile.rs`); the program has the bytes and not these tables.
//! docs/security.md shows them. A call that is not here ends hull (`violation`), so a list also has what
//! its thread makes on its ways out: memory for a message, locks, the end of the thread.
//!
//! No list of a thread has socket, connect, execve, ptrace or rt_sigaction, none makes memory executable,
//! and none starts another thread. The main thread starts one process, at its end, which shares its memory
//! and its filter.

use Only::{Lacks, OneOf, OwnProcess};

/// A system call.
#[derive(Clone, Copy)]
pub struct Call {
    /// As in `libc`: `SYS_` and its name.
    pub constant: &'static str,
    /// Its number on x86_64.
    pub number: i64,
    /// What all of its arguments must be.
    pub only: &'static [Only],
    /// What needs it.
    pub why: &'static str,
}

/// What an argument must be; the index of the first one is 0.
#[derive(Clone, Copy)]
pub enum Only {
    /// One of these values, which have names.
    OneOf(u8, &'static [(&'static str, u32)]),
    /// Without any of these bits.
    Lacks(u8, &'static str, u32),
    /// This process's id.
    OwnProcess(u8),
}

/// The list of one kind of thread.
pub struct List {
    /// The name of the role in the documentation.
    pub thread: &'static str,
    /// What these threads may call beside the calls of every thread.
    pub calls: &'static [&'static [Call]],
    /// The most calls that the list may have, the common ones included. Firecracker's threads that do the
    /// same have 50 (its VMM), 31 (its API) and 27 (its vCPUs).
    pub most: usize,
}

impl Call {
    /// Its name, as in section 2 of the manual.
    pub fn name(&self) -> &'static str {
        self.constant.trim_start_matches("SYS_")
    }
}

/// In the compiled filters in the place of the process's id.
pub const OWN_PROCESS: u32 = 0x7f48_554c;

/// All lists, in the order of `Role::list`.
pub const LISTS: [List; 16] = [
    List {
        thread: "vcpu",
        calls: &[VCPU],
        most: 20,
    },
    List {
        thread: "main",
        calls: &[MAIN, FILES],
        most: 45,
    },
    List {
        thread: "disk",
        calls: &[DEVICE, DISK],
        most: 50,
    },
    List {
        thread: "net",
        calls: &[DEVICE, NET],
        most: 50,
    },
    List {
        thread: "vsock",
        calls: &[DEVICE, VSOCK],
        most: 50,
    },
    List {
        thread: "share",
        calls: &[DEVICE, SHARE],
        most: 50,
    },
    List {
        thread: "control",
        calls: &[CONTROL],
        most: 31,
    },
    List {
        thread: "gdb",
        calls: &[GDB],
        most: 31,
    },
    List {
        thread: "profile",
        calls: &[SAMPLER],
        most: 27,
    },
    List {
        thread: "trace",
        calls: &[TRACE],
        most: 27,
    },
    List {
        thread: "customer",
        calls: &[CUSTOMER],
        most: 27,
    },
    List {
        thread: "control, until it serves",
        calls: &[CONTROL, CLAIM],
        most: 50,
    },
    List {
        thread: "share-server (a process)",
        calls: &[SHARE_SERVER],
        most: 64,
    },
    List {
        thread: "connector (a process)",
        calls: &[CONNECTOR, SOCKET_FILE],
        most: 27,
    },
    List {
        thread: "at-end (a process)",
        calls: &[&[RECEIVE], SOCKET_FILE],
        most: 27,
    },
    List {
        thread: "switch (a process)",
        calls: &[SWITCH],
        most: 27,
    },
];

macro_rules! call {
    ($constant:ident, $why:literal $(, $only:expr)*) => {
        Call {
            constant: stringify!($constant),
            number: libc::$constant,
            only: &[$($only),*],
            why: $why,
        }
    };
}

/// What every thread may call.
pub const EVERY: &[Call] = &[
    call!(SYS_write, "messages, and eventfds that wake other threads"),
    call!(SYS_close, "a descriptor"),
    call!(SYS_ppoll, "a message waits for its reader"),
    call!(
        SYS_mmap,
        "memory",
        Lacks(2, "PROT_EXEC", libc::PROT_EXEC as u32)
    ),
    call!(SYS_munmap, "memory"),
    call!(SYS_mremap, "memory"),
    call!(SYS_brk, "memory"),
    call!(SYS_madvise, "memory; the stack of a thread that ends"),
    call!(SYS_futex, "locks"),
    call!(SYS_sched_yield, "channels between threads"),
    call!(
        SYS_clock_gettime,
        "the time, on hosts without a vDSO for it"
    ),
    call!(SYS_restart_syscall, "a wait goes on after SIGCONT"),
    call!(SYS_rt_sigreturn, "the end of a signal's handler"),
    call!(SYS_rt_sigprocmask, "kicks of vCPUs, the end of a thread"),
    call!(SYS_sigaltstack, "the end of a thread"),
    call!(SYS_getpid, "kicks of vCPUs"),
    call!(
        SYS_tgkill,
        "kicks of vCPUs, and an end by abort(3)",
        OwnProcess(0)
    ),
    call!(SYS_exit, "the end of a thread"),
    call!(SYS_exit_group, "the end of hull"),
];

/// Only in debug builds, where std checks a descriptor before it closes it.
pub const DEBUG: &[Call] = &[call!(
    SYS_fcntl,
    "a check",
    OneOf(1, &[("F_GETFD", libc::F_GETFD as u32)])
)];

const VCPU: &[Call] = &[call!(
    SYS_ioctl,
    "runs the vCPU, emulates instructions, raises interrupts, has KVM take notifications",
    OneOf(
        1,
        &[
            ("KVM_RUN", 0x0000_ae80),
            ("KVM_IRQ_LINE", 0x4008_ae61),
            ("KVM_IOEVENTFD", 0x4040_ae79),
            ("KVM_GET_REGS", 0x8090_ae81),
            ("KVM_SET_REGS", 0x4090_ae82),
            ("KVM_GET_SREGS", 0x8138_ae83),
            ("KVM_SET_SREGS", 0x4138_ae84),
            ("KVM_GET_MSRS", 0xc008_ae88),
            ("KVM_GET_VCPU_EVENTS", 0x8040_ae9f),
            ("KVM_SET_VCPU_EVENTS", 0x4040_aea0),
            ("KVM_GET_DEBUGREGS", 0x8080_aea1),
            ("KVM_SET_DEBUGREGS", 0x4080_aea2),
            ("KVM_SET_GUEST_DEBUG", 0x4048_ae9b),
            ("KVM_GET_XSAVE", 0x9000_aea4),
            ("KVM_SET_XSAVE", 0x5000_aea5),
            ("KVM_GET_XCRS", 0x8188_aea6),
            ("KVM_SET_XCRS", 0x4188_aea7),
            ("TUNSETOFFLOAD", 0x4004_54d0),
            ("TCGETS", 0x0000_5401),
            ("TCGETS2", 0x802c_542a),
        ]
    )
)];

const MAIN: &[Call] = &[
    call!(
        SYS_ioctl,
        "saves the vCPUs and chips, raises interrupts, sets the terminal's modes",
        OneOf(
            1,
            &[
                ("KVM_IRQ_LINE", 0x4008_ae61),
                ("KVM_RUN", 0x0000_ae80),
                ("KVM_GET_REGS", 0x8090_ae81),
                ("KVM_GET_SREGS", 0x8138_ae83),
                ("KVM_GET_MSRS", 0xc008_ae88),
                ("KVM_GET_MSR_INDEX_LIST", 0xc004_ae02),
                ("KVM_GET_CPUID2", 0xc008_ae91),
                ("KVM_GET_LAPIC", 0x8400_ae8e),
                ("KVM_GET_MP_STATE", 0x8004_ae98),
                ("KVM_GET_VCPU_EVENTS", 0x8040_ae9f),
                ("KVM_GET_DEBUGREGS", 0x8080_aea1),
                ("KVM_GET_TSC_KHZ", 0x0000_aea3),
                ("KVM_GET_XSAVE", 0x9000_aea4),
                ("KVM_GET_XCRS", 0x8188_aea6),
                ("KVM_KVMCLOCK_CTRL", 0x0000_aead),
                ("KVM_GET_IRQCHIP", 0xc208_ae62),
                ("KVM_GET_PIT2", 0x8070_ae9f),
                ("KVM_GET_CLOCK", 0x8030_ae7c),
                ("KVM_GET_DIRTY_LOG", 0x4010_ae42),
                ("KVM_SET_USER_MEMORY_REGION", 0x4020_ae46),
                ("TCGETS", 0x0000_5401),
                ("TCGETS2", 0x802c_542a),
                ("TCSETS", 0x0000_5402),
                ("TCSETS2", 0x402c_542b),
                ("TCSETSW", 0x0000_5403),
                ("TCSETSW2", 0x402c_542c),
                ("TIOCGPGRP", 0x0000_540f),
                ("TIOCGWINSZ", 0x0000_5413),
            ]
        )
    ),
    call!(SYS_epoll_pwait, "notifications of queues"),
    call!(SYS_timerfd_settime, "timers of devices"),
    call!(
        SYS_getrandom,
        "entropy for the guest, the name of a template"
    ),
    call!(SYS_clock_nanosleep, "waits until vCPUs are idle"),
    call!(SYS_getpgrp, "job control"),
    call!(SYS_pread64, "reads names of the guest's kernel"),
    call!(SYS_kill, "job control", OwnProcess(0)),
    call!(
        SYS_kill,
        "job control",
        OneOf(0, &[("its own process group", 0)])
    ),
    call!(SYS_geteuid, "who owns a folder"),
    call!(SYS_pwrite64, "writes a snapshot"),
    call!(
        SYS_clone,
        "the process that outlives hull",
        OneOf(
            0,
            &[("CLONE_VM SIGCHLD", (libc::CLONE_VM | libc::SIGCHLD) as u32)]
        )
    ),
    call!(SYS_close_range, "in the process that outlives hull"),
    call!(
        SYS_prctl,
        "in the process that outlives hull; what was given up",
        OneOf(
            0,
            &[
                ("PR_SET_PDEATHSIG", libc::PR_SET_PDEATHSIG as u32),
                ("PR_GET_DUMPABLE", libc::PR_GET_DUMPABLE as u32),
            ]
        )
    ),
    call!(SYS_pwritev, "what a qcow2 image still holds at the end"),
    call!(SYS_fsync, "writes a snapshot"),
];

/// Templates, and the machine's folder.
const FILES: &[Call] = &[
    call!(SYS_read, "reads what it has opened"),
    call!(SYS_openat, "opens a file"),
    call!(SYS_statx, "looks at a file"),
    call!(SYS_newfstatat, "looks at a file or a folder"),
    call!(SYS_getdents64, "lists a folder"),
    call!(SYS_lseek, "finds a place in a file"),
    call!(SYS_ftruncate, "sets a file's size"),
    call!(SYS_flock, "locks a file"),
    call!(SYS_renameat, "replaces a file"),
    call!(SYS_unlinkat, "removes files that were left over"),
    call!(
        SYS_fcntl,
        "lists a folder",
        OneOf(1, &[("F_GETFL", libc::F_GETFL as u32)])
    ),
];

/// What the threads of devices have in common.
const DEVICE: &[Call] = &[
    call!(
        SYS_ioctl,
        "raises interrupts",
        OneOf(
            1,
            &[
                ("KVM_IRQ_LINE", 0x4008_ae61),
                ("TUNSETOFFLOAD", 0x4004_54d0),
                ("TCGETS", 0x0000_5401),
                ("TCGETS2", 0x802c_542a),
            ]
        )
    ),
    call!(SYS_epoll_pwait, "waits for the guest"),
    call!(SYS_timerfd_settime, "a limit of the rate"),
    call!(SYS_read, "reads from a file, a tap device or an eventfd"),
];

const DISK: &[Call] = &[
    call!(SYS_preadv, "reads from the image"),
    call!(SYS_pread64, "reads from the image"),
    call!(SYS_pwritev, "writes to the image"),
    call!(SYS_pwrite64, "writes to the image"),
    call!(SYS_lseek, "the image's size, holes in it"),
    call!(SYS_ftruncate, "a qcow2 image grows"),
    call!(SYS_fallocate, "discards and zeroes"),
    call!(SYS_fdatasync, "a flush"),
    call!(SYS_fsync, "a flush of a qcow2 image"),
    call!(
        SYS_io_uring_enter,
        "reads at the same time, on a ring that does nothing else"
    ),
];

const NET: &[Call] = &[
    call!(SYS_readv, "frames from a tap device"),
    call!(SYS_writev, "frames to a tap device"),
    call!(SYS_recvfrom, "frames from passt"),
    call!(SYS_sendto, "frames to passt"),
    call!(SYS_wait4, "the end of passt"),
    call!(SYS_shutdown, "ends passt"),
    call!(SYS_pidfd_send_signal, "ends passt"),
];

const VSOCK: &[Call] = &[
    call!(SYS_accept4, "a program connects"),
    call!(SYS_recvfrom, "bytes for the guest"),
    call!(SYS_sendto, "bytes of the guest, and a wish to connect"),
    call!(SYS_recvmsg, "a connected socket"),
    call!(SYS_getsockopt, "who connects"),
    call!(SYS_geteuid, "who connects"),
    call!(
        SYS_prlimit64,
        "how many descriptors are left",
        OneOf(2, &[("no new limit", 0)])
    ),
    call!(SYS_shutdown, "one direction ends"),
    call!(SYS_epoll_ctl, "waits for a connection"),
    call!(SYS_wait4, "the end of the connector"),
];

const SHARE: &[Call] = &[
    call!(SYS_sendto, "a request, for the server"),
    call!(SYS_recvfrom, "its answer"),
    call!(SYS_wait4, "its end"),
];

const SHARE_SERVER: &[Call] = &[
    call!(SYS_recvfrom, "a request"),
    call!(SYS_sendto, "its answer"),
    call!(SYS_read, "a link to an open file"),
    call!(SYS_openat, "opens a file of the folder"),
    call!(SYS_dup, "a handle of a file"),
    call!(SYS_pread64, "reads a file"),
    call!(SYS_preadv, "reads a file"),
    call!(SYS_pwrite64, "writes a file"),
    call!(SYS_pwritev, "writes a file"),
    call!(SYS_lseek, "lists a folder, finds holes"),
    call!(SYS_getdents64, "lists a folder"),
    call!(SYS_statx, "a file's attributes"),
    call!(SYS_fstat, "a file's attributes"),
    call!(SYS_fstatfs, "the file system's attributes"),
    call!(SYS_readlinkat, "a link's target"),
    call!(SYS_mkdirat, "makes a folder"),
    call!(SYS_mknodat, "makes a FIFO or a socket"),
    call!(SYS_symlinkat, "makes a link"),
    call!(SYS_linkat, "makes a link"),
    call!(SYS_renameat, "renames"),
    call!(SYS_renameat2, "renames"),
    call!(SYS_unlinkat, "removes"),
    call!(SYS_fchownat, "sets an owner"),
    call!(SYS_fchmodat, "sets a mode"),
    call!(SYS_utimensat, "sets times"),
    call!(SYS_ftruncate, "sets a size"),
    call!(SYS_fallocate, "sets a size, makes holes"),
    call!(SYS_fsync, "a flush"),
    call!(SYS_fdatasync, "a flush"),
    call!(SYS_syncfs, "a flush of all"),
    call!(SYS_copy_file_range, "copies"),
    call!(SYS_setxattr, "extended attributes"),
    call!(SYS_getxattr, "extended attributes"),
    call!(SYS_lgetxattr, "the guest's owner of a file"),
    call!(SYS_listxattr, "extended attributes"),
    call!(SYS_removexattr, "extended attributes"),
    call!(SYS_flock, "a lock"),
    call!(
        SYS_fcntl,
        "a lock, an open file's flags",
        OneOf(
            1,
            &[
                ("F_DUPFD_CLOEXEC", libc::F_DUPFD_CLOEXEC as u32),
                ("F_GETFL", libc::F_GETFL as u32),
                ("F_SETFL", libc::F_SETFL as u32),
                ("F_OFD_GETLK", libc::F_OFD_GETLK as u32),
                ("F_OFD_SETLK", libc::F_OFD_SETLK as u32),
            ]
        )
    ),
    call!(SYS_setresuid, "acts for a user of the guest"),
    call!(SYS_setresgid, "acts for a group of the guest"),
    call!(SYS_capget, "acts for a user of the guest"),
    call!(SYS_capset, "acts for a user of the guest"),
    call!(SYS_geteuid, "whether it may act for others"),
];

const CONTROL: &[Call] = &[
    call!(
        SYS_ioctl,
        "reads the state of vCPUs and chips",
        OneOf(
            1,
            &[
                ("KVM_RUN", 0x0000_ae80),
                ("KVM_GET_REGS", 0x8090_ae81),
                ("KVM_GET_SREGS", 0x8138_ae83),
                ("KVM_GET_MSRS", 0xc008_ae88),
                ("KVM_GET_LAPIC", 0x8400_ae8e),
                ("KVM_GET_MP_STATE", 0x8004_ae98),
                ("KVM_GET_VCPU_EVENTS", 0x8040_ae9f),
                ("KVM_GET_DEBUGREGS", 0x8080_aea1),
                ("KVM_KVMCLOCK_CTRL", 0x0000_aead),
                ("KVM_GET_IRQCHIP", 0xc208_ae62),
                ("KVM_GET_PIT2", 0x8070_ae9f),
                ("TCGETS", 0x0000_5401),
                ("TCGETS2", 0x802c_542a),
            ]
        )
    ),
    call!(SYS_read, "reads what it has opened"),
    call!(SYS_openat, "the machine's folder, what was given up"),
    call!(
        SYS_getdents64,
        "the threads of hull, machines that were killed"
    ),
    call!(
        SYS_prctl,
        "what was given up",
        OneOf(0, &[("PR_GET_DUMPABLE", libc::PR_GET_DUMPABLE as u32)])
    ),
    call!(SYS_accept4, "a request"),
    call!(SYS_getsockopt, "who asks"),
    call!(SYS_recvmsg, "a request, and the files of a snapshot"),
    call!(SYS_sendto, "an answer"),
    call!(SYS_mincore, "which memory is resident"),
    call!(SYS_geteuid, "who may ask"),
    call!(
        SYS_pread64,
        "reads names of the guest's kernel, hull's own memory use"
    ),
];

/// Before it serves.
const CLAIM: &[Call] = &[
    call!(
        SYS_seccomp,
        "the narrower list of a thread that serves",
        OneOf(
            0,
            &[("SECCOMP_SET_MODE_FILTER", libc::SECCOMP_SET_MODE_FILTER)]
        )
    ),
    call!(SYS_fstat, "the owner of a folder"),
    call!(SYS_newfstatat, "whether a lock is still there"),
    call!(
        SYS_fcntl,
        "lists a folder",
        OneOf(1, &[("F_GETFL", libc::F_GETFL as u32)])
    ),
    call!(SYS_statx, "the size of a file"),
    call!(SYS_clock_nanosleep, "waits for a lock"),
    call!(SYS_flock, "locks the machine's name"),
    call!(SYS_mkdirat, "makes the machine's folder"),
    call!(SYS_renameat, "writes the machine's record"),
    call!(SYS_unlinkat, "removes the machine's folder"),
    call!(SYS_fchmod, "the control socket"),
    call!(SYS_bind, "the control socket"),
    call!(SYS_listen, "the control socket"),
];

const GDB: &[Call] = &[
    call!(
        SYS_ioctl,
        "reads and sets the state of vCPUs",
        OneOf(
            1,
            &[
                ("KVM_RUN", 0x0000_ae80),
                ("KVM_GET_REGS", 0x8090_ae81),
                ("KVM_SET_REGS", 0x4090_ae82),
                ("KVM_GET_SREGS", 0x8138_ae83),
                ("KVM_SET_SREGS", 0x4138_ae84),
                ("KVM_GET_MSRS", 0xc008_ae88),
                ("KVM_SET_MSRS", 0x4008_ae89),
                ("KVM_GET_MP_STATE", 0x8004_ae98),
                ("KVM_GET_VCPU_EVENTS", 0x8040_ae9f),
                ("KVM_SET_VCPU_EVENTS", 0x4040_aea0),
                ("KVM_GET_DEBUGREGS", 0x8080_aea1),
                ("KVM_SET_DEBUGREGS", 0x4080_aea2),
                ("KVM_SET_GUEST_DEBUG", 0x4048_ae9b),
                ("KVM_GET_XSAVE", 0x9000_aea4),
                ("KVM_SET_XSAVE", 0x5000_aea5),
                ("KVM_GET_XCRS", 0x8188_aea6),
                ("KVM_SET_XCRS", 0x4188_aea7),
                ("KVM_KVMCLOCK_CTRL", 0x0000_aead),
                ("KVM_IRQ_LINE", 0x4008_ae61),
                ("TCGETS", 0x0000_5401),
                ("TCGETS2", 0x802c_542a),
            ]
        )
    ),
    call!(SYS_read, "an eventfd"),
    call!(SYS_accept4, "gdb connects"),
    call!(
        SYS_setsockopt,
        "a time limit for gdb",
        OneOf(
            1,
            &[
                ("SOL_SOCKET", libc::SOL_SOCKET as u32),
                ("IPPROTO_TCP", libc::IPPROTO_TCP as u32),
            ]
        )
    ),
    call!(SYS_getsockopt, "who connects"),
    call!(SYS_geteuid, "who connects"),
    call!(
        SYS_wait4,
        "the end of the process that removes the socket's file"
    ),
    call!(SYS_recvfrom, "packets of gdb"),
    call!(SYS_sendto, "packets to gdb"),
];

const SAMPLER: &[Call] = &[
    call!(
        SYS_ioctl,
        "a message",
        OneOf(1, &[("TCGETS", 0x0000_5401), ("TCGETS2", 0x802c_542a)])
    ),
    call!(SYS_clock_nanosleep, "waits for the next sample"),
    call!(SYS_pread64, "reads names of the guest's kernel"),
];

const TRACE: &[Call] = &[
    call!(
        SYS_ioctl,
        "a message",
        OneOf(1, &[("TCGETS", 0x0000_5401), ("TCGETS2", 0x802c_542a)])
    ),
    call!(SYS_statx, "what kind of file it is"),
    call!(SYS_lseek, "the beginning of the file"),
    call!(SYS_ftruncate, "empties the file"),
];

const CUSTOMER: &[Call] = &[
    call!(SYS_recvfrom, "whether the customer is still there"),
    call!(SYS_kill, "ends the machine without it", OwnProcess(0)),
];

/// What the processes beside hull wait for.
const RECEIVE: Call = call!(SYS_recvfrom, "the number of a port, the end of hull");

/// The file of a socket, which a process beside hull removes at the end.
const SOCKET_FILE: &[Call] = &[
    call!(SYS_statx, "the socket's file"),
    call!(SYS_unlinkat, "the socket's file"),
];

/// What no thread of hull may: it connects to the sockets beside that of the socket device.
const CONNECTOR: &[Call] = &[
    RECEIVE,
    call!(
        SYS_socket,
        "a socket of this host",
        OneOf(0, &[("AF_UNIX", libc::AF_UNIX as u32)])
    ),
    call!(SYS_connect, "the program at the port"),
    call!(SYS_sendmsg, "the connected socket"),
];

/// Of a network that machines share.
const SWITCH: &[Call] = &[
    call!(SYS_accept4, "a machine joins"),
    call!(SYS_getsockopt, "who connects"),
    call!(SYS_recvmsg, "what it wants, and its way to other networks"),
    call!(SYS_recvfrom, "frames"),
    call!(SYS_sendto, "frames, and an answer"),
];
