//! The machine is saved: what is on its way through the event loop is shown before.

use std::path::Path;

use super::{Ending, EventLoop};
use crate::control::Saved;
use crate::vmm::Start;
use crate::vmm::link::Link;
use crate::vmm::pipe::Pipe;
use crate::vmm::saved::resumed;
use crate::vmm::snapshot::{SaveError, Still, What};

impl EventLoop<'_> {
    /// The guest's init waits, and knows nothing yet of what the user wants: that is the moment for
    /// a template. Afterwards the guest is told of the devices, as one that comes of the template.
    pub(super) fn keep_template(&mut self) {
        let Start::Template(dir) = &self.config.start else {
            return;
        };
        let windows = self.windows;
        let still = Still::when_idle(self.machine, self.vcpus, || windows.process());
        self.drain();
        let link = self.link.as_ref().and_then(Link::save);
        let saved = still.save(self.machine, self.config, link, dir, What::Template);
        drop(still);
        if let Err(error) = saved {
            self.say(&format!(
                "this machine is not kept as a template, so the next run boots again: {error}"
            ));
        }
        let resumed = resumed(windows.reveal());
        if let Some(link) = &mut self.link {
            link.session.start(Some(resumed));
        }
    }

    /// Save the machine in `dir` for good, or only what has changed since it was saved last; `stop` it
    /// then.
    ///
    /// # Errors
    /// Why it was not saved.
    pub(super) fn save(&mut self, dir: &Path, diff: bool, stop: bool) -> Result<Saved, SaveError> {
        // Whatever comes of it, what has changed since the last one is known no more if it fails.
        let what = match (diff, self.last_saved.take()) {
            (false, _) => What::Whole,
            (true, Some(last)) => What::ChangesSince(last),
            (true, None) => {
                return Err(SaveError::Unfit(
                    "there is no snapshot of this run that it could be a difference to; take a \
                     whole one first, without --diff"
                        .into(),
                ));
            }
        };
        let still = Still::new(self.machine, self.vcpus);
        self.drain();
        let link = self.link.as_ref().and_then(Link::save);
        let (id, saved) = still.save(self.machine, self.config, link, dir, what)?;
        self.last_saved = Some(id);
        if stop {
            // Before the vCPUs may go on.
            self.events.stop();
            self.ending.get_or_insert(Ending::Quit);
        }
        Ok(saved)
    }

    /// Take all that the stopped guest has written: it is this run's to show, and in no snapshot.
    fn drain(&mut self) {
        self.drains = true;
        loop {
            self.windows.process();
            if let Some(vsock) = self.vsock {
                vsock.process();
            }
            self.move_consoles();
            self.receive();
            self.move_link_events();
            let consoles = self.consoles.iter().all(Pipe::is_empty);
            let link = self.link.as_ref();
            if consoles && (self.ending.is_some() || !link.is_some_and(Link::has_more)) {
                break;
            }
        }
        self.drains = false;
    }
}
