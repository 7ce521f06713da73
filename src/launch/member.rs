//! A machine of a pool: waits for a command, and runs it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::process::{Signal, set_parent_process_death_signal, setsid};

use super::error::LaunchError;
use super::images::prepare;
use super::pool::{READY, TAKEN};
use super::run::{OWN_ERROR, status};
use super::warm::Warm;
use crate::config::{Command, Machine};
use crate::pool;
use crate::vmm::timeline::Timeline;
use crate::vmm::{self, Config, End, Signals, Streams, VmmError};

/// Be a machine as `machine` until a command has run in it; the status to exit with. `clock` gives
/// the timeline of a machine that starts now. `tell` gets what the user should know, `failed` the
/// error of a machine that has its command.
///
/// # Errors
/// The machine cannot be made ready.
pub fn run(
    machine: Machine,
    clock: &dyn Fn() -> Arc<Timeline>,
    tell: &dyn Fn(&str),
    failed: &dyn Fn(&VmmError),
) -> Result<u8, LaunchError> {
    // Neither the terminal's keys nor its job control are for it: it may get another terminal.
    let _ = setsid();
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(LaunchError::system("watch the pool"))?;
    let timeline = clock();
    let mut config = prepare(machine, None)?;
    let mut warm = Warm::of(&config, tell).ok_or(LaunchError::NotWarm)?;
    warm.prepare(&mut config)?;
    if config.start.saved().is_some() {
        config.machine.name = Some(std::process::id().to_string());
        config.ready_with = Some(warm.key().to_string());
        let signals = Signals::catch().map_err(LaunchError::system("catch signals"))?;
        match vmm::build(&config, timeline) {
            Ok(ready) => return wait(ready, config, signals, failed),
            Err(error) if warm.failed(&error, &mut config) => {}
            Err(error) => return Err(error.into()),
        }
        config.machine.name = None;
        config.ready_with = None;
    }
    // A new process waits: this one has all of a booted machine in its memory.
    let end = build(&config, clock())?;
    warm.finish();
    Ok(status(end))
}

/// Boot, to have a template.
fn build(config: &Config, timeline: Arc<Timeline>) -> Result<End, LaunchError> {
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(LaunchError::system("open /dev/null"))?;
    // For as long as the process lives, as streams do.
    let null: &'static OwnedFd = Box::leak(Box::new(null.into()));
    let streams = Streams {
        stdin: null.as_fd(),
        stdout: null.as_fd(),
        stderr: null.as_fd(),
        tty: None,
        raw: false,
        no_stdout: false,
    };
    let signals = Signals::catch().map_err(LaunchError::system("catch signals"))?;
    let (end, _) = vmm::run(config, streams, signals, timeline, None)?;
    Ok(end)
}

fn wait(
    ready: vmm::ReadyMachine,
    mut config: Config,
    signals: Signals,
    failed: &dyn Fn(&VmmError),
) -> Result<u8, LaunchError> {
    let system = LaunchError::system::<io::Error>;
    let listener = ready.listen().map_err(system("make a socket"))?;
    let listener = listener.ok_or(LaunchError::NotWarm)?;
    let mut pool = io::stdout();
    let mut tell = |word| pool.write_all(&[word]).and_then(|()| pool.flush());
    tell(READY).map_err(system("reach the pool"))?;
    let stay = rustix::stdio::stdin();
    let customer = pool::wait(&listener, [stay, signals.fd()], || ready.status());
    let Some(customer) = customer.map_err(system("wait for a command"))? else {
        return Ok(0);
    };
    set_parent_process_death_signal(None).map_err(LaunchError::system("leave the pool"))?;
    let _ = tell(TAKEN); // the pool may have just ended
    drop(listener);
    customer
        .serve()
        .map_err(system("take over a command's streams"))?;
    let exec = customer.command.exec();
    config.machine.command = Some(Command {
        argv: exec.argv,
        env: exec.env,
        cwd: exec.cwd,
        user: exec.user,
        tty: Some(exec.tty.is_some()),
        root: None,
    });
    let streams = Streams {
        raw: customer.command.raw,
        no_stdout: false,
        ..Streams::own(None)
    };
    let status = match ready.run(&config, streams, signals, None) {
        Err(VmmError::Unanswered(_)) => {
            customer.unfit();
            return Ok(OWN_ERROR);
        }
        Err(error) => {
            failed(&error);
            OWN_ERROR
        }
        Ok((end, _)) => status(end),
    };
    customer.ended(status);
    Ok(status)
}
