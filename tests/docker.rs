//! hull beside a real docker: the same arguments behind the verb, and what both answer. Where hull answers
//! otherwise, docs/images.md says so, and here is what.

#[path = "docker/both.rs"]
mod both;
#[path = "docker/daemon.rs"]
mod daemon;
#[path = "images/layout.rs"]
mod layout;
mod machine;

use std::fs;
use std::path::Path;
use std::process::Command;

use both::Both;
use daemon::Daemon;
use machine::user::wait_until;
use machine::{Finished, kvm};
use serde_json::Value;

/// hull's own failures; docker's have [`DOCKERS_OWN`] but for run.
const OWN: i32 = 125;
const DOCKERS_OWN: i32 = 1;

#[test]
fn hull_answers_as_docker_does() {
    if !kvm("docker") {
        return;
    }
    let daemon = match Daemon::start() {
        Ok(daemon) => daemon,
        Err(why) => return println!("skipped: docker: {why}"),
    };
    let both = Both::start(daemon);
    // Each has a folder with the same files.
    for of in ["docker", "hull"] {
        files(&both.at(of));
    }
    fs::create_dir(both.at("run")).expect("made");
    runs(&both);
    refused_runs(&both);
    let script = "trap 'exit 3' TERM; echo out; sleep 0.2; echo err >&2; sleep 0.2; echo two; sleep 1000 & wait";
    let start = ["run", "-d", "--name", "up", "IMAGE", "sh", "-c", script];
    assert_eq!(both.docker(&start, b"").status, Some(0));
    both.hull(&start, b"").assert(0, "up\n", "");
    logs(&both);
    executes(&both);
    copies(&both);
    looked_at(&both);
    names(&both);
    ends(&both);
    kept_running(&both);
}

fn files(folder: &Path) {
    fs::create_dir_all(folder.join("site/sub")).expect("made");
    fs::write(folder.join("site/sub/file"), "data\n").expect("written");
    fs::write(
        folder.join("variables"),
        "# no\n\nB=file\nFILE= x y\nGIVEN\nNONE\n",
    )
    .expect("written");
    std::os::unix::fs::symlink("sub/file", folder.join("site/link")).expect("made");
    let fifo = rustix::fs::FileType::Fifo;
    let at = folder.join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, at, fifo, 0o644.into(), 0).expect("made");
}

fn runs(both: &Both) {
    let script =
        "env | grep -v HOSTNAME | sort; id; pwd; hostname; stat -f -c %b /x; echo err >&2; exit 7";
    let line = [
        &[
            "run",
            "--rm",
            "-e",
            "A=user",
            "-e",
            "C",
            "-e",
            "GIVEN",
            "--env-file",
            "variables",
        ][..],
        &[
            "-w",
            "/new/place",
            "-u",
            "web:more",
            "--hostname",
            "box",
            "--tmpfs",
            "/x:size=1m",
        ],
        &["--entrypoint", "", "IMAGE", "sh", "-c", script],
    ];
    let (status, text) = both.same_with(&line.concat(), b"");
    assert_eq!(status, 7);
    for meant in [
        "A=user\nB=file\nFILE= x y\nGIVEN=by the host\nHOME=/home/web\n",
        "\nbox\n256\n",
    ] {
        assert!(text.contains(meant), "{text}");
    }
    // Standard input, the image's own arguments replaced, a root that cannot be written to.
    let script = "id; cat; touch /none; echo $?";
    let line = [
        "run",
        "--rm",
        "-i",
        "--read-only",
        "--entrypoint",
        "sh",
        "IMAGE",
        "-c",
        script,
    ];
    let (_, text) = both.same_with(&line, b"typed\n");
    assert!(
        text.ends_with("groups=0(root),10(wheel)\ntyped\n1\n"),
        "{text}"
    );
    both.same(&["run", "--rm", "IMAGE"], 0, "by the image\n");
    for (command, status) in [("/none", 127), ("none", 127), ("/etc/passwd", 126)] {
        both.same(&["run", "--rm", "IMAGE", command], status, "");
    }
}

/// What is refused before there is a machine, but for the user and group, whom the guest looks up.
fn refused_runs(both: &Both) {
    for (flags, docker, hull) in [
        (
            &["--bad"][..],
            (125, "unknown flag: --bad"),
            (OWN, "unexpected argument '--bad'"),
        ),
        (
            &["-u", "nobody"],
            (125, "unable to find user nobody"),
            (OWN, "unable to find user nobody"),
        ),
        (
            &["--group-add", "none"],
            (125, "nable to find group none"),
            (OWN, "unable to find group none"),
        ),
        (
            &["-w", "rel"],
            (125, "needs to be an absolute path"),
            (OWN, "is absolute"),
        ),
        (
            &["-v", "rel/x:/x"],
            (125, "invalid characters"),
            (OWN, "no name of a volume"),
        ),
        (
            &["--stop-signal", "NONE"],
            (125, "Invalid signal: NONE"),
            (OWN, "unknown signal"),
        ),
        (
            &["-d", "--restart", "always"],
            (125, "Conflicting options: --restart and --rm"),
            (OWN, "conflicting options: --restart always and --rm"),
        ),
        (
            &["-d", "--health-cmd", "x", "--health-interval=-1s"],
            (125, "--health-interval cannot be negative"),
            (OWN, "it cannot be negative"),
        ),
        (
            &["-d", "--health-timeout", "30"],
            (125, "invalid argument \"30\" for \"--health-timeout\" flag"),
            (OWN, "invalid value '30' for '--health-timeout"),
        ),
        (
            &["-d", "--no-healthcheck", "--health-cmd", "x"],
            (125, "--no-healthcheck conflicts with --health-* options"),
            (OWN, "cannot be used with"),
        ),
        (
            &["--name", "a b"],
            (125, "Invalid container name (a b)"),
            (OWN, "a name is"),
        ),
        (
            &["--env-file", "none"],
            (125, "no such file"),
            (OWN, "No such file"),
        ),
    ] {
        let line = [&["run", "--rm"], flags, &["IMAGE", "true"]].concat();
        both.fail(&line, docker, hull);
    }
    // docker makes a folder that is missing; hull takes it for a mistake.
    let volume = format!("{}:/x", both.at("missing").display());
    let missing = [
        "run", "--rm", "-v", &volume, "IMAGE", "stat", "-c", "%F", "/x",
    ];
    let refused = both.hull(&missing, b"");
    assert_eq!(refused.status, Some(OWN));
    assert!(
        refused.stderr.contains("name a folder that exists"),
        "{}",
        refused.stderr
    );
    both.docker(&missing, b"").assert(0, "directory\n", "");
}

fn logs(both: &Both) {
    let whole = |it: Finished| it.stdout_text() == "out\ntwo\n" && it.stderr == "err\n";
    wait_until(|| {
        whole(both.docker(&["logs", "up"], b"")) && whole(both.hull(&["logs", "up"], b""))
    });
    for flags in [
        &["--tail", "1"][..],
        &["--tail", "0"],
        &["-n", "2"],
        &["--since", "1h"],
        &["--since", "2100-01-01"],
        &["--since", "2100-01-01T00:00:00"],
        &["--until", "1h"],
    ] {
        let line = [&["logs"], flags, &["up"]].concat();
        both.same_with(&line, b"");
        assert_eq!(
            both.docker(&line, b"").stderr,
            both.hull(&line, b"").stderr,
            "{line:?}"
        );
    }
    let since = ["logs", "--since", "bad", "up"];
    both.fail(
        &since,
        (DOCKERS_OWN, "invalid value for \"since\""),
        (OWN, "write a time"),
    );
    missing(both, &["logs", "none"]);
}

/// One that is not there: docker says "No such container: NAME".
#[track_caller]
fn missing(both: &Both, line: &[&str]) {
    both.fail(
        line,
        (DOCKERS_OWN, "No such container: none"),
        (OWN, "no such machine"),
    );
}

fn executes(both: &Both) {
    let script = "echo a; echo b >&2; exit 5";
    both.same(&["exec", "up", "sh", "-c", script], 5, "a\n");
    for user in ["web", "1234", "web:more", ":more"] {
        let (_, text) = both.same_with(&["exec", "-u", user, "up", "id"], b"");
        assert!(text.starts_with("uid="), "{text}");
    }
    let script = "pwd; echo $A $B $C $GIVEN";
    let flags = [
        "-w",
        "/srv",
        "-e",
        "A=exec",
        "-e",
        "C=more",
        "-e",
        "GIVEN",
        "--env-file",
        "variables",
    ];
    let line = [&["exec"], &flags[..], &["up", "sh", "-c", script]].concat();
    both.same(&line, 0, "/srv\nexec file more by the host\n");
    assert_eq!(
        both.same_with(&["exec", "-i", "up", "cat"], b"typed").1,
        "typed"
    );
    assert_eq!(both.same_with(&["exec", "up", "cat"], b"typed").1, "");
    both.same(
        &["exec", "-t", "up", "sh", "-c", "test -t 1 && exit 4"],
        4,
        "",
    );
    both.same(&["exec", "-d", "up", "touch", "/tmp/made"], 0, "");
    // docker's messages of these are on standard output; since its version 23 the first has status 127, too.
    both.fail(
        &["exec", "up", "/none"],
        (126, "no such file"),
        (127, "is not in the guest"),
    );
    both.fail(
        &["exec", "up", "/etc/passwd"],
        (126, "permission denied"),
        (126, "Permission denied"),
    );
    both.fail(
        &["exec", "-w", "/none", "up", "pwd"],
        (126, "no such file"),
        (126, "No such file"),
    );
    let nobody = ["exec", "-u", "nobody", "up", "id"];
    both.fail(
        &nobody,
        (126, "unable to find user nobody"),
        (126, "unable to find user nobody"),
    );
    let terminal = ["exec", "-it", "up", "true"];
    let message = "the input device is not a TTY";
    both.fail(&terminal, (DOCKERS_OWN, message), (OWN, message));
    missing(both, &["exec", "none", "true"]);
}

fn copies(both: &Both) {
    for line in [
        ["site", "up:/copied"],
        ["site", "up:/srv"],
        ["site/.", "up:/srv/"],
        ["site/link", "up:/srv/copied"],
        ["site/sub/file", "up:/srv/renamed"],
        ["up:/srv", "back"],
        ["up:/srv/.", "there"],
        ["up:/srv/sub/file", "there/renamed"],
    ] {
        both.same(&["cp", line[0], line[1]], 0, "");
    }
    let list = "find /copied /srv | sort; cat /copied/sub/file; ls -l /srv | grep -c ^l";
    let (_, text) = both.same_with(&["exec", "up", "sh", "-c", list], b"");
    assert!(text.contains("/srv/site/link\n"), "{text}");
    let mut found = Command::new("sh");
    found.args(["-c", "cd \"$0\"; find . | sort; cat there/renamed"]);
    let [docker, hull] = ["docker", "hull"].map(|of| {
        let output = found
            .current_dir(both.at(of))
            .arg(".")
            .output()
            .expect("sh starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    assert_eq!(hull, docker);
    assert!(docker.contains("./back/site/sub/file\n"), "{docker}");
    archives(both);
    let own = |docker, hull| ((DOCKERS_OWN, docker), (OWN, hull));
    for (line, (docker, hull)) in [
        (
            ["up:/none", "x"],
            own(
                "No such container:path: up:/none",
                "there is nothing at /none",
            ),
        ),
        (["none", "up:/srv"], own("no such file", "No such file")),
        (
            ["site", "none:/srv"],
            own("No such container:path: none:", "no such machine: none"),
        ),
        (
            ["site", "up:/etc/passwd"],
            own("cannot copy directory", "a folder cannot be copied to it"),
        ),
        (
            ["site/sub/file", "up:/none/x"],
            own("No such container:path: up:/none", "/none"),
        ),
        (
            ["site/sub/file", "up:/none/"],
            own("no such directory", "there is no folder /none/"),
        ),
        (
            ["up:/srv", "up:/x"],
            own(
                "between containers is not supported",
                "from one machine to the host",
            ),
        ),
        (
            ["a", "b"],
            own("at least one container", "one of both must be in a machine"),
        ),
    ] {
        both.fail(&["cp", line[0], line[1]], docker, hull);
    }
    // docker copies FIFOs, which hull refuses by name, as what is in them is not theirs.
    both.same(&["exec", "up", "mkfifo", "/tmp/fifo"], 0, "");
    for line in [
        ["cp", "up:/tmp/fifo", "copy"],
        ["cp", "fifo", "up:/tmp/copy"],
    ] {
        both.fail(&line, (0, ""), (OWN, "neither a file, a folder nor a link"));
    }
}

/// `-` on either side.
fn archives(both: &Both) {
    let list = |bytes: &[u8]| {
        let mut archive = ::tar::Archive::new(bytes);
        let entries = archive.entries().expect("an archive");
        let names = entries.map(|it| {
            it.expect("an entry")
                .path()
                .expect("a path")
                .display()
                .to_string()
        });
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let out = ["cp", "up:/srv/site", "-"];
    let (docker, hull) = (both.docker(&out, b"").stdout, both.hull(&out, b"").stdout);
    assert_eq!(
        list(&docker),
        ["site/", "site/link", "site/sub/", "site/sub/file"]
    );
    assert_eq!(list(&hull), list(&docker));
    // Each reads the other's.
    assert_eq!(both.docker(&["cp", "-", "up:/tmp"], &hull).status, Some(0));
    both.hull(&["cp", "-", "up:/tmp"], &docker)
        .assert(0, "", "");
    both.same(&["exec", "up", "cat", "/tmp/site/link"], 0, "data\n");
}

fn looked_at(both: &Both) {
    let of = |it: Finished| {
        it.stdout_text()
            .lines()
            .filter(|line| line.contains("sh -c trap"))
            .count()
    };
    assert_eq!(of(both.docker(&["top", "up"], b"")), 1);
    assert_eq!(of(both.hull(&["top", "up"], b"")), 1);
    both.same(&["port", "up"], 0, "");
    let message = "public port '80/tcp' published for up";
    both.fail(
        &["port", "up", "80"],
        (DOCKERS_OWN, message),
        (OWN, message),
    );
    for verb in [
        "top", "port", "attach", "pause", "unpause", "kill", "stop", "wait", "start", "restart",
        "rm",
    ] {
        missing(both, &[verb, "none"]);
    }
    missing(both, &["stats", "--no-stream", "none"]);
    missing(both, &["rename", "none", "new"]);
    // It is gone, which is what was wanted: no failure.
    both.fail(
        &["rm", "-f", "none"],
        (0, "No such container: none"),
        (0, "no such machine"),
    );
    both.same(&["pause", "up"], 0, "up\n");
    both.fail(
        &["exec", "up", "true"],
        (DOCKERS_OWN, "is paused"),
        (OWN, "is paused"),
    );
    both.fail(
        &["pause", "up"],
        (DOCKERS_OWN, "already paused"),
        (0, "is paused already"),
    );
    both.same(&["unpause", "up"], 0, "up\n");
    both.fail(
        &["unpause", "up"],
        (DOCKERS_OWN, "is not paused"),
        (0, "runs already"),
    );
}

fn names(both: &Both) {
    let taken = (125, "The container name \"/up\" is already in use");
    for detached in [&["run"][..], &["run", "-d"]] {
        let line = [detached, &["--name", "up", "IMAGE", "true"]].concat();
        both.fail(
            &line,
            taken,
            (OWN, "the machine name \"up\" is already in use"),
        );
    }
    both.fail(
        &["rm", "up"],
        (DOCKERS_OWN, "cannot remove a running container"),
        (OWN, "machine up is running"),
    );
    both.same(&["rename", "up", "new"], 0, "");
    let other = [
        "run",
        "-d",
        "--name",
        "other",
        "IMAGE",
        "sh",
        "-c",
        "echo ended; exit 4",
    ];
    assert_eq!(both.docker(&other, b"").status, Some(0));
    both.hull(&other, b"").assert(0, "other\n", "");
    both.same(&["wait", "other"], 0, "4\n");
    both.same(&["logs", "other"], 0, "ended\n");
    let taken = "name \"/other\" is already in use";
    let line = ["rename", "new", "other"];
    both.fail(
        &line,
        (DOCKERS_OWN, taken),
        (OWN, "name \"other\" is already in use"),
    );
    // The states of both, a line each.
    let docker = both.docker(
        &["ps", "-a", "--format", "{{.Names}} {{.State}} {{.Status}}"],
        b"",
    );
    let docker = docker.stdout_text();
    assert!(
        docker.contains("new running Up") && docker.contains("other exited Exited (4)"),
        "{docker}"
    );
    let hull = both.hull(&["ps", "-a"], b"").stdout_text();
    let state = |name: &str, state: &str| {
        let mut lines = hull.lines();
        lines.any(|line| line.starts_with(name) && line.contains(state))
    };
    assert!(
        state("new ", " running ")
            && state("other ", " exited ")
            && state("other ", " Exited (4) "),
        "{hull}"
    );
    // docker's -q prints IDs.
    both.hull(&["ps", "-aq"], b"").assert(0, "new\nother\n", "");
}

fn ends(both: &Both) {
    for line in [
        &["exec", "other", "true"][..],
        &["top", "other"],
        &["kill", "other"],
    ] {
        both.fail(
            line,
            (DOCKERS_OWN, "is not running"),
            (OWN, "machine other is not running"),
        );
    }
    // Files of one that has ended are docker's to give; hull's guest is gone.
    both.fail(
        &["cp", "other:/etc/passwd", "x"],
        (0, ""),
        (OWN, "machine other is not running"),
    );
    both.fail(
        &["attach", "other"],
        (DOCKERS_OWN, "You cannot attach to a stopped"),
        (OWN, "you cannot attach to a stopped"),
    );
    let signal = ["kill", "-s", "NONE", "new"];
    both.fail(
        &signal,
        (DOCKERS_OWN, "Invalid signal: NONE"),
        (OWN, "unknown signal"),
    );
    both.same(&["stop", "other"], 0, "other\n");
    both.same(&["start", "new"], 0, "new\n");
    both.same(&["stop", "new"], 0, "new\n");
    both.same(&["stop", "new", "other"], 0, "new\nother\n");
    both.same(&["wait", "new"], 0, "3\n");
    both.same(&["start", "new"], 0, "new\n");
    both.same(&["kill", "new"], 0, "new\n");
    both.same(&["wait", "new"], 0, "137\n");
    both.fail(
        &["rm", "new", "none"],
        (DOCKERS_OWN, "No such container: none"),
        (OWN, "no such machine"),
    );
    both.same(&["rm", "other"], 0, "other\n");
    // A command that passes TERM over is killed after the time.
    let script = "trap '' TERM; echo up; sleep 1000 & wait";
    let deaf = [
        "run",
        "-d",
        "--name",
        "deaf",
        "--stop-timeout",
        "1",
        "IMAGE",
        "sh",
        "-c",
        script,
    ];
    assert_eq!(both.docker(&deaf, b"").status, Some(0));
    both.hull(&deaf, b"").assert(0, "deaf\n", "");
    let is_up = |it: Finished| it.stdout_text() == "up\n";
    wait_until(|| {
        is_up(both.docker(&["logs", "deaf"], b"")) && is_up(both.hull(&["logs", "deaf"], b""))
    });
    both.same(&["stop", "deaf"], 0, "deaf\n");
    both.same(&["wait", "deaf"], 0, "137\n");
    both.same(&["start", "deaf"], 0, "deaf\n");
    both.same(&["stop", "--time", "0", "deaf"], 0, "deaf\n");
    both.same(&["wait", "deaf"], 0, "137\n");
    both.same(&["rm", "-f", "deaf"], 0, "deaf\n");
    // One that did not start stays in docker, and not in hull.
    let bad = ["run", "-d", "--name", "bad", "IMAGE", "/none"];
    both.fail(&bad, (127, "no such file"), (127, "is not in the guest"));
    both.fail(&["rm", "bad"], (0, "bad"), (OWN, "no such machine"));
    let gone = ["run", "-d", "--rm", "--name", "gone", "IMAGE", "true"];
    assert_eq!(both.docker(&gone, b"").status, Some(0));
    both.hull(&gone, b"").assert(0, "gone\n", "");
    let none = |it: Finished| !it.stdout_text().contains("gone");
    wait_until(|| none(both.docker(&["ps", "-a"], b"")) && none(both.hull(&["ps", "-a"], b"")));
}

/// What both know of one that is started again, and of its health.
fn kept_running(both: &Both) {
    let script = "echo begun; sleep 1; exit 3";
    let line = [
        &["run", "-d", "--name", "again", "--restart", "on-failure:1"][..],
        &["--health-cmd", "echo ill; exit 2", "--health-retries", "1"],
        &["--health-interval", "200ms", "IMAGE", "sh", "-c", script],
    ]
    .concat();
    assert_eq!(both.docker(&line, b"").status, Some(0));
    both.hull(&line, b"").assert(0, "again\n", "");
    for of in [Both::docker, Both::hull] {
        let answer = |line: &[&str]| of(both, line, b"").stdout_text();
        wait_until(|| answer(&["ps", "-a"]).contains("Exited (3)"));
        assert_eq!(answer(&["logs", "again"]), "begun\nbegun\n");
    }
    let docker = both.docker(&["inspect", "again"], b"").stdout_text();
    let docker: Value = serde_json::from_str(&docker).expect("JSON");
    let hull = both
        .hull(&["inspect", "again", "--json"], b"")
        .stdout_text();
    let hull: Value = serde_json::from_str(&hull).expect("JSON");
    for path in [
        "/RestartCount",
        "/State/Status",
        "/State/Running",
        "/State/Restarting",
        "/State/ExitCode",
        "/State/Health/Status",
        "/State/Health/Log/0/ExitCode",
        "/State/Health/Log/0/Output",
        "/HostConfig/RestartPolicy/Name",
        "/HostConfig/RestartPolicy/MaximumRetryCount",
        "/Config/Healthcheck/Test",
        "/Config/Healthcheck/Interval",
        "/Config/Healthcheck/Retries",
    ] {
        assert!(docker[0].pointer(path).is_some(), "{path}: {docker}");
        assert_eq!(hull.pointer(path), docker[0].pointer(path), "{path}");
    }
    both.same(&["rm", "again"], 0, "again\n");
}
