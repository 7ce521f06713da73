//! Machines that are kept running: restart policies and checks of health by the keeper, units of systemd.

#[path = "images/layout.rs"]
mod layout;
mod machine;

use std::fs;
use std::process::Command;

use ::tar::EntryType;
use layout::{Layer, Layout};
use machine::user::{User, wait_until};
use machine::{built, kvm};
use rustix::process::geteuid;
use serde_json::{Value, json};

#[track_caller]
fn ok(user: &User, arguments: &[&str]) -> String {
    let done = user.run(arguments);
    assert_eq!(
        (done.status, done.stderr.as_str()),
        (Some(0), ""),
        "{arguments:?}"
    );
    done.stdout
}

/// The actions of a machine's events, those that the keeper tells.
fn actions(user: &User, name: &str) -> Vec<String> {
    let filter = format!("name={name}");
    let line = ["events", "--since", "1h", "--until", "0s", "--json", "-f"];
    let text = ok(user, &[&line[..], &[&filter]].concat());
    let events = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    events
        .map(|event| event["action"].as_str().expect("text").to_string())
        .collect()
}

/// The line of a machine in `hull ps -a`.
fn line(user: &User, name: &str) -> Option<Value> {
    let list: Value = serde_json::from_str(&ok(user, &["ps", "-a", "--json"])).expect("JSON");
    let mut lines = list.as_array().expect("a list").iter();
    lines.find(|line| line["name"] == name).cloned()
}

fn state(user: &User, name: &str) -> String {
    let line = line(user, name).unwrap_or_default();
    line["state"].as_str().unwrap_or_default().into()
}

#[test]
fn a_machine_is_started_again_as_its_policy_says() {
    if !kvm("kept") {
        return;
    }
    let user = User::new();
    wrong_policies(&user);
    on_failure(&user);
    always(&user);
}

fn wrong_policies(user: &User) {
    let refused = |policy: &str, message: &str| {
        let line = ["run", "-d", "--name", "bad", "--restart", policy];
        user.refused(&[&line[..], &["--", "true"]].concat(), message);
    };
    refused(
        "on-failure:-1",
        "the maximum retry count \"-1\" is no number",
    );
    refused("on-failure:", "the maximum retry count \"\" is no number");
    refused(
        "always:3",
        "maximum retry count cannot be used with restart policy 'always'",
    );
    refused(
        "sometimes",
        "write no, on-failure, on-failure:N, always or unless-stopped",
    );
    user.refused(
        &["run", "--restart", "always", "--", "true"],
        "required arguments were not provided:\n  --detach",
    );
    let both = ["run", "-d", "--rm", "--restart", "always", "--", "true"];
    user.refused(
        &both,
        "conflicting options: --restart always and --rm; leave one of them out",
    );
    user.refused(
        &["update", "--restart", "no", "bad"],
        "no such machine in the background: bad",
    );
}

/// Two restarts and no more; the log goes on, and each end is told.
fn on_failure(user: &User) {
    let start = ["run", "-d", "--name", "fails", "--restart", "on-failure:2"];
    let script = ["--", "sh", "-c", "echo begun; exit 3"];
    assert_eq!(ok(user, &[&start[..], &script].concat()), "fails\n");
    assert_eq!(ok(user, &["wait", "fails"]), "3\n");
    assert_eq!(ok(user, &["logs", "fails"]), "begun\nbegun\nbegun\n");
    let all = actions(user, "fails");
    let expected = ["create", "start", "die", "start", "die", "start", "die"];
    assert_eq!(all, expected);
    let seen = user.inspect("fails", &[]);
    assert_eq!(seen["State"]["Status"], "exited");
    assert_eq!(seen["State"]["ExitCode"], 3);
    assert_eq!(seen["RestartCount"], 2);
    let policy = &seen["HostConfig"]["RestartPolicy"];
    assert_eq!(policy["Name"], "on-failure");
    assert_eq!(policy["MaximumRetryCount"], 2);
    let shown = ok(user, &["ps", "-a"]);
    assert!(shown.contains("Exited (3) "), "{shown}");
    // A start that fails is told, and leaves what is known of it.
    let record = user.0.path().join("state/hull/fails/record");
    let text = fs::read_to_string(&record).expect("there");
    let mut broken: Value = serde_json::from_str(&text).expect("JSON");
    broken["folder"] = "/no/such/folder".into();
    fs::write(&record, broken.to_string()).expect("written");
    user.refused(&["start", "fails"], "hull cannot be started");
    assert!(record.exists());
    assert_eq!(ok(user, &["rm", "fails"]), "fails\n");
}

/// It starts until the user ends it: while it runs, while it waits, and by another policy.
fn always(user: &User) {
    let start = ["run", "-d", "--name", "web", "--restart", "always"];
    let script = "trap 'exit 0' TERM; echo up; while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 7";
    assert_eq!(
        ok(user, &[&start[..], &["--", "sh", "-c", script]].concat()),
        "web\n"
    );
    // The machine may end before it answers.
    user.run(&["exec", "web", "touch", "/tmp/end"]);
    wait_until(|| ok(user, &["logs", "web"]) == "up\nup\n");
    wait_until(|| state(user, "web") == "running");
    let again = line(user, "web").expect("there");
    assert_eq!(again["restarts"], 1);
    assert_eq!(user.inspect("web", &[])["RestartCount"], 1);
    ok(user, &["kill", "-s", "KILL", "web"]);
    assert_eq!(state(user, "web"), "exited (137)");
    assert_eq!(ok(user, &["start", "web"]), "web\n");
    assert_eq!(user.inspect("web", &[])["RestartCount"], 0);
    wait_until(|| ok(user, &["logs", "web"]) == "up\nup\nup\n");
    ok(user, &["stop", "web"]);
    assert_eq!(state(user, "web"), "exited (0)");
    let name = "crashes";
    let start = ["run", "-d", "--name", name, "--restart", "unless-stopped"];
    ok(user, &[&start[..], &["--", "false"]].concat());
    // The waits have become long enough to see one.
    let waits = || {
        let shown = ok(user, &["ps"]);
        shown.contains("Restarting (1) ") && shown.contains("restarting")
    };
    wait_until(|| {
        let restarts = line(user, name).and_then(|line| line["restarts"].as_u64());
        restarts >= Some(4) && waits()
    });
    let refusal = "machine crashes is restarting, wait until it is running";
    wait_until(|| user.run(&["exec", name, "true"]).stderr.contains(refusal));
    user.refused(&["rm", name], "machine crashes is running; hull stop");
    wait_until(|| user.run(&["rename", name, "renamed"]).status == Some(0));
    assert_eq!(ok(user, &["stop", "renamed"]), "renamed\n");
    assert_eq!(state(user, "renamed"), "exited (1)");
    assert_eq!(actions(user, "renamed").last().expect("one"), "rename");
    // By another policy it ends at once, too, and rm -f ends it.
    assert_eq!(ok(user, &["start", "renamed"]), "renamed\n");
    assert_eq!(
        ok(user, &["update", "--restart", "no", "renamed"]),
        "renamed\n"
    );
    assert_eq!(ok(user, &["wait", "renamed"]), "1\n");
    assert_eq!(
        ok(user, &["update", "--restart", "always", "renamed"]),
        "renamed\n"
    );
    assert_eq!(ok(user, &["start", "renamed"]), "renamed\n");
    assert_eq!(ok(user, &["rm", "-f", "renamed", "web"]), "renamed\nweb\n");
    assert_eq!(line(user, "renamed"), None);
}

#[test]
fn health_is_checked() {
    if !kvm("kept") {
        return;
    }
    let user = User::new();
    wrong_checks(&user);
    flags(&user);
    of_an_image(&user);
}

fn wrong_checks(user: &User) {
    let refused = |flags: &[&str], message: &str| {
        let line = [&["run", "-d", "--name", "bad"][..], flags, &["--", "true"]];
        user.refused(&line.concat(), message);
    };
    refused(
        &["--health-interval", "30"],
        "invalid value '30' for '--health-interval <TIME>': write numbers with units",
    );
    refused(&["--health-timeout=-1s"], "it cannot be negative");
    refused(&["--health-start-period", "1us"], "cannot be less than 1ms");
    refused(
        &["--health-retries=-1"],
        "write a number from 0 to 4294967295",
    );
    refused(
        &["--no-healthcheck", "--health-cmd", "true"],
        "cannot be used with",
    );
    user.refused(
        &["run", "--health-cmd", "true", "--", "true"],
        "required arguments were not provided:\n  --detach",
    );
}

/// A machine whose files say what its check does.
fn flags(user: &User) {
    // Without a process more, which takes long where the guest's kernel is emulated.
    let check =
        "while read key value rest; do [ $key != Uid: ] || echo $value; done < /proc/self/status
        echo error >&2; [ ! -e /tmp/more ] || . /tmp/more; [ -e /tmp/good ]";
    let line = ["run", "-d", "--name", "web", "--restart", "no", "-u", "7"];
    let health = [
        "--health-cmd",
        check,
        "--health-interval",
        "100ms",
        "--health-timeout",
        "30s",
        "--health-retries",
        "2",
        "--health-start-period",
        "0",
    ];
    let script = ["--", "sh", "-c", "echo up; exec sleep 1000"];
    ok(user, &[&line[..], &health, &script].concat());
    let health = || user.inspect("web", &[])["State"]["Health"].clone();
    let is = |status: &str| health()["Status"] == status;
    wait_until(|| is("unhealthy"));
    let seen = health();
    assert!(seen["FailingStreak"].as_u64() >= Some(2), "{seen}");
    let last = &seen["Log"][0];
    assert_eq!(last["ExitCode"], 1);
    let output = last["Output"].as_str().expect("text");
    // As the command's user, both streams.
    assert!(
        output.contains("7\n") && output.contains("error\n"),
        "{output}"
    );
    let config = user.inspect("web", &[])["Config"]["Healthcheck"].clone();
    assert_eq!(config["Test"][0], "CMD-SHELL");
    assert_eq!(config["Interval"], 100_000_000);
    assert!(ok(user, &["ps"]).contains("(unhealthy)"));
    // An output that is too long.
    let fill = "echo 'printf %100000d 7' > /tmp/more; : > /tmp/good";
    ok(user, &["exec", "web", "sh", "-c", fill]);
    wait_until(|| {
        let seen = health();
        let log = seen["Log"].as_array().cloned().unwrap_or_default();
        let is_long = |it: &Value| it["Output"].as_str().is_some_and(|it| it.len() == 4096);
        log.len() == 5 && log.iter().all(is_long) && seen["Status"] == "healthy"
    });
    assert!(ok(user, &["ps"]).contains("(healthy)"));
    assert!(ok(user, &["inspect", "web"]).contains("health: healthy, 0 failures in a row\n"));
    // One that is paused is not checked, also not by the check that ran.
    ok(user, &["pause", "web"]);
    let before = health();
    let shown = ok(user, &["ps"]);
    assert!(shown.contains("(Paused)"), "{shown}");
    ok(user, &["resume", "web"]);
    wait_until(|| health() != before);
    assert!(is("healthy"));
    let told: Vec<_> = actions(user, "web")
        .into_iter()
        .filter(|it| it.starts_with("health_status"))
        .collect();
    assert_eq!(told, ["health_status: unhealthy", "health_status: healthy"]);
    ok(user, &["kill", "web"]);
    ok(user, &["rm", "web"]);
}

/// The image's own check, which begins anew when the machine is started again.
fn of_an_image(user: &User) {
    let busybox = fs::read(built("foreign/busybox")).expect("busybox");
    let mut layer = Layer::new().entry(
        EntryType::Regular,
        "bin/busybox",
        0o755,
        (0, 0),
        "",
        &busybox,
    );
    for applet in ["bin/sh", "bin/sleep"] {
        layer = layer.entry(EntryType::Symlink, applet, 0o777, (0, 0), "busybox", b"");
    }
    let config = json!({
        "Cmd": ["/bin/sh", "-c", "sleep 1; while [ ! -e /end ]; do sleep 0.2; done"],
        "Healthcheck": {
            "Test": ["CMD", "/bin/sh", "-c", "echo checked; sleep 0.1"],
            "Interval": 200_000_000,
            "Timeout": 30_000_000_000u64,
            "Retries": 1,
        },
    });
    let image = Layout::new(vec![layer], config);
    let path = image.path().to_str().expect("text");
    let shape = [
        "-m",
        "128M",
        "--cpus",
        "1",
        "--network",
        "none",
        "--image",
        path,
    ];
    let line = ["run", "-d", "--name", "image", "--restart", "always"];
    ok(user, &[&line[..], &shape].concat());
    let seen = || user.inspect("image", &[]);
    let is_healthy = || seen()["State"]["Health"]["Status"] == "healthy";
    wait_until(is_healthy);
    assert_eq!(seen()["State"]["Health"]["Log"][0]["Output"], "checked\n");
    // The machine may end before it answers.
    user.run(&["exec", "image", "/bin/sh", "-c", ": > /end"]);
    wait_until(|| seen()["RestartCount"] == 1 && is_healthy());
    let all = actions(user, "image");
    let all: Vec<_> = all.iter().filter(|it| *it != "exec").collect();
    let healthy = "health_status: healthy";
    assert_eq!(all, ["create", "start", healthy, "die", "start", healthy]);
    assert_eq!(ok(user, &["rm", "-f", "image"]), "image\n");
    // A check that hangs, in place of the image's, is killed, and counts.
    let line = [
        "run",
        "-d",
        "--name",
        "image",
        "--health-cmd",
        "echo hangs; sleep 1000",
    ];
    let times = ["--health-interval", "100ms", "--health-timeout", "2s"];
    ok(user, &[&line[..], &times, &shape].concat());
    wait_until(|| seen()["State"]["Health"]["FailingStreak"].as_u64() >= Some(2));
    let last = seen()["State"]["Health"]["Log"][1].clone();
    assert_eq!(last["ExitCode"], -1);
    let output = last["Output"].as_str().expect("text");
    assert!(
        output.starts_with("Health check exceeded timeout (2s)"),
        "{output}"
    );
    assert_eq!(seen()["State"]["Health"]["Status"], "unhealthy");
    // At most the one that runs now is there.
    let processes = ok(user, &["exec", "image", "/bin/busybox", "ps"]);
    let hanging = processes
        .lines()
        .filter(|line| line.ends_with("sleep 1000"));
    // A shell and its sleep.
    assert!(hanging.count() <= 2, "{processes}");
    assert_eq!(ok(user, &["rm", "-f", "image"]), "image\n");
    let line = ["run", "-d", "--name", "image", "--no-healthcheck"];
    ok(user, &[&line[..], &shape].concat());
    assert_eq!(seen()["Config"]["Healthcheck"], Value::Null);
    assert_eq!(seen()["State"]["Health"], Value::Null);
    assert_eq!(ok(user, &["rm", "-f", "image"]), "image\n");
}

#[test]
fn a_unit_of_systemd_starts_a_machine_after_a_boot() {
    if !kvm("kept") {
        return;
    }
    let user = User::new();
    user.refused(
        &["generate", "systemd", "web"],
        "no such machine in the background: web",
    );
    let odd = "echo \"$0\" 100%; \\; 'two\n lines' é\u{1}";
    let start = ["run", "-d", "--name", "old", "--restart"];
    let command = ["unless-stopped", "--", "sh", "-c", "sleep 1000", odd, ";"];
    ok(&user, &[&start[..], &command].concat());
    ok(&user, &["rename", "old", "web"]);
    for more in [&[][..], &["--new"]] {
        let text = ok(&user, &[&["generate", "systemd", "web"][..], more].concat());
        let state = user.0.path().join("state");
        let line = format!("Environment=XDG_STATE_HOME={}\n", state.display());
        assert!(text.contains(&line), "{text}");
        assert!(!text.contains("old"), "{text}");
        verify(&user, &text);
    }
    // The host is started anew: with the unit's own verbs.
    let unit = ok(&user, &["generate", "systemd", "web"]);
    let verb = |key: &str| {
        let mut lines = unit.lines();
        let line = lines
            .find_map(|line| line.strip_prefix(key))
            .expect("there");
        let words: Vec<_> = line.split(' ').skip(1).collect();
        words
            .iter()
            .map(|word| word.to_string())
            .collect::<Vec<_>>()
    };
    let run = |key: &str| {
        let words = verb(key);
        ok(&user, &words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let after_boot = ["start", "--after-boot"];
    assert_eq!(run("ExecStop="), "web\n");
    assert_eq!(state(&user, "web"), "exited (143)");
    assert_eq!(ok(&user, &after_boot), "", "it is the same boot");
    another_boot(&user);
    assert_eq!(ok(&user, &after_boot), "web\n");
    assert_eq!(state(&user, "web"), "running");
    // One that the user has stopped stays so, with and without a unit.
    assert_eq!(ok(&user, &["stop", "web"]), "web\n");
    another_boot(&user);
    assert_eq!(ok(&user, &after_boot), "");
    assert_eq!(run("ExecStart="), "");
    ok(&user, &["update", "--restart", "always", "web"]);
    assert_eq!(ok(&user, &after_boot), "web\n");
    assert_eq!(ok(&user, &["rm", "-f", "web"]), "web\n");
}

/// The records are those of an earlier boot.
fn another_boot(user: &User) {
    let path = user.0.path().join("state/hull/web/state");
    let text = fs::read_to_string(&path).expect("there");
    let mut state: Value = serde_json::from_str(&text).expect("JSON");
    assert_ne!(state["boot"], "");
    state["boot"] = "another".into();
    fs::write(path, state.to_string()).expect("written");
}

/// systemd reads the unit without a complaint.
fn verify(user: &User, unit: &str) {
    let path = user.0.path().join("hull-web.service");
    fs::write(&path, unit).expect("written");
    let mut analyze = Command::new("systemd-analyze");
    if !geteuid().is_root() {
        analyze.arg("--user");
    }
    analyze.arg("verify").arg(&path);
    match analyze.env("XDG_RUNTIME_DIR", user.0.path()).output() {
        Err(_) => println!("left out: the unit: systemd-analyze is not there"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let of_ours: Vec<_> = said
                .lines()
                .filter(|line| line.contains("hull-web"))
                .collect();
            assert_eq!(of_ours, Vec::<&str>::new(), "{unit}");
            assert!(output.status.success(), "{said}");
        }
    }
}
