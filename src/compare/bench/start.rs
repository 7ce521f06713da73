//! `hull bench start`: how a machine and a container start, run one command and end, side by side.

use std::path::Path;
use std::time::Duration;

use super::error::BenchError;
use super::exit::Exit;
use super::hull::{number, run_with_report};
use super::plan::{Bench, Contender, Kind, Made, Plan, Program, Samples};
use super::restore::saved_guest;
use super::resumed::SavedGuest;
use crate::compare::figure::Better::Less;
use crate::compare::figure::Unit::{Microseconds, Milliseconds};
use crate::compare::measure::error::RunError;
use crate::compare::measure::schedule::run_time;
use crate::compare::measure::stop::pause;
use crate::compare::measure::timed::run;
use crate::compare::subject::guest::TYPED;
use crate::compare::subject::hull::command;
use crate::compare::subject::monitor::Monitored;
use crate::compare::subject::{Runtime, Subject, words};

const COMMAND: [&str; 3] = ["/bin/busybox", "echo", "hi"];
const PRINTED: &[u8] = b"hi\n";
/// The points of a run in hull's report, from hull's main.
const COLD: [&str; 6] = [
    "first_instruction_ms",
    "kernel_output_ms",
    "initcalls_ms",
    "init_ms",
    "command_end_ms",
    "end_ms",
];
const WARM: [&str; 4] = [
    "first_instruction_ms",
    "command_ms",
    "command_end_ms",
    "end_ms",
];
/// Figures of [`PLAN`] before those of hull alone.
const SHARED: usize = 8;
/// A monitor or a runtime has left the CPU when this much time has passed since its end.
const SETTLE_TIME: Duration = Duration::from_millis(60);

pub static PLAN: Plan = Plan {
    topic: "start",
    method: "Same guest: hull's kernel, its initial RAM disk with an init that runs `/bin/busybox echo hi`, \
             1 vCPU, 128 MiB and a quiet serial console, under every monitor. Echo: the same command by \
             `hull run`, from a template, and by a container runtime. Cold echo: `hull run --cold`. The clock starts \
             before exec and stops at the command's output, and when the program has ended. Restored guest: \
             an idle guest, saved before each turn; the clock stops when its terminal has echoed the input. \
             All tasks: for how long tasks of the whole machine ran, kernel threads too, from exec to 60 ms \
             after the end, by /proc/schedstat; with --steady only, since elsewhere other programs run. The points of \
             an echo are those of hull's --json, since its main. Round trip: as in `hull bench exit`.",
    figures: &[
        ("same guest: exec to its output", Milliseconds, Less),
        ("same guest: exec to the end", Milliseconds, Less),
        ("same guest: all tasks", Milliseconds, Less),
        ("echo: exec to its output", Milliseconds, Less),
        ("echo: exec to the end", Milliseconds, Less),
        ("echo: all tasks", Milliseconds, Less),
        ("restored guest: exec to its answer", Milliseconds, Less),
        ("restored guest: all tasks", Milliseconds, Less),
        ("cold echo: exec to its output", Milliseconds, Less),
        ("cold echo: exec to the end", Milliseconds, Less),
        ("cold echo: all tasks", Milliseconds, Less),
        ("cold echo, to the first instruction", Milliseconds, Less),
        ("cold echo, to the kernel's output", Milliseconds, Less),
        ("cold echo, to the init calls", Milliseconds, Less),
        ("cold echo, to init", Milliseconds, Less),
        ("cold echo, to the command's end", Milliseconds, Less),
        ("cold echo, to hull's end", Milliseconds, Less),
        ("echo, to the first instruction", Milliseconds, Less),
        ("echo, to the command", Milliseconds, Less),
        ("echo, to the command's end", Milliseconds, Less),
        ("echo, to hull's end", Milliseconds, Less),
        ("round trip of an OUT", Microseconds, Less),
    ],
    warms_up: true,
    contender,
};

fn contender<'a>(bench: &'a Bench, program: &'a Program) -> Made<'a> {
    if program.kind == Kind::Container {
        let path = program.path.clone();
        return Ok(Box::new(Container {
            bench,
            runtime: Runtime::new(&bench.stage, &program.name, path),
            runs: 0,
        }));
    }
    Ok(Box::new(Start {
        bench,
        program,
        same_guest: bench.subject(program)?,
        saved: saved_guest(bench, program).ok(),
        exit: program.is_hull().then(|| Exit::new(bench, program)),
        runs: 0,
    }))
}

/// A monitor.
struct Start<'a> {
    bench: &'a Bench,
    program: &'a Program,
    same_guest: Monitored<'a>,
    saved: Option<Box<dyn SavedGuest + 'a>>,
    exit: Option<Exit<'a>>,
    runs: usize,
}

impl Contender for Start<'_> {
    fn prepare(&mut self) -> Result<(), BenchError> {
        self.same_guest.prepare()?;
        self.exit.as_mut().map_or(Ok(()), Contender::prepare)
    }

    fn subject(&self) -> Option<&dyn Subject> {
        Some(&self.same_guest)
    }

    fn turn(&mut self) -> Result<Samples, BenchError> {
        self.runs += 1;
        let id = format!("start-{}-{}", std::process::id(), self.runs);
        let mut samples = echo(self.bench, &mut self.same_guest, id)?;
        samples.extend(match self.program.is_hull() {
            true => self.hulls_echo(&["run"])?,
            false => vec![None; 3],
        });
        samples.extend(self.restored()?);
        let Some(exit) = &self.exit else {
            return Ok(samples);
        };
        samples.extend(self.hulls_echo(&["run", "--cold"])?);
        samples.extend(self.points(&["run", "--cold"], &COLD)?);
        samples.extend(self.points(&["run"], &WARM)?);
        samples.push(Some(exit.round_trip(&["run", "--cold"])?));
        Ok(samples)
    }
}

impl Start<'_> {
    /// hull's own guest, booted or from a template.
    fn hulls_echo(&self, run_words: &[&str]) -> Result<Samples, BenchError> {
        let mut hull = command(&self.bench.stage, &self.program.path, run_words);
        hull.args(["--memory", "128M", "--"]).args(COMMAND);
        let (timed, tasks) = counted(self.bench, || Ok(run(&mut hull, self.bench.timeout)?))?;
        Ok(vec![ms(timed.first_byte), ms(Some(timed.end)), ms(tasks)])
    }

    fn points(&self, run_words: &[&str], points: &[&str]) -> Result<Samples, BenchError> {
        let words = [run_words, &["--memory", "128M"]].concat();
        let rest: Vec<&Path> = ["--"].iter().chain(&COMMAND).map(Path::new).collect();
        let (report, _) = run_with_report(self.bench, self.program, &words, &rest)?;
        let all = points.iter().map(|point| number(&report, point).map(Some));
        all.collect()
    }

    fn restored(&mut self) -> Result<Samples, BenchError> {
        const NAME: &str = "again";
        let Some(saved) = &mut self.saved else {
            return Ok(vec![None; 2]);
        };
        // One that was saved during a tick of its timer answers later.
        saved.save()?;
        let (answer, tasks) = counted(self.bench, || {
            let mut guest = saved.restore(NAME)?;
            let answer = guest.running.until(TYPED)?;
            saved.first_run(NAME, guest)?;
            Ok(answer)
        })?;
        Ok(vec![ms(Some(answer)), ms(tasks)])
    }
}

/// A container runtime, which runs the command alone.
struct Container<'a> {
    bench: &'a Bench,
    runtime: Runtime<'a>,
    runs: usize,
}

impl Contender for Container<'_> {
    fn prepare(&mut self) -> Result<(), BenchError> {
        Ok(self.runtime.prepare()?)
    }

    fn subject(&self) -> Option<&dyn Subject> {
        Some(&self.runtime)
    }

    fn turn(&mut self) -> Result<Samples, BenchError> {
        self.runs += 1;
        let id = format!("start-{}-{}", std::process::id(), self.runs);
        let mut samples = vec![None; 3];
        samples.extend(echo(self.bench, &mut self.runtime, id)?);
        samples.resize(SHARED, None);
        Ok(samples)
    }
}

/// Milliseconds to the output of `COMMAND`, to the end, and of all tasks.
fn echo(bench: &Bench, subject: &mut dyn Subject, id: String) -> Result<Samples, BenchError> {
    let mut command = subject.command(&words(&COMMAND), &id)?;
    let ran = counted(bench, || Ok(run(&mut command, bench.timeout)?));
    subject.clear(&id);
    let (mut timed, tasks) = ran?;
    subject.judge(&mut timed.output).map_err(RunError::Judged)?;
    if timed.output != PRINTED {
        let output = String::from_utf8_lossy(&timed.output).into();
        return Err(RunError::Output(output).into());
    }
    Ok(vec![ms(timed.first_byte), ms(Some(timed.end)), ms(tasks)])
}

/// Does `work`, and says for how long tasks ran for it, in a steady lab.
fn counted<T>(
    bench: &Bench,
    work: impl FnOnce() -> Result<T, BenchError>,
) -> Result<(T, Option<Duration>), BenchError> {
    if !bench.steady {
        return Ok((work()?, None));
    }
    pause(SETTLE_TIME)?;
    let before = run_time()?;
    let done = work()?;
    pause(SETTLE_TIME)?;
    Ok((done, Some(run_time()?.saturating_sub(before))))
}

fn ms(time: Option<Duration>) -> Option<f64> {
    time.map(|time| time.as_secs_f64() * 1e3)
}
