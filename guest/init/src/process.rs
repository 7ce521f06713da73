//! Start a process: environment, PATH, standard descriptors, session.

use core::ffi::CStr;

use hull_agent::{ALL_CAPABILITIES, Command, Exit, MAX_STRINGS};

use crate::root;
use crate::sys::{self, Errno, Fd};
use crate::text::join;
use crate::user::User;

/// Variables that a process gets unless its environment sets them, the last on a terminal.
const PATH: &CStr = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const HOME: &CStr = c"HOME=/root";
const TERM: &CStr = c"TERM=linux";

/// This program.
const OWN: &CStr = c"/proc/self/exe";
/// Runs the applet that it is started as. An initramfs with a link for each applet would take seconds
/// to unpack on a software KVM (guest/initramfs/build).
const BUSYBOX: &CStr = c"/bin/busybox";
/// Where other systems have the programs that busybox replaces.
const DIRECTORIES: [&[u8]; 4] = [b"/bin", b"/sbin", b"/usr/bin", b"/usr/sbin"];

/// The pointers of arguments and environment, each list with a null at its end.
pub type Pointers = [usize; MAX_STRINGS + 3 + 2];

/// A process that has not started yet.
pub struct Plan<'a> {
    argv: &'a [usize],
    env: &'a [usize],
    name: &'a CStr,
    path: &'a [u8],
    cwd: &'a CStr,
    stdio: [Fd; 3],
    terminal: bool,
    user: Option<&'a User>,
    /// What else the host has asked for.
    command: Option<&'a Command<'a>>,
    /// Whether a name that is not found in a standard directory may be an applet of [`BUSYBOX`]: in a
    /// guest, but not in tests.
    applets: bool,
    failure: Option<Exit>,
}

impl<'a> Plan<'a> {
    /// Run `argv` with `env` and the defaults it lacks, in `cwd` (empty: init's), on `stdio`. With
    /// `terminal`, `stdio` is a terminal and controls the session. Without a `user` it is root.
    ///
    /// `None` if there is no argument or there are too many strings.
    pub fn new<'s: 'a>(
        pointers: &'a mut Pointers,
        argv: impl Iterator<Item = &'s CStr> + Clone,
        env: impl Iterator<Item = &'s CStr> + Clone,
        cwd: &'s CStr,
        stdio: [Fd; 3],
        terminal: bool,
        user: Option<&'s User>,
    ) -> Option<Self> {
        let defaults = [PATH, user.map_or(HOME, User::home)];
        let term = terminal.then_some(TERM);
        let defaults = defaults.into_iter().chain(term).filter(|default| {
            let name = variable_name(default);
            !env.clone().any(|variable| variable_name(variable) == name)
        });
        let env = env.clone().chain(defaults);
        let path = env
            .clone()
            .find_map(|v| v.to_bytes().strip_prefix(b"PATH="));
        let name = argv.clone().next()?;
        let mut len = 0;
        for string in argv.map(|s| s.as_ptr() as usize).chain([0]) {
            *pointers.get_mut(len)? = string;
            len += 1;
        }
        let (argv, pointers) = pointers.split_at_mut(len);
        len = 0;
        for string in env.map(|s| s.as_ptr() as usize).chain([0]) {
            *pointers.get_mut(len)? = string;
            len += 1;
        }
        Some(Self {
            argv,
            env: pointers.get(..len)?,
            name,
            path: path.unwrap_or_default(),
            cwd,
            stdio,
            terminal,
            user,
            command: None,
            applets: sys::pid() == 1 && !root::is_image(),
            failure: None,
        })
    }

    /// With the limits and capabilities of `command`, which may also name a function of init's own.
    pub fn of(self, command: &'a Command<'a>) -> Self {
        Self {
            command: Some(command),
            ..self
        }
    }

    /// Start it. Its process id is also that of its session and process group.
    ///
    /// # Errors
    /// Why the command cannot be run.
    pub fn start(mut self) -> Result<i32, Exit> {
        // SAFETY: the child writes `failure` of this plan and nothing else of the parent's.
        let pid = unsafe { sys::spawn(child, &raw mut self) };
        let pid = pid.map_err(|Errno(errno)| Exit::Error(errno as u32))?;
        // SAFETY: the plan is alive; the child may have changed it, which the compiler cannot know.
        match unsafe { (&raw const self.failure).read_volatile() } {
            None => Ok(pid),
            Some(exit) => Err(exit),
        }
    }

    /// In the child: returns only if the command cannot be run.
    fn become_command(&self) -> Exit {
        let _ = sys::set_session();
        for (fd, target) in self.stdio.into_iter().zip(0..) {
            if let Err(Errno(errno)) = sys::dup2(fd, target) {
                return Exit::Error(errno as u32);
            }
        }
        if self.terminal {
            let _ = sys::ioctl(0, sys::TIOCSCTTY, 0);
        }
        sys::unblock_signals();
        // Before the user changes: only root may raise a limit or drop a capability.
        if let Some(Err(Errno(errno))) = self.command.map(restrict) {
            return Exit::NotExecutable(errno as u32);
        }
        if let Some(Err(Errno(errno))) = self.user.map(User::become_it) {
            return Exit::NotExecutable(errno as u32);
        }
        if !self.cwd.is_empty()
            && let Err(Errno(errno)) = sys::chdir(self.cwd)
        {
            return Exit::NotExecutable(errno as u32);
        }
        match self.command.is_some_and(|command| command.header.own) {
            true => verdict(self.exec(OWN)),
            false => self.search(),
        }
    }

    /// As execvp(3), but a file that is not a program is not passed to a shell.
    fn search(&self) -> Exit {
        let name = self.name.to_bytes();
        if let Some(slash) = name.iter().rposition(|&byte| byte == b'/') {
            return match self.exec(self.name) {
                sys::ENOENT if self.applets && DIRECTORIES.contains(&&name[..slash]) => {
                    verdict(self.exec(BUSYBOX))
                }
                errno => verdict(errno),
            };
        }
        let mut last = sys::ENOENT;
        if name.is_empty() {
            return verdict(last);
        }
        for directory in self.path.split(|&byte| byte == b':') {
            let directory = if directory.is_empty() {
                b"."
            } else {
                directory
            };
            let mut buffer = [0; 4096];
            let Some(path) = join(&mut buffer, &[directory, b"/", name]) else {
                continue;
            };
            match self.exec(path) {
                sys::ENOENT | sys::ENOTDIR | sys::ENODEV | sys::ENAMETOOLONG => {}
                sys::EACCES => last = sys::EACCES,
                errno => return verdict(errno),
            }
        }
        match last {
            sys::ENOENT if self.applets => verdict(self.exec(BUSYBOX)),
            last => verdict(last),
        }
    }

    fn exec(&self, path: &CStr) -> Errno {
        // SAFETY: `new` filled both lists with pointers to C strings that live as long as the
        // plan, and ended them with a null.
        unsafe {
            sys::exec(
                path.as_ptr().cast(),
                self.argv.as_ptr().cast(),
                self.env.as_ptr().cast(),
            )
        }
    }
}

/// Give this process the limits of `command`, and its capabilities and no more.
fn restrict(command: &Command<'_>) -> sys::Result<()> {
    for limit in command.limits() {
        sys::set_limit(limit.resource, limit.soft, limit.hard)?;
    }
    let kept = command.header.capabilities;
    if kept == ALL_CAPABILITIES {
        return Ok(());
    }
    for number in (0..u64::BITS).filter(|number| kept & (1 << number) == 0) {
        match sys::drop_capability(number as usize) {
            // The kernel knows no further ones.
            Err(sys::EINVAL) => break,
            dropped => dropped?,
        }
    }
    Ok(())
}

extern "C" fn child(plan: *mut Plan<'_>) -> ! {
    // SAFETY: the parent waits in `spawn` and keeps the plan.
    let plan = unsafe { &mut *plan };
    plan.failure = Some(plan.become_command());
    sys::exit(127)
}

fn verdict(errno: Errno) -> Exit {
    let number = errno.0 as u32;
    match errno {
        sys::ENOENT => Exit::NotFound(number),
        _ => Exit::NotExecutable(number),
    }
}

fn variable_name(variable: &CStr) -> &[u8] {
    let bytes = variable.to_bytes();
    bytes.split(|&byte| byte == b'=').next().unwrap_or(bytes)
}
