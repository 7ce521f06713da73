//! What the calling thread gives up: rights beyond files, and files outside its folder.

use std::io;
use std::os::fd::AsFd;

use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus,
};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use thiserror::Error;

/// The newest Landlock whose rights over files are known here; an older kernel has fewer.
const LANDLOCK: ABI = ABI::V5;

/// What the superuser's thread keeps: to make files for the guest's users and to reach them.
/// Without CAP_MKNOD it makes no device nodes, without CAP_FSETID a write takes setuid away, and
/// the rest of the host's administration is out of reach.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// How far the kernel of this host confines a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// By Landlock: it opens, makes and removes nothing outside of its folder.
    Landlock,
    /// It has no Landlock (before Linux 5.13, or not switched on): only the thread's own care.
    None,
}

/// A thread could not give up what it must.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// Capabilities, or what threads share.
    #[error("the thread could not give up its rights ({0})")]
    Rights(#[from] io::Error),
    /// Landlock is there and refused.
    #[error("Landlock refused its rules ({0})")]
    Landlock(#[from] RulesetError),
}

/// Give the calling thread umask and working directory of its own, and take from it what the
/// superuser can beyond files.
///
/// # Errors
/// [`SandboxError`]; the thread must not go on then.
pub fn give_up_rights() -> Result<(), SandboxError> {
    // SAFETY: umask and working directory become the thread's own, on which nothing here relies.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.map_err(io::Error::from)?;
    Ok(drop_capabilities()?)
}

/// Confine the calling thread to what lies beneath `folder`, there to read alone if `read_only`.
///
/// # Errors
/// [`SandboxError`]; the thread must not go on then.
pub fn confine(folder: impl AsFd, read_only: bool) -> Result<Confinement, SandboxError> {
    let handled = AccessFs::from_all(LANDLOCK);
    let mut granted = match read_only {
        true => AccessFs::ReadFile | AccessFs::ReadDir,
        false => handled,
    };
    // Nobody runs or controls anything from here, nor makes device nodes.
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

/// Keep [`KEPT`] of what the thread has. capset(2) is a thread's own.
fn drop_capabilities() -> io::Result<()> {
    let now = rustix::thread::capabilities(None)?;
    let sets = CapabilitySets {
        effective: now.effective & KEPT,
        permitted: now.permitted & KEPT,
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
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
        // It was for those threads alone.
        assert!(File::open(around.path().join("secret")).is_ok());
    }
}
