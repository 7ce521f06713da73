//! Runs a prepared machine: in a pool, from a template, or by a boot.

use std::sync::Arc;

use super::error::LaunchError;
use super::images::use_unpacked;
use super::pooled;
use super::warm::Warm;
use crate::vmm::debugger::Debugger;
use crate::vmm::timeline::Timeline;
use crate::vmm::{self, Config, End, Report, Signals, Start, Streams};

/// Exit status of hull itself where it fails, as container engines have it.
pub const OWN_ERROR: u8 = 125;

/// How a machine may be started, and with what.
pub struct Launch<'a> {
    /// Boot it: neither use a template nor make one.
    pub cold: bool,
    /// Whether a machine of a pool will do, which leaves no [`Report`].
    pub pooled: bool,
    /// The streams of the guest's command or console.
    pub streams: Streams,
    /// Called with each line that the user should read.
    pub tell: &'a dyn Fn(&str),
}

/// The result of a machine.
#[derive(Debug)]
pub enum Outcome {
    /// It ran in this process.
    Ran(End, Box<Report>),
    /// Its command ran in a machine of a pool, and hull is to exit with this status.
    Pooled(u8),
}

/// Run the machine of `config` until it ends. `signals` were caught before anything that a signal
/// must not leave behind.
///
/// # Errors
/// It cannot be started, or does not run to its end.
pub fn run(
    config: &mut Config,
    launch: &Launch,
    mut signals: Signals,
    timeline: Arc<Timeline>,
    debugger: Option<&mut dyn Debugger>,
) -> Result<Outcome, LaunchError> {
    let mut warm = None;
    if !launch.cold && debugger.is_none() && is_warm(config) {
        warm = timeline.span("which template", || Warm::of(config, launch.tell));
        if let Some(warm) = &mut warm {
            if launch.pooled
                && config.attachments.explain_exits.is_none()
                && config.attachments.supervised.is_none()
                && config.attachments.started.is_none()
                && pooled::fits(&config.machine, &launch.streams)
                && let Some(status) =
                    pooled::run(warm.key(), &config.machine, &launch.streams, &mut signals)?
            {
                return Ok(Outcome::Pooled(status));
            }
            timeline.span("template", || warm.prepare(config))?;
        }
    }
    if !matches!(config.start, Start::Saved(_)) {
        timeline.span("unpacked guest", || {
            use_unpacked(&mut config.images, launch.tell);
        });
    }
    let mut result = vmm::run(
        config,
        launch.streams.clone(),
        signals,
        timeline.clone(),
        debugger,
    );
    if let (Err(error), Some(warm)) = (&result, &mut warm)
        && warm.failed(error, config)
        && vmm::may_build()
    {
        let signals = Signals::catch().map_err(LaunchError::system("catch signals"))?;
        result = vmm::run(config, launch.streams.clone(), signals, timeline, None);
    }
    if let Some(warm) = warm {
        warm.finish();
    }
    let (end, report) = result?;
    Ok(Outcome::Ran(end, Box::new(report)))
}

/// Whether the machine may begin with a template: hull's init runs its command, and the boot is not
/// what the user wants to see.
fn is_warm(config: &Config) -> bool {
    let attached = &config.attachments;
    let watched =
        attached.profile.is_some() || attached.trace.is_some() || attached.story.is_some();
    config.machine.command.is_some() && !config.machine.kernel_log && !watched
}

/// The status with which hull exits after `end`.
pub fn status(end: End) -> u8 {
    match end {
        End::Off | End::Quit => 0,
        End::Exited(status) => status,
        End::OutputLost => OWN_ERROR,
        End::Signalled(signal) => 128 + signal as u8,
    }
}
