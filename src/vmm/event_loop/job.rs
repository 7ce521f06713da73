//! hull as a job of a shell: Ctrl-Z, fg and bg.

use rustix::process::{Signal, getpid, kill_current_process_group, kill_process};
use signal_hook::consts::SIGTSTP;

use super::EventLoop;

impl EventLoop<'_> {
    /// Ctrl-Z was typed in raw mode: do what the terminal would do otherwise, which stops the whole job.
    pub(super) fn suspend_job(&mut self) {
        if self.machine.own.ancestors.have_job_control() {
            self.stdio.give_terminal_back();
            let _ = kill_current_process_group(Signal::TSTP);
            self.suspend();
        }
    }

    /// Stop this process: the vCPUs park, and the shell gets the terminal. Where no shell could continue
    /// it, nothing happens.
    pub(super) fn suspend(&mut self) {
        if !self.machine.own.ancestors.have_job_control() {
            return;
        }
        self.signals.forget(SIGTSTP);
        let held = self.vcpus.pause();
        held.wait();
        self.stdio.give_terminal_back();
        let _ = kill_process(getpid(), Signal::STOP);
        // Here it goes on.
        held.tell_guest();
        drop(held);
        self.follow_foreground();
    }

    /// Take the terminal in its foreground, and let go of it in the background.
    pub(super) fn follow_foreground(&mut self) {
        if self.stdio.follow_foreground() {
            self.resize();
        }
    }
}
