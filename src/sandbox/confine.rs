//! Restrictions of the calling thread: no rights beyond files, no files outside its folder.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::thread::{CapabilitySet, set_no_new_privs};
use thiserror::Error;

use super::lockdown::{drop_capabilities, hide_memory};

/// The newest version of Landlock whose rights are known here; older kernels have fewer.
const LANDLOCK: ABI = ABI::V5;
/// The same for threads that open next to nothing.
const KNOWN: ABI = ABI::V7;

/// Capabilities that the superuser's thread keeps: to create files for the guest's users and to
/// access them. Without CAP_MKNOD it creates no device nodes, without CAP_FSETID a write clears
/// setuid, and it cannot administer the host.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// How the host's kernel confines a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// By Landlock: the thread cannot open, create or remove files outside its folder.
    Landlock,
    /// Not at all: there is no Landlock (before Linux 5.13, or disabled).
    None,
}

/// A thread could not be restricted.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// Capabilities, new privileges or core dumps.
    #[error("it could not give up its rights ({0})")]
    Rights(#[from] io::Error),
    /// The kernel has Landlock and refused.
    #[error("Landlock refused its rules ({0})")]
    Landlock(#[from] RulesetError),
}

/// Drop the superuser's capabilities of the calling thread that are not about files, and let it gain none by
/// executing a program. The process leaves no core dump.
///
/// # Errors
/// [`SandboxError`]; the thread must end then.
pub fn give_up_rights() -> Result<(), SandboxError> {
    set_no_new_privs(true).map_err(io::Error::from)?;
    drop_capabilities(KEPT)?;
    Ok(hide_memory()?)
}

/// What a thread may do in a folder and in those below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Read files and list folders.
    Read,
    /// Read, write, make and remove files, sockets and folders.
    Write,
    /// Remove folders that are empty.
    RemoveEmpty,
    /// Remove files, links and sockets.
    RemoveFiles,
}

/// What confines the threads that begin from now on.
pub(super) enum Rules {
    /// It is not known yet: no thread that works for a guest may begin.
    Unknown,
    /// Nothing: this process runs no machine, the kernel has no Landlock, or the user wants no lock-down.
    None,
    /// These rules.
    Made(OwnedFd),
}

static RULES: Mutex<Rules> = Mutex::new(Rules::None);

pub(super) fn set_rules(rules: Rules) {
    *RULES.lock().unwrap_or_else(PoisonError::into_inner) = rules;
}

/// Have the threads of a machine open what they like.
pub fn allow_all_folders() {
    set_rules(Rules::None);
}

/// Have the threads of a machine that begin from now on, and the main thread once it is restricted, open
/// nothing but what is in `folders`, and neither connect nor listen at a TCP port, nor connect to an abstract
/// socket. Signals are a matter of the lists of system calls.
///
/// # Errors
/// [`SandboxError`]; the machine must not run then.
pub fn allow_folders(folders: &[(BorrowedFd<'_>, Reach)]) -> Result<(), SandboxError> {
    set_rules(rules(folders)?.map_or(Rules::None, Rules::Made));
    Ok(())
}

/// The rules that [`allow_folders`] describes; `None` without Landlock.
pub(super) fn rules(folders: &[(BorrowedFd<'_>, Reach)]) -> Result<Option<OwnedFd>, SandboxError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    for (folder, reach) in folders {
        let granted = match reach {
            Reach::Read => read,
            Reach::RemoveEmpty => AccessFs::RemoveDir.into(),
            Reach::RemoveFiles => AccessFs::RemoveFile.into(),
            Reach::Write => {
                read | AccessFs::WriteFile
                    | AccessFs::Truncate
                    | AccessFs::MakeReg
                    | AccessFs::MakeSock
                    | AccessFs::MakeDir
                    | AccessFs::RemoveFile
                    | AccessFs::RemoveDir
            }
        };
        rules = rules.add_rule(PathBeneath::new(folder, granted))?;
    }
    Ok(rules.into())
}

/// Confine the calling thread by the rules of [`allow_folders`]. Returns whether there are any.
///
/// # Errors
/// The kernel refuses, or the rules are not known yet: the thread begins too early.
pub(super) fn enter_folders() -> io::Result<bool> {
    match &*RULES.lock().unwrap_or_else(PoisonError::into_inner) {
        Rules::Unknown => Err(io::Error::other("it began before the lock-down")),
        Rules::None => Ok(false),
        Rules::Made(rules) => enter(rules).map(|()| true),
    }
}

/// Confine the calling thread, which gains no privileges any more, by `rules`.
pub(super) fn enter(rules: &OwnedFd) -> io::Result<()> {
    // SAFETY: the call takes numbers alone.
    let entered = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) };
    match entered {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The version of the kernel's Landlock; `None` if it has none, or has it disabled.
pub fn landlock_version() -> Option<u32> {
    const VERSION: u32 = 1; // LANDLOCK_CREATE_RULESET_VERSION
    let none = std::ptr::null::<u8>();
    // SAFETY: without attributes, which `none` and 0 say, the call reads and makes nothing.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) };
    u32::try_from(version).ok()
}

/// Confine the calling thread to files beneath `folder`; to reading, if `read_only`.
///
/// # Errors
/// [`SandboxError`]; the thread must end then.
pub fn confine(folder: impl AsFd, read_only: bool) -> Result<Confinement, SandboxError> {
    let handled = AccessFs::from_all(LANDLOCK);
    let mut granted = if read_only {
        AccessFs::ReadFile | AccessFs::ReadDir
    } else {
        handled
    };
    // The thread executes nothing, controls no devices and creates no device nodes.
    let never: BitFlags<AccessFs> =
        AccessFs::Execute | AccessFs::IoctlDev | AccessFs::MakeChar | AccessFs::MakeBlock;
    granted.remove(never);
    let status = Ruleset::default()
        .handle_access(handled)?
        .create()?
        .add_rule(PathBeneath::new(folder, granted))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::NotEnforced => Confinement::None,
        _ => Confinement::Landlock,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::thread;

    use rustix::fs::{CWD, FileType, Mode, mknodat, rename};

    use super::*;

    #[test]
    fn a_confined_thread_has_its_folder_and_nothing_else() {
        let around = tempfile::tempdir().unwrap();
        let inside = around.path().join("inside");
        fs::create_dir(&inside).unwrap();
        fs::write(around.path().join("secret"), "").unwrap();
        fs::write(inside.join("file"), "").unwrap();
        let folder = File::open(&inside).unwrap();
        for read_only in [false, true] {
            let confined = thread::scope(|scope| {
                let run = scope.spawn(|| {
                    give_up_rights().unwrap();
                    let confinement = confine(&folder, read_only).unwrap();
                    assert!(File::open(inside.join("file")).is_ok());
                    let written = fs::write(inside.join("file"), "x");
                    let made = fs::create_dir(inside.join("new"));
                    let _ = fs::remove_dir(inside.join("new"));
                    let (device, kind) = (inside.join("device"), FileType::CharacterDevice);
                    assert!(mknodat(CWD, device, kind, Mode::RWXU, 0x103).is_err());
                    let rights = rustix::thread::capabilities(None).unwrap();
                    assert!(KEPT.contains(rights.permitted));
                    if confinement == Confinement::Landlock {
                        assert_eq!(written.is_err(), read_only);
                        assert_eq!(made.is_err(), read_only);
                        assert!(File::open(around.path().join("secret")).is_err());
                        assert!(fs::read_dir(around.path()).is_err());
                        assert!(fs::write(around.path().join("new"), "").is_err());
                        let away = around.path().join("away");
                        assert!(rename(inside.join("file"), away).is_err());
                    }
                    confinement
                });
                run.join().unwrap()
            });
            println!("confined by {confined:?}");
        }
        // Only those threads were confined.
        assert!(File::open(around.path().join("secret")).is_ok());
    }
}
