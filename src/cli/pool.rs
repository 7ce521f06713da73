//! `hull pool`: restored machines that wait for the commands of `hull run`.
//!
//! Each is a process of its own, this verb again with `--member`. It stays as long as the pipe that
//! is its standard input: whatever happens to the pool, its waiting machines leave in good order. On
//! its standard output it says how far it is, until that is its customer's.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal, setsid};
use signal_hook::consts::{SIGUSR1, SIGUSR2, SIGWINCH};

use super::bar::Bar;
use super::run::{Run, Shape};
use super::{machine, print};
use crate::fleet;
use crate::pool;
use crate::templates::Cache;
use crate::vmm::{self, Config, Console, Signals, Streams, VmmError};

/// Most machines of a pool.
const MACHINES_MOST: u16 = 1000;
/// How often it is tried to make a template.
const TRIES: u32 = 3;
/// Machines in a row that may fail, once the pool was full, and how long it waits after each.
const FAILURES_MOST: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// How long machines have to leave.
const GRACE: Duration = Duration::from_secs(10);
/// hull's own errors, as in `main`.
const OWN_ERROR: u8 = 125;
/// What a machine says of itself.
const READY: u8 = b'r';
const TAKEN: u8 = b't';

/// The flags.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull pool 4                                four of the machine of hull run
  hull pool 2 --memory 1G --cpus 2           for hull run --memory 1G --cpus 2

A hull run with the same flags, without devices, --name and reports takes a
machine of a pool if one is ready, and does as ever if none is. The pool makes
another. It ends by Ctrl-C or SIGTERM, with the machines that wait; those that
run a command go on with it.")]
pub struct Pool {
    /// So many machines are kept ready, 1 to 1000.
    #[arg(
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MACHINES_MOST))
    )]
    machines: u16,
    #[command(flatten)]
    shape: Shape,
    /// Be one of them.
    #[arg(long, hide = true)]
    member: bool,
}

impl Pool {
    /// Keep the machines until a signal comes; the status to exit with.
    pub fn execute(self) -> anyhow::Result<u8> {
        let machines = usize::from(self.machines);
        let run = Run::of(self.shape, vec!["/bin/true".into()])?;
        if self.member {
            return be_member(&run);
        }
        // Told once, and not by each of them.
        Cache::made()?;
        run.config()?;
        Keeper {
            signals: machine::signals()?,
            members: Vec::new(),
            busy: Vec::new(),
            was_full: false,
            failures: 0,
            built: 0,
        }
        .keep(machines)
    }
}

/// A machine that waits, or will.
struct Member {
    child: Child,
    /// Open as long as it is to wait.
    _stay: ChildStdin,
    says: ChildStdout,
    ready: bool,
    taken: bool,
}

/// The pool itself.
struct Keeper {
    signals: Signals,
    members: Vec<Member>,
    /// Those that run a command.
    busy: Vec<Child>,
    was_full: bool,
    /// Machines in a row that have failed, or have made a template.
    failures: u32,
    built: u32,
}

impl Keeper {
    fn keep(mut self, machines: usize) -> anyhow::Result<u8> {
        let mut bar = Some(Bar::new("making machines ready"));
        loop {
            // One first, which makes the template.
            let first = !self.was_full && !self.members.iter().any(|member| member.ready);
            let wanted = if first { 1 } else { machines };
            while self.members.len() < wanted {
                let member = start();
                self.members.push(member?);
            }
            let ready = self.members.iter().filter(|member| member.ready).count();
            if let Some(bar) = &mut bar {
                bar.show(ready as u64, machines as u64);
            }
            if ready == machines && !self.was_full {
                self.was_full = true;
                bar = None;
                let s = if machines == 1 { "" } else { "s" };
                print(format!("{machines} machine{s} ready\n").as_bytes())?;
            }
            if self.wait()? {
                self.end();
                return Ok(0);
            }
            let listened = self.listen();
            self.reap();
            if let Err(error) = listened {
                self.end();
                return Err(error);
            }
        }
    }

    /// Wait until there is something to do; whether the pool is to end.
    fn wait(&mut self) -> anyhow::Result<bool> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN)];
        for member in &self.members {
            fds.push(PollFd::new(&member.says, PollFlags::IN));
        }
        // No descriptor says that one that runs a command has ended.
        let now_and_then = Timespec::try_from(PAUSE)?;
        let timeout = (!self.busy.is_empty()).then_some(&now_and_then);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        drop(fds);
        let signals = self.signals.take().into_iter();
        let mut ends = signals.filter(|signal| ![SIGWINCH, SIGUSR1, SIGUSR2].contains(signal));
        Ok(ends.next().is_some())
    }

    /// Hear what the machines say.
    fn listen(&mut self) -> anyhow::Result<()> {
        let mut waiting = Vec::new();
        for mut member in self.members.drain(..) {
            if member.hear() {
                if member.ready {
                    (self.failures, self.built) = (0, 0);
                }
                waiting.push(member);
            } else if member.ready || member.taken {
                self.busy.push(member.child);
            } else {
                let status = member.child.wait().context("cannot wait for a machine")?;
                match status.success() {
                    true => self.built += 1,
                    false => self.failures += 1,
                }
            }
        }
        self.members = waiting;
        if self.built > TRIES {
            bail!("no template could be made; hull run with the same flags says why");
        }
        let most = if self.was_full { FAILURES_MOST } else { 1 };
        if self.failures >= most {
            bail!("no machine can be made ready; what it said stands above");
        }
        if self.failures > 0 {
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// See to those that have ended.
    fn reap(&mut self) {
        let before = self.busy.len();
        self.busy
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        if self.busy.len() < before {
            fleet::sweep(); // of one that was killed
        }
    }

    /// Have those that wait leave.
    fn end(&mut self) {
        let until = Instant::now() + GRACE;
        let mut leaving = Vec::new();
        for member in self.members.drain(..) {
            if !member.ready {
                let _ = kill_process(Pid::from_child(&member.child), Signal::TERM);
            }
            leaving.push((member.child, member.says, member.taken));
        }
        for (mut child, mut says, taken) in leaving {
            let left = until.saturating_duration_since(Instant::now());
            if taken || last_words(&mut says, left) {
                continue;
            }
            let _ = child.kill(); // it hangs, or has ended
            let _ = child.wait();
        }
        fleet::sweep();
    }
}

/// Hear a machine out; whether it has got a command meanwhile.
fn last_words(says: &mut ChildStdout, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(says, PollFlags::IN)];
        let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        if fds[0].revents().is_empty() && Instant::now() >= until {
            return false;
        }
        let mut words = [0; 16];
        match says.read(&mut words) {
            Ok(0) | Err(_) => return false,
            Ok(read) if words.iter().take(read).any(|word| *word == TAKEN) => return true,
            Ok(_) => {}
        }
    }
}

fn start() -> anyhow::Result<Member> {
    // The same program, even if another was installed since.
    let mut command = Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1)).arg("--member");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start another hull")?;
    match (child.stdin.take(), child.stdout.take()) {
        (Some(stay), Some(says)) => Ok(Member {
            child,
            _stay: stay,
            says,
            ready: false,
            taken: false,
        }),
        _ => bail!("a process without the pipes that it was started with"),
    }
}

impl Member {
    /// Hear what it says, if it says anything; whether it still waits.
    fn hear(&mut self) -> bool {
        let mut fds = [PollFd::new(&self.says, PollFlags::IN)];
        let now = Timespec::default();
        if !matches!(poll(&mut fds, Some(&now)), Ok(ready) if ready > 0) {
            return true;
        }
        let mut words = [0; 16];
        let read = self.says.read(&mut words).unwrap_or(0);
        for word in words.iter().take(read) {
            self.ready |= *word == READY;
            self.taken |= *word == TAKEN;
        }
        read > 0 && !self.taken
    }
}

/// Wait for a command, and run it.
fn be_member(run: &Run) -> anyhow::Result<u8> {
    // Neither the terminal's keys nor its job control are for it: it may get another's terminal.
    let _ = setsid();
    set_parent_process_death_signal(Some(Signal::TERM))?;
    let (_, timeline) = machine::clock();
    let mut config = run.config()?;
    let Some(mut warm) = run.warm(&config) else {
        bail!("a machine of this kind has no template, or one of its files was written just now");
    };
    warm.prepare(&mut config);
    if config.start.saved().is_some() {
        config.name = Some(std::process::id().to_string());
        config.ready_with = Some(warm.key().to_string());
        let signals = machine::signals()?;
        match vmm::build(&config, timeline) {
            Ok(ready) => return wait(ready, config, signals),
            Err(error) if warm.failed(&error, &mut config) => {}
            Err(error) => return Err(error.into()),
        }
        config.name = None;
        config.ready_with = None;
    }
    // The next one waits: this one has all of a booted machine in its memory.
    let (end, _) = build(&config)?;
    warm.finish();
    Ok(machine::status(end))
}

/// Boot, to have a template.
fn build(config: &Config) -> anyhow::Result<(vmm::End, vmm::Report)> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // As long as the process: that is as long as streams are.
    let null: &'static OwnedFd = Box::leak(Box::new(null.into()));
    let streams = Streams {
        stdin: null.as_fd(),
        stdout: null.as_fd(),
        stderr: null.as_fd(),
        raw: false,
    };
    let (_, timeline) = machine::clock();
    Ok(vmm::run(
        config,
        streams,
        machine::signals()?,
        timeline,
        None,
    )?)
}

fn wait(ready: vmm::ReadyMachine, mut config: Config, signals: Signals) -> anyhow::Result<u8> {
    let Some(listener) = ready.listen().context("cannot make a socket")? else {
        bail!("a machine without a name");
    };
    let mut pool = io::stdout();
    let mut tell = |word| pool.write_all(&[word]).and_then(|()| pool.flush());
    tell(READY)?;
    let stay = rustix::stdio::stdin();
    let customer = pool::wait(&listener, [stay, signals.fd()], || ready.status())?;
    let Some(customer) = customer else {
        return Ok(0);
    };
    set_parent_process_death_signal(None)?;
    let _ = tell(TAKEN); // or the pool has just ended
    drop(listener);
    customer.serve()?;
    config.console = Console::Agent {
        exec: customer.command.exec(),
        kernel_log: false,
    };
    let streams = machine::streams(customer.command.raw);
    let status = match ready.run(&config, streams, signals, None) {
        Err(VmmError::Unanswered(_)) => {
            customer.unfit();
            return Ok(OWN_ERROR);
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            OWN_ERROR
        }
        Ok((end, _)) => machine::status(end),
    };
    customer.ended(status);
    Ok(status)
}
