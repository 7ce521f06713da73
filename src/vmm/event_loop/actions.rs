//! The actions that the event loop carries out: to stop the machine and to save it.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::{Duration, Instant};

use signal_hook::consts::SIGTERM;

use super::{Ending, EventLoop};
use crate::agent::WindowSize;
use crate::control::{Action, Answer, Reply, SaveReport, Surroundings};
use crate::snapshot::{Files, Id, Writer};
use crate::sync::lock;
use crate::vmm::config::{Start, exec};
use crate::vmm::error::VmmError;
use crate::vmm::events::GuestEnd;
use crate::vmm::life::Transition;
use crate::vmm::link::Link;
use crate::vmm::snapshot::restore::resumed;
use crate::vmm::snapshot::save::{SaveError, Still, What};
use crate::vmm::snapshot::shape::SavedLink;

impl EventLoop<'_> {
    /// Carry out the actions that wait, and kill a guest whose time to stop is over.
    pub(super) fn take_actions(&mut self) {
        for (action, mut reply) in self.events().actions().take() {
            match action {
                Action::Stop { seconds } => self.stop_in(seconds, reply),
                Action::Snapshot {
                    dir,
                    id,
                    diff,
                    stop,
                } => {
                    let files = reply.files().into_iter().map(File::from);
                    let files: Vec<File> = files.collect();
                    reply.send(match self.save(&dir, Id(id), files, diff, stop) {
                        Ok(saved) => Answer::Saved(saved),
                        Err(error) => Answer::Refused(error.to_string()),
                    });
                }
                Action::Keep { id } => {
                    let kept = self.written.take_if(|(written, _)| *written == Id(id));
                    let changed = kept.is_some();
                    if let Some((id, ends)) = kept {
                        self.keep(id, ends);
                    }
                    reply.send(Answer::Done { changed });
                }
                Action::Signal { number } => reply.send(match &mut self.command {
                    Some(command) => {
                        command.link.session.signal(number);
                        Answer::Done { changed: true }
                    }
                    None => Answer::Refused(
                        "its guest is without hull's agent, which sends signals: hull stop or \
                         hull kill ends it"
                            .into(),
                    ),
                }),
                Action::Exec if self.waits_for_init() => self.early.add(reply),
                Action::Exec => self.admit(reply),
                // `Actions::act` hands over no other.
                _ => drop(reply),
            }
        }
        if self.stops.kill_at().is_some_and(|at| at <= Instant::now()) {
            self.kill();
        }
        if self.stops.term_at().is_some_and(|at| at <= Instant::now()) {
            self.end_by(SIGTERM);
        }
    }

    /// Take the client of a command beside the main one.
    pub(super) fn admit(&mut self, mut reply: Reply) {
        let socket = reply.files().into_iter().next();
        let paused = self.life.state().is_paused();
        let ending = self.leaving.begun();
        let admitted = match &mut self.command {
            None => Err(
                "its guest is without hull's agent, which runs commands: it was started \
                without one, or as a system of its own"
                    .into(),
            ),
            Some(_) if ending => Err("it is ending".into()),
            Some(_) if paused => Err("it is paused; hull resume lets it run again".into()),
            Some(command) => self.clients.admit(&mut command.link.session, socket),
        };
        reply.send(match admitted {
            Ok(()) => Answer::Admitted(self.surroundings()),
            Err(reason) => Answer::Refused(reason),
        });
    }

    /// What the main command has.
    fn surroundings(&self) -> Surroundings {
        let exec = exec(&self.config.machine, &[], WindowSize::default());
        let exec = exec.unwrap_or_default();
        let bytes = |text: OsString| text.into_vec();
        Surroundings {
            env: exec.env.into_iter().map(bytes).collect(),
            cwd: bytes(exec.cwd),
            user: bytes(exec.user),
            groups: exec.privileges.groups,
            capabilities: exec.privileges.capabilities,
        }
    }

    /// Answer the actions that wait for the end, and accept no more.
    pub(super) fn end_actions(&mut self) {
        self.stops.answer();
        self.events().actions().close();
    }

    /// Ask the guest to end, once.
    fn stop_in(&mut self, seconds: u32, reply: Reply) {
        let at = Instant::now() + Duration::from_secs(seconds.into());
        if self.stops.add(at, reply) != Some(true) || self.leaving.begun() {
            return;
        }
        // It is allowed in every state that the loop is in between two snapshots.
        let _ = self.life.make(Transition::Stop);
        match &mut self.command {
            Some(command) if command.link.greeted() => {
                command
                    .link
                    .session
                    .signal(self.config.machine.stop.signal());
            }
            // There is no init yet that could be asked.
            Some(_) => self.end_by(SIGTERM),
            None => lock(&self.machine.power).press_power_button(),
        }
    }

    fn kill(&mut self) {
        let runs = !self.leaving.begun() && self.events().end().is_none();
        self.stops.kill(runs);
        self.leaving
            .end_unless_begun(Ending::Guest(GuestEnd::Killed));
        self.leaving.hurry();
    }

    /// The guest's init waits and knows nothing yet of what the user wants: this is the moment for
    /// a template. Afterwards the guest is told of its devices, as one restored from the template is.
    pub(super) fn keep_template(&mut self) {
        let Start::Template(dir) = &self.config.start else {
            return;
        };
        let slots = &self.machine.devices.slots;
        let saving = self.life.make(Transition::Save).is_ok();
        let still = Still::when_idle(self.machine, self.vcpus, || slots.process());
        let link = self.drain();
        let writer = Writer::create(dir, false).map_err(SaveError::from);
        let saved =
            writer.and_then(|it| still.save(self.machine, self.config, link, it, What::Template));
        drop(still);
        if saving {
            let _ = self.life.make(Transition::Saved);
        }
        if let Err(error) = saved {
            self.stdio.say(&format!(
                "this machine is not kept as a template, so the next run boots again: {error}"
            ));
        }
        let resumed = resumed(slots.reveal());
        if let Some(command) = &mut self.command {
            command.link.session.start(Some(resumed));
        }
    }

    /// Save the machine as the snapshot `id` in `files`, which are in `dir`, or only what has changed since
    /// it was saved last; with `stop` it stays paused, and ends once the snapshot is complete.
    ///
    /// # Errors
    /// Why it was not saved.
    fn save(
        &mut self,
        dir: &Path,
        id: Id,
        files: Vec<File>,
        diff: bool,
        stop: bool,
    ) -> Result<SaveReport, SaveError> {
        // A pipe or a device would have this thread wait, or do as it does.
        let all_plain = files
            .iter()
            .all(|file| file.metadata().is_ok_and(|it| it.is_file()));
        let files = <[File; 2]>::try_from(files).ok().filter(|_| all_plain);
        let Some([memory, state]) = files else {
            return Err(SaveError::Unfit(
                "the request came without two regular files: use the hull snapshot of this machine's hull"
                    .into(),
            ));
        };
        let writer = Writer::of(Files { memory, state }, id, dir, true);
        self.life.make(Transition::Save)?;
        let saved = self.save_now(writer, diff, stop);
        let _ = self.life.make(Transition::Saved);
        saved
    }

    fn save_now(
        &mut self,
        writer: Writer,
        diff: bool,
        stop: bool,
    ) -> Result<SaveReport, SaveError> {
        // Until the snapshot is complete, the changes since the last one are not known.
        let what = What::new(diff, self.last_saved.take())?;
        let still = Still::new(self.machine, self.vcpus);
        let link = self.drain();
        let (id, saved) = still.save(self.machine, self.config, link, writer, what)?;
        self.written = Some((id, stop));
        if stop {
            // It stands still until the snapshot is complete: it could not be lost with the machine then.
            let _ = self.life.make(Transition::Pause); // allowed while it is saved
        }
        Ok(saved)
    }

    /// The snapshot `id` is complete, and the machine `ends` then, unless the user has resumed it.
    fn keep(&mut self, id: Id, ends: bool) {
        self.last_saved = Some(id);
        if ends && self.life.state().is_paused() {
            self.events().stop();
            self.leaving.end_unless_begun(Ending::Quit);
        }
    }

    /// Take what the paused guest has notified hull of, as far as the pipes hold it: that belongs to this
    /// run, and to no snapshot. The rest stays in the guest's queues and is saved with them, so that no
    /// guest can lengthen this. Returns the state of the link to its init.
    fn drain(&mut self) -> Option<SavedLink> {
        self.process_devices();
        if let Some(command) = &mut self.command
            && !self.leaving.begun()
            && let Err(fault) = command.link.drain()
        {
            self.leaving.fail(VmmError::Agent(fault));
        }
        self.move_command_events(true);
        let command = self.command.as_ref();
        command.and_then(|command| Link::save(&command.link))
    }
}
