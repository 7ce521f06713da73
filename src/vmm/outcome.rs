//! What the end of a machine means: a status, or an error with all that is known of it.

use rustix::io::Errno;
use signal_hook::consts::{SIGKILL, SIGPIPE};

use super::config::{Config, End};
use super::error::VmmError;
use super::event_loop::{Ending, EventLoop};
use super::events::GuestEnd;
use super::place;
use super::vcpus::Vcpus;

/// RIP after a reset (Intel SDM 3A, 10.1.4), which is where KVM has put the vCPU when SVM reports
/// a triple fault: the VMCB is undefined then (AMD APM 2, 15.14.3).
const RESET_RIP: u64 = 0xfff0;

/// What the `ending` of the event loop means.
///
/// # Errors
/// The guest did not end in good order.
pub fn end(
    ending: Ending,
    event_loop: &EventLoop,
    vcpus: &Vcpus,
    config: &Config,
) -> Result<End, VmmError> {
    let guest_end = match ending {
        // Not a success of which a part is missing.
        Ending::Exited(0) => {
            return Ok(match event_loop.lost_output() {
                None => End::Exited(0),
                Some(Errno::PIPE) => End::Signalled(SIGPIPE),
                Some(_) => End::OutputLost,
            });
        }
        Ending::Signalled(SIGPIPE)
            if event_loop
                .lost_output()
                .is_some_and(|why| why != Errno::PIPE) =>
        {
            return Ok(End::OutputLost);
        }
        Ending::Exited(status) => return Ok(End::Exited(status)),
        Ending::Signalled(signal) => return Ok(End::Signalled(signal)),
        Ending::Quit => return Ok(End::Quit),
        Ending::Unanswered => return Err(VmmError::Unanswered("has not answered".into())),
        Ending::Guest(end) => end,
    };
    of_guest(guest_end, event_loop, vcpus, config)
}

/// What the guest's own end means, if its init did not report the end of a command.
fn of_guest(
    guest_end: GuestEnd,
    event_loop: &EventLoop,
    vcpus: &Vcpus,
    config: &Config,
) -> Result<End, VmmError> {
    if config.start.saved().is_some() && event_loop.waits_for_init() {
        return Err(VmmError::Unanswered(format!(
            "ended at once ({guest_end:?})"
        )));
    }
    let log = || place::quote(&event_loop.log().last_lines());
    let place = |rip: u64| place::place(rip, config.images.symbols.as_ref());
    let vcpu_0 = || vcpus.vcpu(0).and_then(|vcpu| vcpu.rip());
    let has_command = config.machine.command.is_some();
    match guest_end {
        GuestEnd::Killed => Ok(End::Signalled(SIGKILL)),
        GuestEnd::PoweredOff | GuestEnd::Reset | GuestEnd::Halted
            if let Some(reason) = event_loop.log().panic_reason() =>
        {
            Err(VmmError::Panicked {
                reason,
                place: vcpu_0()
                    .map_or_else(String::new, |rip| format!("\n  vCPU 0 at {}", place(rip))),
                log: place::quote(&event_loop.log().cause_of_panic()),
            })
        }
        GuestEnd::Halted => Err(VmmError::Halted {
            place: vcpu_0().map_or_else(String::new, |rip| format!(" (vCPU 0 at {})", place(rip))),
            log: log(),
        }),
        GuestEnd::PoweredOff | GuestEnd::Reset if event_loop.waits_for_init() => {
            Err(VmmError::GuestExitedSilently)
        }
        GuestEnd::PoweredOff if has_command => Err(VmmError::NoStatus { how: "powered off" }),
        GuestEnd::Reset if has_command => Err(VmmError::NoStatus { how: "restarted" }),
        GuestEnd::PoweredOff | GuestEnd::Reset => Ok(End::Off),
        GuestEnd::TripleFault { rip } => Err(VmmError::TripleFault {
            place: match rip {
                RESET_RIP => "a place that KVM on this processor does not tell".into(),
                rip => place(rip),
            },
            log: log(),
        }),
        GuestEnd::Failed { rip, reason } => Err(VmmError::Failed {
            place: place(rip),
            reason,
            log: log(),
        }),
    }
}
