//! What a workload tries.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use super::{Outcome, Probe};
use crate::compare::measure::timed::RunError;
use crate::compare::turns::{Turns, words};

/// `ioprio_get`, which the applet ionice makes (`<asm/unistd_64.h>`).
const RARE_CALL: u64 = 252;
/// What the workload takes of memory: more than a machine has.
const TAKEN_MIB: u64 = 256;
/// For the script, which does more than any workload.
const PATIENCE: Duration = Duration::from_secs(180);
/// The script says these, `key=value`, a line each.
///
/// Hardly anything of it is a process of its own, which takes a guest of a software KVM a second.
const SCRIPT: &str = r#"
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

/// Have subject `index` try everything.
pub fn probe(turns: &mut Turns, index: usize) -> Vec<Probe> {
    let mut probes = by_script(turns, index);
    probes.push((
        "its system calls reach the host's kernel",
        calls(turns, index),
    ));
    probes.push(("takes 256 MiB of memory", memory(turns, index)));
    probes
}

/// The host, as the script looks for it.
struct Host {
    kernel: String,
    started: String,
    secret: String,
    port: TcpListener,
}

fn by_script(turns: &mut Turns, index: usize) -> Vec<Probe> {
    let names = [
        "sees the host's kernel",
        "sees a process of the host",
        "signals a process of the host",
        "reads a file of the host",
        "connects to a port of the host's loopback",
        "opens /proc/sys of the host for writing",
        "reads the host's kernel log",
        "reads the host's physical memory",
    ];
    let said = host(turns).and_then(|host| {
        let script = script(turns, &host)?;
        let limits = turns.limits;
        turns.limits.time = limits.time.max(PATIENCE);
        let timed = turns.once(index, &words(&["/bin/busybox", "sh", "-c", &script]));
        turns.limits = limits;
        let output = timed.map_err(|error| format!("it {error}"))?.output;
        let said = String::from_utf8_lossy(&output).into_owned();
        match said.contains("end=yes") {
            true => Ok((host, said)),
            false => Err("its script did not come to an end".into()),
        }
    });
    match said {
        Ok((host, said)) => names.into_iter().zip(outcomes(&host, &said)).collect(),
        Err(why) => {
            let untried = |name| (name, Outcome::Untried(why.clone()));
            names.into_iter().map(untried).collect()
        }
    }
}

fn host(turns: &Turns) -> Result<Host, String> {
    let system = rustix::system::uname();
    let stat = fs::read_to_string("/proc/self/stat").map_err(|error| error.to_string())?;
    // The start time is field 22; the name, in which anything may be, ends with the last ')'.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let started = fields.split_whitespace().nth(19).unwrap_or_default();
    let secret = format!("{:x}", std::process::id() as u64 * 0x9e37_79b9);
    let file = turns.stage.path("secret");
    fs::write(&file, format!("{secret}\n")).map_err(|error| error.to_string())?;
    let port = TcpListener::bind(("127.0.0.1", 0)).map_err(|error| error.to_string())?;
    port.set_nonblocking(true)
        .map_err(|error| error.to_string())?;
    Ok(Host {
        kernel: format!(
            "{} {}",
            system.release().to_string_lossy(),
            system.version().to_string_lossy()
        ),
        started: started.into(),
        secret,
        port,
    })
}

fn script(turns: &Turns, host: &Host) -> Result<String, String> {
    let port = host
        .port
        .local_addr()
        .map_err(|error| error.to_string())?
        .port();
    let script = SCRIPT
        .replace("PID", &std::process::id().to_string())
        .replace("FILE", &turns.stage.path("secret").display().to_string())
        .replace("PORT", &port.to_string());
    // Applets by their names, wherever the links to busybox are; what fails is expected to.
    Ok(format!(
        "PATH=/bin:/sbin:/usr/bin:/usr/sbin; exec 2>/dev/null\n{script}"
    ))
}

/// In the order of the names.
fn outcomes(host: &Host, said: &str) -> [Outcome; 8] {
    let value = |key: &str| {
        let mut lines = said.lines().filter_map(|line| line.split_once('='));
        lines
            .find(|(its, _)| *its == key)
            .map_or("", |(_, value)| value.trim())
    };
    let probe = |reached: bool, yes: &str, no: &str| match reached {
        true => Outcome::Failed(yes.into()),
        false => Outcome::Passed(no.into()),
    };
    let shared = value("kernel") == host.kernel;
    let seen = !host.started.is_empty() && value("process") == host.started;
    let processes = value("processes");
    // Nobody else knows the port.
    let connected = host.port.accept().is_ok();
    let written = value("written");
    let writes = !written.is_empty() && !written.starts_with("0 ");
    // Of a kernel of its own it may read and write what it likes.
    let own = |what: &str| format!("{what} of its own kernel");
    [
        probe(
            shared,
            &format!("yes: {}", value("kernel")),
            &format!("no: {}", value("kernel")),
        ),
        probe(
            seen,
            &format!("yes, among {processes}"),
            &format!("no: {processes} processes are there"),
        ),
        probe(seen && value("signal") == "yes", "yes", "no"),
        probe(value("file") == host.secret, "yes", "no"),
        probe(connected, "yes", "no"),
        match (writes, shared) {
            (true, true) => Outcome::Failed(format!("yes: {written}")),
            (true, false) => Outcome::Passed(own(&format!("no: {written},"))),
            (false, _) => Outcome::Passed("no".into()),
        },
        log(value("log") == "yes", shared, &own("no: the log")),
        log(value("mem") == "yes", shared, &own("no: memory")),
    ]
}

fn log(read: bool, shared: bool, own: &str) -> Outcome {
    match (read, shared) {
        (true, true) => Outcome::Failed("yes".into()),
        (true, false) => Outcome::Passed(own.into()),
        (false, _) => Outcome::Passed("no".into()),
    }
}

/// Whether the host's kernel sees a system call of the workload.
fn calls(turns: &mut Turns, index: usize) -> Outcome {
    match turns.traced(index, &words(&["/bin/busybox", "ionice"])) {
        Ok(calls) => match calls.by_number.contains_key(&RARE_CALL) {
            true => Outcome::Failed("yes, each as it is".into()),
            false => Outcome::Passed(format!(
                "no; its monitor makes {} different ones",
                calls.different()
            )),
        },
        Err(error) => Outcome::Untried(error.to_string()),
    }
}

/// Whether it gets more memory than a machine is given.
fn memory(turns: &mut Turns, index: usize) -> Outcome {
    let size = format!("bs={TAKEN_MIB}M");
    let take = [
        "/bin/busybox",
        "dd",
        "if=/dev/zero",
        "of=/dev/null",
        &size,
        "count=1",
    ];
    let limits = turns.limits;
    turns.limits.time = limits.time.min(Duration::from_secs(60));
    let taken = turns.once(index, &words(&take));
    turns.limits = limits;
    match taken {
        Ok(_) => Outcome::Failed("yes: nothing limits it".into()),
        Err(RunError::Failed { .. } | RunError::Judged(_)) => Outcome::Passed("no".into()),
        Err(error) => Outcome::Untried(format!("it {error}")),
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
    fn what_is_said_decides() {
        let open = "kernel=6.1 #1\nprocesses=90\nprocess=4711\nsignal=yes\nfile=abc\n\
                    written=3 of 900\nlog=yes\nmem=yes\nend=yes\n";
        let host_1 = host();
        let _caller = std::net::TcpStream::connect(host_1.port.local_addr().expect("bound"));
        let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
        assert!(outcomes(&host_1, open).iter().all(failed));
        let shut =
            "kernel=6.12 #9\nprocesses=9\nprocess=\nfile=\nwritten=8 of 8\nlog=yes\nend=yes\n";
        let passed = outcomes(&host(), shut);
        assert!(!passed.iter().any(failed), "{passed:?}");
        assert_eq!(
            passed[5],
            Outcome::Passed("no: 8 of 8, of its own kernel".into())
        );
    }
}
