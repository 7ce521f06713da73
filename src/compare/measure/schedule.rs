//! How long tasks of this machine have run, by its scheduler.

use std::fs;
use std::io;
use std::time::Duration;

/// Time that all tasks, kernel threads too, have run on all CPUs since the boot: field 7 of the `cpu` lines
/// (Documentation/scheduler/sched-stats.rst). The part of a task that runs now counts when it leaves its CPU.
///
/// # Errors
/// A kernel without CONFIG_SCHEDSTATS, or a file of another form.
pub fn run_time() -> io::Result<Duration> {
    parse(&fs::read_to_string("/proc/schedstat")?)
        .ok_or_else(|| io::Error::other("/proc/schedstat has another form"))
}

fn parse(text: &str) -> Option<Duration> {
    const RUN_TIME: usize = 7;
    let cpus = text.lines().filter(|line| line.starts_with("cpu"));
    let times = cpus.map(|line| {
        line.split_ascii_whitespace()
            .nth(RUN_TIME)?
            .parse::<u64>()
            .ok()
    });
    let times: Vec<u64> = times.collect::<Option<_>>()?;
    (!times.is_empty()).then(|| Duration::from_nanos(times.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_of_all_cpus_are_summed() {
        let text = "version 15\ntimestamp 4294937296\ncpu0 0 0 0 0 0 0 1500 20 9\n\
                    domain0 3 0 0\ncpu1 0 0 0 0 0 0 500 1 1\n";
        assert_eq!(parse(text), Some(Duration::from_nanos(2000)));
        assert_eq!(parse("version 15\n"), None);
        assert_eq!(parse("cpu0 1 2\n"), None);
    }
}
