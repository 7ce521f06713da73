//! The filters and Landlock, tried: what a thread that runs a guest's code would attempt, and the lists
//! against their documentation.
//!
//! Each attempt is made in a process of its own that is confined as the threads of one role are, with their
//! filter, which answers a call that it does not list with an error of its own instead of SIGSYS. This is
//! test code alone: the program has no such hook.

use std::ffi::c_long;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rustix::pipe::pipe;

use super::compiled::FILTERS;
use super::confine::{
    Reach, allow_all_folders, confine, enter, give_up_rights, landlock_version, rules,
};
use super::filters::{Call, DEBUG, EVERY, LISTS, List, Only};
use super::role::Role;
use super::seccomp::{Seccomp, install, restrict_calls, set_seccomp};
use super::threads::spawn;

/// What the filters answer here: no call fails so by itself.
const DENIED: i32 = libc::ENOANO;

/// Roles whose threads a guest can talk to, in the order of [`LISTS`].
const ROLES: [Role; 13] = [
    Role::Vcpu(0),
    Role::Main,
    Role::Disk,
    Role::Net,
    Role::Vsock,
    Role::Share,
    Role::Control,
    Role::Gdb,
    Role::Sampler,
    Role::TraceWriter,
    Role::Customer,
    Role::Claim,
    Role::ShareServer,
];

/// Before the first thread, as in the program: other arenas than the first grow by mprotect, which no thread
/// may call, and a forked process goes on with those of all threads.
#[used]
#[unsafe(link_section = ".init_array")]
static ONE_ARENA: extern "C" fn() = one_arena;

extern "C" fn one_arena() {
    // SAFETY: it sets a number.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Run `work` in a child; its wait status and what it wrote to standard error.
fn child(work: impl FnOnce() -> i32) -> (WaitStatus, String) {
    let (from, to) = pipe().unwrap();
    // SAFETY: the child uses the allocator, which fork(3) keeps consistent, and nothing else of this
    // process's threads; it never returns.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            rustix::stdio::dup2_stderr(&to).unwrap();
            let status = work();
            // SAFETY: it ends the process.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => {
            drop(to);
            let mut said = String::new();
            File::from(from).read_to_string(&mut said).unwrap();
            (waitpid(child, None).unwrap(), said)
        }
    }
}

fn call(number: c_long, arguments: [u64; 6]) -> i32 {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the attempts below give pointers to memory that lives on, or null.
    let done = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if done == -1 {
        std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
    } else {
        0
    }
}

/// A name for the documentation, and the call.
type Attempt = (&'static str, c_long, [u64; 6]);

fn attempt(name: &'static str, number: c_long, given: &[u64]) -> Attempt {
    let mut arguments = [0; 6];
    arguments[..given.len()].copy_from_slice(given);
    (name, number, arguments)
}

fn attempts() -> Vec<Attempt> {
    [on_the_host(), on_itself()].concat()
}

fn on_the_host() -> Vec<Attempt> {
    static DOCKER: &[u8; 23] = b"\x01\x00/var/run/docker.sock\0";
    static PARAMETERS: [u64; 15] = [0; 15];
    let here = libc::AT_FDCWD as u64;
    let passwd = c"/etc/passwd".as_ptr() as u64;
    let memory = c"/proc/self/mem".as_ptr() as u64;
    let device = c"/dev/kvm".as_ptr() as u64;
    let write = libc::O_RDWR as u64;
    // It is never empty.
    let (etc, remove) = (c"/etc".as_ptr() as u64, libc::AT_REMOVEDIR as u64);
    let internet = [libc::AF_INET as u64, libc::SOCK_STREAM as u64];
    let docker = [0, DOCKER.as_ptr() as u64, 23];
    // No process has it (PID_MAX_LIMIT, `<linux/threads.h>`); a filter denies it before it is looked up.
    let other = 1 << 22;
    let attach = [libc::PTRACE_ATTACH as u64, other];
    let users = libc::CLONE_NEWUSER as u64;
    let ring = [1, PARAMETERS.as_ptr() as u64];
    let typed = [0, libc::TIOCSTI, c"x".as_ptr() as u64];
    let open = libc::SYS_openat;
    vec![
        attempt("open /etc/passwd", open, &[here, passwd]),
        attempt("write to /proc/self/mem", open, &[here, memory, write]),
        attempt("open /dev/kvm again", open, &[here, device, write]),
        attempt("remove a folder", libc::SYS_unlinkat, &[here, etc, remove]),
        attempt("execve", libc::SYS_execve, &[passwd]),
        attempt("execveat", libc::SYS_execveat, &[here, passwd]),
        attempt("socket", libc::SYS_socket, &internet),
        attempt("connect to docker's socket", libc::SYS_connect, &docker),
        attempt("ptrace of a sibling", libc::SYS_ptrace, &attach),
        attempt("process_vm_writev", libc::SYS_process_vm_writev, &[other]),
        attempt("kill of another process", libc::SYS_kill, &[other]),
        attempt("tgkill of another process", libc::SYS_tgkill, &[other; 2]),
        attempt("mount", libc::SYS_mount, &[]),
        attempt("unshare", libc::SYS_unshare, &[users]),
        attempt(
            "io_uring with OPENAT or CONNECT",
            libc::SYS_io_uring_setup,
            &ring,
        ),
        attempt("TIOCSTI", libc::SYS_ioctl, &typed),
    ]
}

fn on_itself() -> Vec<Attempt> {
    let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let mapped = [0, 4096, executable, anonymous, u64::MAX];
    let handler = [libc::SIGSYS as u64, 0, 0, 8];
    let child = [libc::SIGCHLD as u64];
    vec![
        attempt("executable memory by mmap", libc::SYS_mmap, &mapped),
        attempt(
            "executable memory by mprotect",
            libc::SYS_mprotect,
            &mapped[..3],
        ),
        attempt("a new thread", libc::SYS_clone3, &[]),
        attempt("a new process", libc::SYS_clone, &child),
        attempt("a handler of signals", libc::SYS_rt_sigaction, &handler),
        attempt("another filter", libc::SYS_seccomp, &[]),
        attempt("bpf", libc::SYS_bpf, &[]),
    ]
}

/// What holds an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Nothing,
    Filter,
    Landlock,
}

/// Confine the calling thread as one of `role` that may use `folder`, where the kernel has Landlock.
fn confine_as(role: Role, folder: &Path) {
    let folder = File::open(folder).unwrap();
    if role == Role::ShareServer {
        give_up_rights().unwrap();
        confine(&folder, false).unwrap();
        return;
    }
    rustix::thread::set_no_new_privs(true).unwrap();
    let own = File::open("/proc/self").unwrap();
    let folders = [
        (own.as_fd(), Reach::Read),
        (folder.as_fd(), Reach::Write),
        (folder.as_fd(), Reach::RemoveEmpty),
    ];
    if let Some(rules) = rules(&folders).unwrap() {
        enter(&rules).unwrap();
    }
}

/// What holds the attempt, made by a thread of `role`.
fn hold(role: Role, folder: &Path, (_, number, arguments): Attempt) -> Hold {
    let (status, said) = child(|| {
        confine_as(role, folder);
        let filter = FILTERS[role.list().unwrap()];
        rustix::thread::set_no_new_privs(true).unwrap();
        install(filter, libc::SECCOMP_RET_ERRNO | DENIED as u32).unwrap();
        match call(number, arguments) {
            DENIED => 1,
            libc::EACCES => 2,
            _ => 0,
        }
    });
    match status {
        WaitStatus::Exited(_, 0) => Hold::Nothing,
        WaitStatus::Exited(_, 1) => Hold::Filter,
        WaitStatus::Exited(_, 2) => Hold::Landlock,
        other => panic!("{role:?}: {number}: {other:?} {said}"),
    }
}

#[test]
fn a_hijacked_thread_finds_no_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let has_landlock = landlock_version().is_some();
    let mut table = String::from("| attempt |");
    for list in LISTS.iter().take(ROLES.len()) {
        let _ = write!(table, " {} |", list.thread);
    }
    table += "\n|---|";
    table += &"---|".repeat(ROLES.len());
    table.push('\n');
    for attempt in attempts() {
        let _ = write!(table, "| {} |", attempt.0);
        for role in ROLES {
            // Paths are for Landlock: a filter sees numbers alone.
            let by_path = [libc::SYS_openat, libc::SYS_unlinkat].contains(&attempt.1);
            match hold(role, folder.path(), attempt) {
                Hold::Filter => table += " filter |",
                Hold::Landlock if by_path => table += " Landlock |",
                Hold::Nothing if by_path && !has_landlock => table += " Landlock |",
                held => panic!("{role:?}: {}: {held:?}", attempt.0),
            }
        }
        table.push('\n');
    }
    documented(&table);
}

#[test]
fn a_confined_thread_keeps_its_folder_and_reaches_no_port_and_no_abstract_socket() {
    let Some(version) = landlock_version() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().as_os_str().as_encoded_bytes();
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let _abstract = UnixListener::bind_addr(&address).unwrap();
    let (status, said) = child(|| {
        confine_as(Role::Claim, folder.path());
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("machine")).unwrap();
        fs::write(at("machine/record.new"), "text").unwrap();
        fs::rename(at("machine/record.new"), at("machine/record")).unwrap();
        let socket = UnixListener::bind(at("machine/socket")).unwrap();
        UnixStream::connect(at("machine/socket")).unwrap();
        drop(socket);
        fs::remove_dir_all(at("machine")).unwrap();
        assert!(File::open("/proc/self/status").is_ok());
        for out_of_reach in ["/proc/1/status", "/proc/self/root/etc/passwd", "/"] {
            assert!(File::open(out_of_reach).is_err(), "{out_of_reach}");
        }
        if version >= 4 {
            assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).is_err());
        }
        if version >= 6 {
            assert!(UnixStream::connect_addr(&address).is_err());
        }
        0
    });
    assert!(
        matches!(status, WaitStatus::Exited(_, 0)),
        "{status:?} {said}"
    );
}

#[test]
fn the_lists_are_short_and_documented() {
    let mut table = String::from("| thread | number | system calls |\n|---|---|---|\n");
    let mut row = |thread: &str, number: usize, calls: &[&Call]| {
        let words: Vec<String> = calls.iter().map(|call| words(call)).collect();
        let _ = writeln!(table, "| {thread} | {number} | {} |", words.join(", "));
    };
    row(
        "every thread",
        EVERY.len(),
        &EVERY.iter().collect::<Vec<_>>(),
    );
    for list in &LISTS {
        let calls = own(list);
        let mut names: Vec<i64> = EVERY
            .iter()
            .chain(calls.iter().copied())
            .map(|call| call.number)
            .collect();
        names.sort_unstable();
        names.dedup();
        assert!(
            names.len() <= list.most,
            "{}: {} calls",
            list.thread,
            names.len()
        );
        row(list.thread, names.len(), &calls);
        for call in EVERY.iter().chain(calls).chain(DEBUG) {
            assert!(!call.why.is_empty());
            assert!(call.number != libc::SYS_rt_sigaction && call.number != libc::SYS_execve);
        }
    }
    documented(&table);
}

fn own(list: &List) -> Vec<&'static Call> {
    list.calls.iter().copied().flatten().collect()
}

fn words(call: &Call) -> String {
    let mut words = format!("`{}`", call.name());
    let limits: Vec<String> = call
        .only
        .iter()
        .map(|only| match only {
            Only::OneOf(_, values) => {
                let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
                names.join(" ")
            }
            Only::Lacks(_, name, _) => format!("without {name}"),
            Only::OwnProcess(_) => "its own process".into(),
        })
        .collect();
    if !limits.is_empty() {
        let _ = write!(words, " ({})", limits.join("; "));
    }
    words
}

/// Compare with docs/security.md.
#[track_caller]
fn documented(table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/security.md");
    let page = fs::read_to_string(path).unwrap();
    assert!(
        page.contains(table),
        "docs/security.md lacks this table:\n\n{table}"
    );
}

#[test]
fn another_call_ends_hull_with_a_message() {
    let openat = || {
        call(
            libc::SYS_openat,
            [libc::AT_FDCWD as u64, c"/".as_ptr() as u64, 0, 0, 0, 0],
        )
    };
    let (status, said) = child(|| {
        set_seccomp(Seccomp::On).unwrap();
        allow_all_folders();
        restrict_calls(Role::Vcpu(3));
        openat()
    });
    assert!(
        matches!(status, WaitStatus::Exited(_, 148)),
        "{status:?} {said}"
    );
    assert!(
        said.starts_with("hull: the thread vcpu3 made the system call openat (257)"),
        "{said}"
    );

    // The main thread, which has the terminal, is told.
    let (status, said) = child(|| {
        set_seccomp(Seccomp::On).unwrap();
        allow_all_folders();
        let _ = spawn(Role::Net, openat).unwrap().join();
        1
    });
    assert!(
        matches!(status, WaitStatus::Exited(_, 148)),
        "{status:?} {said}"
    );
    assert!(said.starts_with("hull: the thread net made"), "{said}");
    assert_eq!(said.lines().count(), 1);

    let (status, said) = child(|| {
        set_seccomp(Seccomp::Log).unwrap();
        allow_all_folders();
        spawn(Role::Net, openat).unwrap().join().unwrap()
    });
    assert!(
        matches!(status, WaitStatus::Exited(_, 0)),
        "{status:?} {said}"
    );
}

#[test]
fn a_filtered_thread_can_end_fail_and_allocate() {
    let (status, said) = child(|| {
        set_seccomp(Seccomp::On).unwrap();
        allow_all_folders();
        for role in ROLES.into_iter().filter(|role| !role.prepares()) {
            let thread = spawn(role, move || {
                let mut bytes = Vec::new();
                for _ in 0..8 {
                    bytes.resize(bytes.len() * 4 + 4096, 1u8);
                }
                drop(bytes);
                let _ = std::collections::HashMap::from([(1, 2)]);
                let _ = std::time::Instant::now();
                log::warn!("a message");
                panic!("on purpose");
            });
            if thread.unwrap().join().is_ok() {
                return 1;
            }
        }
        0
    });
    assert!(
        matches!(status, WaitStatus::Exited(_, 0)),
        "{status:?} {said}"
    );
    assert!(said.contains("on purpose"), "{said}");
}

#[test]
fn a_thread_that_begins_before_the_lock_down_ends_hull() {
    let (status, said) = child(|| {
        set_seccomp(Seccomp::Off).unwrap();
        let _ = spawn(Role::Net, || ()).unwrap().join();
        0
    });
    assert!(
        matches!(status, WaitStatus::Exited(_, 125)),
        "{status:?} {said}"
    );
}
