//! `hull bench restore`: from exec to a guest that was restored from a snapshot, and saving it.

use std::time::Duration;

use super::error::BenchError;
use super::plan::{Bench, Contender, Kind, Made, Plan, Program, Samples};
use super::resumed::SavedGuest;
use super::{firecracker, hull};
use crate::compare::figure::Better::Less;
use crate::compare::figure::Unit::Milliseconds;
use crate::compare::subject::guest::TYPED;

pub static PLAN: Plan = Plan {
    topic: "restore",
    method: "An idle guest (hull's kernel, 1 vCPU, 128 MiB, a quiet serial console) is saved once, after 2 s \
             of idleness. The clock starts before exec and stops at hull's first KVM_RUN, as its --json \
             reports; when a control socket has answered, hull's a request for its status, Firecracker's PUT \
             /snapshot/load with resume_vm; and when the guest's terminal has echoed the input. Saving it \
             again: from the request to its end, and how long the guest was paused.",
    figures: &[
        ("exec to the guest's answer", Milliseconds, Less),
        ("exec to an answer at the socket", Milliseconds, Less),
        ("exec to the first KVM_RUN", Milliseconds, Less),
        ("saving it, order to end", Milliseconds, Less),
        ("saving it, the guest stands still", Milliseconds, Less),
    ],
    warms_up: true,
    contender,
};

pub fn saved_guest<'a>(
    bench: &'a Bench,
    program: &'a Program,
) -> Result<Box<dyn SavedGuest + 'a>, BenchError> {
    Ok(match program.kind {
        Kind::ThisHull | Kind::OtherHull => Box::new(hull::Snapshot::new(bench, program)),
        Kind::Firecracker => Box::new(firecracker::Snapshot::new(bench, program)),
        Kind::Other | Kind::Container => {
            return Err(BenchError::Other("its snapshots are not measured".into()));
        }
    })
}

fn contender<'a>(bench: &'a Bench, program: &'a Program) -> Made<'a> {
    Ok(Box::new(Restore(saved_guest(bench, program)?)))
}

struct Restore<'a>(Box<dyn SavedGuest + 'a>);

impl Contender for Restore<'_> {
    fn prepare(&mut self) -> Result<(), BenchError> {
        self.0.save()
    }

    fn turn(&mut self) -> Result<Samples, BenchError> {
        const NAME: &str = "again";
        let mut guest = self.0.restore(NAME)?;
        let echoed = guest.running.until(TYPED)?;
        let answered = guest.answered;
        let [saving, paused] = self.0.save_again(NAME)?;
        let first_run = self.0.first_run(NAME, guest)?;
        let ms = |time: Duration| Some(time.as_secs_f64() * 1e3);
        let (saving, paused) = (Some(saving), Some(paused));
        Ok(vec![ms(echoed), ms(answered), first_run, saving, paused])
    }
}
