//! `hull run --config` and `--print-config`: a machine in a file.

use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

struct Folder(tempfile::TempDir);

impl Folder {
    fn with(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("machine"), text).expect("it is written");
        Self(folder)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
        hull.current_dir(&self.0).arg("run").args(arguments);
        hull.output().expect("hull starts")
    }

    /// What `--print-config` prints.
    fn printed(&self, arguments: &[&str]) -> String {
        let output = self.run(&[&["--print-config"], arguments].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(stderr.is_empty(), "{stderr}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.printed(arguments)).expect("JSON")
    }

    fn refusal(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }
}

/// What is printed of a machine without any flag.
fn plain() -> Value {
    json!({
        "cpus": 1, "memory": "128M", "boot": "auto", "console": "serial", "kernel-log": false,
        "rng": true
    })
}

#[test]
fn a_machine_without_flags_is_printed_with_its_defaults() {
    assert_eq!(Folder::with("").json(&[]), plain());
    assert_eq!(Folder::with("").json(&["--config", "machine"]), plain());
    assert_eq!(Folder::with("{}").json(&["--config", "machine"]), plain());
}

#[test]
fn json_and_toml_are_told_apart_by_content() {
    let expected = json!({
        "name": "web", "cpus": 2, "memory": "1G", "kernel": "vmlinux", "boot": "pvh",
        "cmdline": "quiet", "console": "virtio", "kernel-log": true,
        "disk": ["a.img,ro"], "scratch": ["1G"], "net": ["user,publish=127.0.0.1:80:80/tcp"],
        "rng": false, "break": ["no-mptable"],
        "command": {"argv": ["ls", "-l"], "env": ["A=b"], "cwd": "/tmp", "tty": true}
    });
    let toml = r#"
        name = "web"
        cpus = 2
        memory = "1024MiB"
        kernel = "vmlinux"
        boot = "pvh"
        cmdline = "quiet"
        console = "virtio"
        kernel-log = true
        disk = { path = "a.img", ro = true }
        scratch = "1G"
        net = ["user,publish=80:80"]
        rng = "off"
        break = "no-mptable"

        [command]
        argv = ["ls", "-l"]
        env = ["A=b"]
        cwd = "/tmp"
        tty = true
    "#;
    assert_eq!(Folder::with(toml).json(&["--config", "machine"]), expected);
    let json = expected.to_string();
    assert_eq!(Folder::with(&json).json(&["--config", "machine"]), expected);
}

#[test]
fn flags_win_over_the_file_and_their_lists_replace_its_lists() {
    let file = Folder::with(
        r#"{"cpus": 2, "memory": "1G", "disk": ["a", "b"], "overlay": "c", "rng": false,
            "command": ["ls"]}"#,
    );
    let flags = [
        "--config", "machine", "--memory", "2G", "--disk", "d,ro", "--rng", "on", "--", "id", "-u",
    ];
    let mut expected = plain();
    expected["cpus"] = 2.into();
    expected["memory"] = "2G".into();
    expected["disk"] = json!(["d,ro"]);
    expected["overlay"] = json!(["c,overlay"]);
    expected["command"] = json!(["id", "-u"]);
    assert_eq!(file.json(&flags), expected);
}

#[test]
fn what_is_printed_is_read_again() {
    let flags = [
        "vmlinux",
        "--initrd",
        "i.cpio",
        "--cpus",
        "4",
        "--disk",
        "a,,b.img,id=x,rate=1M/2M+5ops",
        "--overlay",
        "o.img",
        "--scratch",
        "1G",
        "--share",
        ".:/src:ro",
        "--balloon=64M,stats=5",
        "--vsock",
        "cid=3,socket=/tmp/v",
        "--net",
        "tap=t0,ip=10.0.0.2/24",
        "--cmdline",
        "a b",
        "--name",
        "web",
        "--break",
        "bad-e820",
        "--kernel-log",
    ];
    let printed = Folder::with("").printed(&flags);
    let again = Folder::with(&printed).printed(&["--config", "machine"]);
    assert_eq!(again, printed);
}

#[test]
fn a_bad_file_is_refused_with_its_name_and_the_place() {
    for (text, part) in [
        (
            "memry = 1",
            "error: --config machine: line 1, column 1: memry: unknown key 'memry'; did you mean 'memory'?",
        ),
        (
            "{\"disk\": [{\"path\": \"a\"}, {\"pth\": \"b\"}]}",
            "line 1, column 31: disk[1].pth: unknown key 'pth'; did you mean 'path'?",
        ),
        ("timing = true", "timing: unknown key"),
        ("cpus = 99", "cpus: 99: a guest has 1 to 32 vCPUs"),
        (
            "{\"cpus\": 1,}",
            "no valid JSON: trailing comma at line 1 column 12",
        ),
        (
            "cpus 1",
            "no valid TOML: TOML parse error at line 1, column 6",
        ),
    ] {
        let refusal = Folder::with(text).refusal(&["--config", "machine"]);
        assert!(refusal.contains(part), "{text}: {refusal}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    let folder = Folder::with("");
    let refusal = folder.refusal(&["--config", "none"]);
    assert!(
        refusal.starts_with("error: --config none: No such file")
            && refusal.contains("--print-config writes such a file"),
        "{refusal}"
    );
    let fifo = folder.0.path().join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status().expect("mkfifo");
    assert!(made.success());
    let large = fs::File::create(folder.0.path().join("large")).expect("a file");
    large.set_len(2 << 20).expect("its size");
    for (file, told) in [
        (".", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("fifo", "a pipe and not a regular file"),
        ("large", "2097152 bytes; at most 1 MiB is read"),
    ] {
        let refusal = folder.refusal(&["--config", file]);
        let told = format!("error: --config {file}: {told}");
        assert!(refusal.starts_with(&told), "{refusal}");
    }
    fs::write(folder.0.path().join("machine"), [0xff, 0xfe]).expect("written");
    let refusal = folder.refusal(&["--config", "machine"]);
    assert!(refusal.contains("not contain valid UTF-8"), "{refusal}");
}

#[test]
fn settings_that_exclude_each_other_are_refused_by_their_flag() {
    let file = Folder::with("root-disk = \"r.img\"");
    let refusal = file.refusal(&["--config", "machine", "--initrd", "i"]);
    assert!(
        refusal.contains("--root-disk excludes an initial RAM disk"),
        "{refusal}"
    );
}
