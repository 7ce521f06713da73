//! What a workload tries.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use crate::compare::figure::Cell;
use crate::compare::measure::error::RunError;
use crate::compare::rows::session::Session;
use crate::compare::rows::system::host_kernel;
use crate::compare::subject::Subject;

/// The system call of the applet ionice.
const RARE_CALL: u64 = libc::SYS_ioprio_get as u64;
/// Memory that the workload takes, more than a machine has.
const TAKEN_MIB: u64 = 256;
/// The script runs longer than any other workload.
const MIN_SCRIPT_TIMEOUT: Duration = Duration::from_secs(180);
const MAX_MEMORY_TIMEOUT: Duration = Duration::from_secs(60);
/// Prints lines of the form `key=value`. Commands that fail are expected to.
///
/// It avoids new processes, which take a guest of a software KVM a second each.
const SCRIPT: &str = r#"PATH=/bin:/sbin:/usr/bin:/usr/sbin; exec 2>/dev/null
echo "kernel=$(uname -rv)"
set -- /proc/[0-9]*
echo "processes=$#"
read stat </proc/PID/stat && set -- ${stat##*)} && shift 19 && echo "process=$1"
kill -0 PID && echo signal=yes
read secret <FILE && echo "file=$secret"
timeout 3 nc -w 2 127.0.0.1 PORT </dev/null
written=0 all=0
for file in $(find /proc/sys -type f); do
    all=$((all + 1))
    { true >>$file; } && written=$((written + 1))
done
echo "written=$written of $all"
[ -n "$(dmesg | head -c 1)" ] && echo log=yes
[ -n "$(head -c 64 /dev/mem)" ] && echo mem=yes
echo end=yes
"#;

const SCRIPT_PROBES: [&str; 8] = [
    "sees the host's kernel",
    "sees a process of the host",
    "signals a process of the host",
    "reads a file of the host",
    "connects to a port of the host's loopback",
    "opens /proc/sys of the host for writing",
    "reads the host's kernel log",
    "reads the host's physical memory",
];

pub fn probe(subject: &mut dyn Subject, session: &mut Session) -> Vec<(&'static str, Cell)> {
    let outcomes = run_script(subject, session)
        .unwrap_or_else(|error| std::array::from_fn(|_| Cell::missing(error.clone())));
    let mut probes: Vec<_> = SCRIPT_PROBES.into_iter().zip(outcomes).collect();
    let calls = calls(subject, session);
    probes.push(("its system calls reach the host's kernel", calls));
    probes.push(("takes 256 MiB of memory", memory(subject, session)));
    probes
}

struct Host {
    kernel: String,
    /// The start time of this process, which is field 22 of its stat.
    started: String,
    secret: String,
    /// A listener on a port that only the script knows.
    port: TcpListener,
}

fn run_script(subject: &mut dyn Subject, session: &mut Session) -> Result<[Cell; 8], String> {
    let file = session.stage.path("secret").display().to_string();
    let host = Host::new(&file).map_err(|error| error.to_string())?;
    let port = host.port.local_addr().map_err(|error| error.to_string())?;
    let script = SCRIPT
        .replace("PID", &std::process::id().to_string())
        .replace("FILE", &file)
        .replace("PORT", &port.port().to_string());
    let timeout = session.timeout.max(MIN_SCRIPT_TIMEOUT);
    let words = ["/bin/busybox", "sh", "-c", &script];
    let timed = session.once_within(subject, &words, timeout);
    let output = timed.map_err(|error| format!("it {error}"))?.output;
    let printed = String::from_utf8_lossy(&output);
    if !printed.contains("end=yes") {
        return Err("its script did not reach its end".into());
    }
    Ok(host.outcomes(&printed))
}

impl Host {
    fn new(file: &str) -> std::io::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        // The name before the last ')' may contain anything.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let started = fields.split_whitespace().nth(19).unwrap_or_default();
        let secret = format!("{:x}", u64::from(std::process::id()) * 0x9e37_79b9);
        fs::write(file, format!("{secret}\n"))?;
        let port = TcpListener::bind(("127.0.0.1", 0))?;
        port.set_nonblocking(true)?;
        Ok(Self {
            kernel: host_kernel(),
            started: started.into(),
            secret,
            port,
        })
    }

    /// In the order of [`SCRIPT_PROBES`].
    fn outcomes(&self, printed: &str) -> [Cell; 8] {
        let value = |key: &str| {
            let mut lines = printed.lines().filter_map(|line| line.split_once('='));
            let line = lines.find(|(its_key, _)| *its_key == key);
            line.map_or("", |(_, value)| value.trim())
        };
        let (kernel, processes) = (value("kernel"), value("processes"));
        let shared = kernel == self.kernel;
        let seen = !self.started.is_empty() && value("process") == self.started;
        let written = value("written");
        let writes = !written.is_empty() && !written.starts_with("0 ");
        // A workload may do with a kernel of its own what it likes.
        let of_kernel = |done: bool, yes: String, own: String| match (done, shared) {
            (true, true) => Cell::probe(false, yes),
            (true, false) => Cell::probe(true, format!("no: {own} of its own kernel")),
            (false, _) => Cell::probe(true, "no"),
        };
        [
            reached(shared, format!("yes: {kernel}"), format!("no: {kernel}")),
            reached(
                seen,
                format!("yes, among {processes}"),
                format!("no: {processes} processes are visible"),
            ),
            reached(seen && value("signal") == "yes", "yes", "no"),
            reached(value("file") == self.secret, "yes", "no"),
            reached(self.port.accept().is_ok(), "yes", "no"),
            of_kernel(writes, format!("yes: {written}"), format!("{written},")),
            of_kernel(value("log") == "yes", "yes".into(), "the log".into()),
            of_kernel(value("mem") == "yes", "yes".into(), "memory".into()),
        ]
    }
}

/// A probe that fails if the workload reached the host.
fn reached(reached: bool, yes: impl Into<String>, no: impl Into<String>) -> Cell {
    Cell::probe(!reached, if reached { yes.into() } else { no.into() })
}

/// Whether the host's kernel sees a system call of the workload.
fn calls(subject: &mut dyn Subject, session: &mut Session) -> Cell {
    match session.count_calls(subject, &["/bin/busybox", "ionice"]) {
        Ok(calls) => reached(
            calls.by_number.contains_key(&RARE_CALL),
            "yes, unchanged",
            format!("no; its monitor makes {} distinct ones", calls.distinct()),
        ),
        Err(error) => Cell::missing(format!("it {error}")),
    }
}

fn memory(subject: &mut dyn Subject, session: &mut Session) -> Cell {
    let size = format!("bs={TAKEN_MIB}M");
    let dd = [
        "/bin/busybox",
        "dd",
        "if=/dev/zero",
        "of=/dev/null",
        &size,
        "count=1",
    ];
    let timeout = session.timeout.min(MAX_MEMORY_TIMEOUT);
    match session.once_within(subject, &dd, timeout) {
        Ok(_) => Cell::probe(false, "yes: there is no limit"),
        Err(RunError::Failed(..) | RunError::Judged(_)) => Cell::probe(true, "no"),
        Err(error) => Cell::missing(format!("it {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        let port = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        port.set_nonblocking(true).expect("set");
        Host {
            kernel: "6.1 #1".into(),
            started: "4711".into(),
            secret: "abc".into(),
            port,
        }
    }

    #[test]
    fn the_script_decides_what_was_reached() {
        let open = "kernel=6.1 #1\nprocesses=90\nprocess=4711\nsignal=yes\nfile=abc\n\
                    written=3 of 900\nlog=yes\nmem=yes\nend=yes\n";
        let reached = host();
        let _caller = std::net::TcpStream::connect(reached.port.local_addr().expect("bound"));
        let failed = |outcome: &Cell| outcome.passed == Some(false);
        assert!(reached.outcomes(open).iter().all(failed));
        let shut =
            "kernel=6.12 #9\nprocesses=9\nprocess=\nfile=\nwritten=8 of 8\nlog=yes\nend=yes\n";
        let passed = host().outcomes(shut);
        assert!(!passed.iter().any(failed), "{passed:?}");
        let own = "no: 8 of 8, of its own kernel";
        assert_eq!(passed[5], Cell::probe(true, own));
    }
}
