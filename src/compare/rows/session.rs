//! What all rows of a comparison share. Every instance that a row uses gets its ID, its timeout and its end
//! here.

use std::path::PathBuf;
use std::time::Duration;

use crate::compare::figure::Figure;
use crate::compare::measure::calls::{self, Calls};
use crate::compare::measure::error::RunError;
use crate::compare::measure::timed::{self, Timed};
use crate::compare::report::comparison::{Verdict, Workload};
use crate::compare::subject::{self, IDLE, Instance, Stage, Subject, UP, second, words};
use crate::compare::turns::{Each, Runs, Turns};

const COUNT: u32 = 20_000;

pub type Subjects<'a> = Turns<'a, Box<dyn Subject + 'a>>;

pub struct Measured {
    pub method: String,
    pub figures: Vec<Figure>,
    pub verdict: Verdict,
}

pub struct Session<'a> {
    pub stage: &'a Stage,
    pub timeout: Duration,
    /// The commands whose start is measured. The first is also the warm-up.
    pub workloads: Vec<Workload>,
    pub second_kernel: Option<PathBuf>,
    /// The results of commands that all subjects have already run in turns.
    results: Vec<(Vec<String>, Each<Runs<Timed>>)>,
    instances: usize,
}

impl<'a> Session<'a> {
    /// A session with the default workloads, and the second kernel of /boot.
    pub fn new(stage: &'a Stage, timeout: Duration) -> Self {
        Self {
            stage,
            timeout,
            workloads: default_workloads(),
            second_kernel: second::newest("/boot".as_ref()),
            results: Vec::new(),
            instances: 0,
        }
    }

    /// Prepares `subject` and runs the first workload twice, which makes hull's template and brings all files
    /// into memory.
    pub fn warm_up(&mut self, subject: &mut dyn Subject) -> Result<(), String> {
        subject.prepare().map_err(|error| error.to_string())?;
        let words = self.workloads[0].words.clone();
        (0..2).try_for_each(|_| self.once(subject, &words).map(drop))
    }

    /// Runs `words` once. The text of an error begins with "it".
    pub fn once<S: AsRef<str>>(
        &mut self,
        subject: &mut dyn Subject,
        words: &[S],
    ) -> Result<Timed, String> {
        let timed = self.once_within(subject, words, self.timeout);
        timed.map_err(|error| format!("it {error}"))
    }

    pub fn once_within<S: AsRef<str>>(
        &mut self,
        subject: &mut dyn Subject,
        command: &[S],
        timeout: Duration,
    ) -> Result<Timed, RunError> {
        subject::run(subject, &words(command), &self.next_id(), timeout)
    }

    /// Has all subjects run a workload in turns. A workload is run only once in a session.
    pub fn in_turns(&mut self, turns: &mut Subjects, workload: &Workload) -> Each<Runs<Timed>> {
        let Workload { name, words } = workload;
        if let Some((_, results)) = self.results.iter().find(|(known, _)| known == words) {
            return results.clone();
        }
        let results = turns.runs(name, |subject| self.once(&mut **subject, words));
        self.results.push((words.clone(), results.clone()));
        results
    }

    /// Starts an idle instance: a shell that says "up" and becomes a sleep. The text of an error begins with
    /// "it".
    pub fn idle(&mut self, subject: &mut dyn Subject) -> Result<Instance, String> {
        let id = self.next_id();
        let up = subject::start(subject, &words(&IDLE), UP, id, self.timeout);
        up.map_err(|error| match error {
            RunError::Hung(limit, _) => format!("it was not up within {} s", limit.as_secs()),
            error => format!("it {error}"),
        })
    }

    pub fn count_calls<S: AsRef<str>>(
        &mut self,
        subject: &mut dyn Subject,
        command: &[S],
    ) -> Result<Calls, RunError> {
        let id = self.next_id();
        let command = subject.command(&words(command), &id);
        let command = command.map_err(RunError::Trace);
        let calls = command.and_then(|command| calls::count(&command, self.timeout));
        subject.clear(&id);
        calls
    }

    /// Runs `words` on the second kernel; `None` if there is none.
    pub fn on_second_kernel(&mut self, command: &[&str]) -> Option<Result<Timed, RunError>> {
        let id = self.next_id();
        let kernel = self.second_kernel.as_ref()?;
        let command = second::command(kernel, self.stage, &words(command), &id);
        let command = command.map_err(RunError::Start);
        Some(command.and_then(|mut command| timed::run(&mut command, self.timeout)))
    }

    fn next_id(&mut self) -> String {
        self.instances += 1;
        format!("hull-{}-{}", std::process::id(), self.instances)
    }
}

fn default_workloads() -> Vec<Workload> {
    let workload = |name: &str, command: &[&str]| Workload {
        name: name.into(),
        words: words(command),
    };
    let counting = format!("i=0; while [ $i -lt {COUNT} ]; do i=$((i+1)); done; echo done");
    // No more than 2 MiB: a software KVM takes milliseconds for each page of a guest.
    let touching = "dd if=/dev/zero of=/dev/null bs=2M count=1 2>&1";
    vec![
        workload("echo", &["/bin/busybox", "echo", "hi"]),
        workload("CPU loop", &["/bin/busybox", "sh", "-c", &counting]),
        workload("2 MiB touched", &["/bin/busybox", "sh", "-c", touching]),
    ]
}
