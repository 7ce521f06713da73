//! What `make` does beside tests: booting where there is no KVM, installing, and making a package.

mod machine;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use machine::terminal::{Session, resize};
use serde_json::Value;

const HULL: &str = env!("CARGO_BIN_EXE_hull");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The words of a make that takes the program of the tests and builds nothing.
fn make(words: &[&str]) -> Vec<String> {
    let built = [
        "make",
        "-s",
        "-C",
        ROOT,
        "-o",
        "build",
        &format!("hull={HULL}"),
    ]
    .map(String::from);
    built
        .into_iter()
        .chain(words.iter().map(|word| word.to_string()))
        .collect()
}

#[track_caller]
fn run(words: &[String]) -> Output {
    let output = Command::new(&words[0]).args(&words[1..]).output();
    let output = output.expect("it starts");
    assert!(output.status.success(), "{words:?}: {output:?}");
    output
}

fn is_there(program: &str, test: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        println!("skipped: {test}: no {program} (make test-deps)");
    }
    there
}

#[test]
fn make_boot_without_kvm_has_a_shell_in_an_emulated_machine() {
    let test = "make boot without KVM";
    if !is_there("bwrap", test) || !is_there("qemu-system-x86_64", test) {
        return;
    }
    // A /dev without kvm.
    let mut bwrap = Command::new("bwrap");
    bwrap
        .args(["--bind", "/", "/", "--dev", "/dev", "--"])
        .args(make(&["boot"]));
    let mut shell = Session::of(bwrap);
    shell.wait_for("emulated machine with KVM");
    shell.wait_for("/dev/kvm: No such file or directory here");
    shell.wait_for("# ");
    assert!(shell.is_raw());
    shell.key("stty size; uname -r\r");
    shell.wait_for("30 101\r\n6.12");
    resize(&shell.terminal, 25, 80);
    shell.key("while [ \"$(stty size)\" != '25 80' ]; do :; done; echo re''sized\r");
    shell.wait_for("resized");
    shell.key("sleep 1000\r");
    shell.wait_for("sleep 1000");
    // Typed again, as the shell may not have started it.
    for _ in 0..100 {
        shell.key("\x03");
        std::thread::sleep(std::time::Duration::from_millis(100));
        shell.key("echo st''opped\r");
        if shell.sees("stopped", std::time::Duration::from_secs(5)) {
            break;
        }
    }
    shell.key("exit\r");
    assert_eq!(shell.end(), Some(0));
}

#[test]
fn make_install_puts_everything_below_its_folder() {
    let scratch = tempfile::tempdir().expect("a folder");
    let dest = format!("DESTDIR={}", scratch.path().display());
    run(&make(&["install", "PREFIX=/opt/hull", &dest]));
    let root = scratch.path().join("opt/hull");
    for file in [
        "bin/hull",
        "share/man/man1/hull.1",
        "share/man/man1/hull-run.1",
        "share/bash-completion/completions/hull",
        "share/zsh/vendor-completions/_hull",
        "share/fish/vendor_completions.d/hull.fish",
        "share/doc/hull/LICENSE",
        "share/doc/hull/NOTICE",
    ] {
        let length = fs::metadata(root.join(file)).map(|found| found.len());
        assert!(length.is_ok_and(|length| length > 0), "{file}");
    }
    let entries = fs::read_dir(scratch.path()).expect("a folder").count();
    assert_eq!(entries, 1, "files beside PREFIX");
    assert_version(&root.join("bin/hull"));
}

/// `program` tells its version in both forms.
fn assert_version(program: &Path) {
    let output = |words: &[&str]| {
        Command::new(program)
            .args(words)
            .output()
            .expect("it starts")
    };
    let text = String::from_utf8(output(&["version"]).stdout).expect("text");
    assert!(
        text.starts_with(concat!("hull ", env!("CARGO_PKG_VERSION"), "\n")),
        "{text}"
    );
    let json: Value = serde_json::from_slice(&output(&["version", "--json"]).stdout).expect("JSON");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert!(json["snapshot_format"].is_u64(), "{json}");
    let kernel = json["guest_kernel"]
        .as_str()
        .unwrap_or("none in this program");
    assert!(
        text.contains(&format!("guest kernel: {kernel}\n")),
        "{text}"
    );
}

#[test]
fn make_deb_makes_a_package_that_lintian_accepts_and_dpkg_installs() {
    if !is_there("lintian", "make deb") || !is_there("fakeroot", "make deb") {
        return;
    }
    let scratch = tempfile::tempdir().expect("a folder");
    let folder = scratch.path().display().to_string();
    // As in a release: a package holds no program with symbols.
    let stripped = format!("{folder}/hull");
    run(&["strip", "-o", &stripped, HULL].map(String::from));
    run(&make(&[
        "deb",
        &format!("hull={stripped}"),
        &format!("packages={folder}"),
    ]));
    let package = format!("{folder}/hull_{}_amd64.deb", env!("CARGO_PKG_VERSION"));
    let lintian = [
        "lintian",
        "--allow-root",
        "--fail-on",
        "error,warning",
        &package,
    ];
    run(&lintian.map(String::from));

    let root = format!("{folder}/root");
    fs::create_dir_all(format!("{root}/var/lib/dpkg/info")).expect("a folder");
    fs::create_dir_all(format!("{root}/var/lib/dpkg/updates")).expect("a folder");
    fs::write(format!("{root}/var/lib/dpkg/status"), "").expect("a file");
    let dpkg = |words: &[&str]| {
        let root = format!("--root={root}");
        let all = [&["fakeroot", "dpkg", "--log=/dev/null", &root], words].concat();
        run(&all.into_iter().map(String::from).collect::<Vec<_>>())
    };
    dpkg(&["--install", &package]);
    assert_version(&Path::new(&root).join("usr/bin/hull"));
    dpkg(&["--purge", "hull"]);
    assert!(!Path::new(&root).join("usr/bin/hull").exists());
}
