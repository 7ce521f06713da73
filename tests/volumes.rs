//! Volumes, and disks for what a machine of an image writes, through the real binary: made, mounted, filled,
//! shared, kept and removed.

#[path = "images/layout.rs"]
mod layout;
mod machine;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ::tar::EntryType;
use layout::{Layer, Layout};
use machine::user::{Done, NOBODY, User, wait_until};
use machine::{built, kvm};
use rustix::process::geteuid;
use serde_json::{Value, json};

/// A user with an image, and with folders that are gone afterwards.
struct Home {
    folder: tempfile::TempDir,
    image: Layout,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["tmp", "run", "data", "state", "cache"] {
            fs::create_dir(folder.path().join(name)).expect("made");
        }
        Self {
            folder,
            image: image(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn hull(&self, arguments: &[&str]) -> Command {
        let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
        hull.args(arguments).stdin(Stdio::null());
        hull.env("HOME", self.folder.path())
            .env("TMPDIR", self.path("tmp"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("XDG_DATA_HOME", self.path("data"))
            .env("XDG_STATE_HOME", self.path("state"));
        // Without the images' folder: the templates of other tests will do.
        hull
    }

    fn run(&self, arguments: &[&str]) -> Done {
        let output = self.hull(arguments).output().expect("hull starts");
        Done {
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Run `script` in a machine of the image; what it prints.
    #[track_caller]
    fn sh(&self, flags: &[&str], script: &str) -> String {
        let done = self.machine(flags, script);
        assert_eq!(
            (done.status, &*done.stderr),
            (Some(0), ""),
            "{}",
            done.stdout
        );
        done.stdout
    }

    fn machine(&self, flags: &[&str], script: &str) -> Done {
        let image = self.image.path().to_str().expect("text");
        let shape = ["-m", "128M", "--cpus", "1", "--network", "none"];
        self.run(
            &[
                &["run", "--image", image][..],
                &shape,
                flags,
                &["--", script],
            ]
            .concat(),
        )
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], message: &str) {
        let done = self.run(arguments);
        assert_eq!(
            (done.status, &*done.stdout),
            (Some(125), ""),
            "{arguments:?}"
        );
        assert!(done.stderr.contains(message), "{}", done.stderr);
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.path("data/hull/volumes").join(name)
    }

    /// The fields of `hull volume inspect NAME`.
    fn inspect(&self, name: &str) -> Value {
        let done = self.run(&["volume", "inspect", name]);
        let found: Value = serde_json::from_str(&done.stdout).expect("JSON");
        found[0].clone()
    }
}

/// busybox, with a folder of several owners at /srv/data and a volume at /own.
fn image() -> Layout {
    let program = fs::read(built("foreign/busybox")).expect("busybox");
    let (file, folder, link) = (EntryType::Regular, EntryType::Directory, EntryType::Symlink);
    let mut layer = Layer::new()
        .entry(folder, "bin", 0o755, (0, 0), "", b"")
        .entry(file, "bin/busybox", 0o755, (0, 0), "", &program)
        .entry(folder, "srv/data", 0o2750, (70, 71), "", b"")
        .entry(file, "srv/data/file", 0o640, (7, 8), "", &[b'x'; 100_000])
        .entry(file, "srv/data/program", 0o4755, (0, 9), "", b"")
        .entry(link, "srv/data/link", 0o777, (5, 6), "no/where", b"")
        .entry(EntryType::Fifo, "srv/data/fifo", 0o600, (1, 2), "", b"")
        .entry(folder, "srv/data/folder", 0o1777, (3, 4), "", b"")
        .entry(
            file,
            "srv/data/folder/deep",
            0o600,
            (1000, 1000),
            "",
            b"deep",
        )
        .entry(folder, "tmp", 0o1777, (0, 0), "", b"");
    for applet in [
        "sh", "stat", "cat", "ls", "touch", "chown", "dd", "rm", "sync", "find", "sort", "sleep",
        "mkdir", "true",
    ] {
        let path = format!("bin/{applet}");
        layer = layer.entry(link, &path, 0o777, (0, 0), "busybox", b"");
    }
    let config = json!({ "Entrypoint": ["/bin/sh", "-c"], "Volumes": { "/own": {} } });
    Layout::new(vec![layer], config)
}

/// e2fsck finds nothing in the file system.
#[track_caller]
fn assert_whole(path: &Path) {
    let mut e2fsck = Command::new("e2fsck");
    e2fsck.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let output = e2fsck.arg("-fn").arg(path).output().expect("e2fsck runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
}

#[test]
fn a_volume_outlives_its_machines_with_all_owners() {
    if !kvm("volumes") {
        return;
    }
    let home = Home::new();
    let script = "stat -c '%n %F %a %u:%g %Y' $(find /srv/data | sort); stat -c %s /srv/data/file";
    let of_image = home.sh(&["--tmpfs", "/own"], script);
    assert!(
        of_image.contains("/srv/data/file regular file 640 7:8 1000000000\n"),
        "{of_image}"
    );
    // The same in a volume, which is filled; then it is changed as a database does at its start.
    let more = "chown -R 26:27 /srv/data && echo new > /srv/data/new
        dd if=/dev/zero of=/srv/data/big bs=1M count=4 2>/dev/null && sync && rm /srv/data/big
        touch /own/x && stat -f -c %T /own";
    let first = home.sh(&["-v", "data:/srv/data"], &format!("{script}\n{more}"));
    assert_eq!(first, format!("{of_image}ext2/ext3\n"));
    assert_whole(&home.volume("data"));
    let volume = home.inspect("data");
    assert_eq!(
        (&volume["bytes"], &volume["damaged"]),
        (&json!(64_u64 << 30), &Value::Null)
    );
    let used = volume["used_bytes"].as_u64().expect("a number");
    assert!(used < 3 << 20, "what was removed is given back: {used}");
    assert_eq!(fs::read_dir(home.path("tmp")).expect("a folder").count(), 0);

    // A machine in the background has it for itself.
    let flags = [
        "-d",
        "--name",
        "db",
        "-v",
        "data:/srv/data",
        "--disk-size",
        "100M",
    ];
    let script = "stat -c '%u:%g' /srv/data/file; cat /mark; echo marked > /mark; sync
        echo more > /srv/data/more; sync; echo ready; sleep 1000";
    let started = home.machine(&flags, script);
    assert_eq!(
        (started.status, &*started.stdout),
        (Some(0), "db\n"),
        "{}",
        started.stderr
    );
    let logs = || home.run(&["logs", "db"]).stdout;
    wait_until(|| logs().contains("ready"));
    assert_eq!(logs(), "26:27\nready\n");
    let other = home.machine(&["-v", "data:/x:ro"], "true");
    assert_eq!(other.status, Some(125));
    // By whom is not known where /proc/locks has other numbers of files than stat(2), as on an overlay.
    let message = "volume data is in use by";
    assert!(other.stderr.contains(message), "{}", other.stderr);
    home.refused(&["volume", "rm", "data"], message);
    let listed = home.run(&["volume", "ls"]).stdout;
    assert!(
        listed.contains("data") && listed.contains("64 GiB") && listed.contains("db"),
        "{listed}"
    );
    // Killed at once; the journal brings back what was synced, also for those who only read.
    assert_eq!(home.run(&["kill", "db"]).status, Some(0));
    assert_eq!(home.run(&["wait", "db"]).stdout, "137\n");
    home.refused(
        &["volume", "rm", "data"],
        "volume data belongs to db, which may be started again",
    );
    let script = "cat /srv/data/more; echo x 2>/dev/null > /srv/data/x || echo refused";
    let reader = home.sh(&["-v", "data:/srv/data:ro"], script);
    assert_eq!(reader, "more\nrefused\n");
    // Started again, it has what it wrote.
    assert_eq!(home.run(&["restart", "db"]).stdout, "db\n");
    wait_until(|| logs().contains("marked\nready"));
    assert_eq!(home.run(&["kill", "db"]).status, Some(0));
    home.run(&["wait", "db"]);
    assert!(home.path("state/hull/db/disk").exists());
    assert_eq!(home.run(&["rm", "db"]).status, Some(0));
    assert!(!home.path("state/hull/db").exists());
    let pruned = home.run(&["volume", "prune", "-af"]).stdout;
    assert!(
        pruned.starts_with("Deleted Volumes:\ndata\n\nTotal reclaimed space: "),
        "{pruned}"
    );
    assert!(!home.volume("data").exists());
}

/// Whether `uid` may make the namespaces of a jail.
fn may_jail(uid: u32) -> bool {
    let mut try_it = Command::new("unshare");
    try_it.args(["-U", "true"]).stderr(Stdio::null());
    if uid != geteuid().as_raw() {
        try_it.uid(uid);
    }
    uid == 0 || try_it.status().is_ok_and(|status| status.success())
}

#[test]
fn a_machine_is_saved_with_its_volume_and_goes_on_alone() {
    if !kvm("volumes") {
        return;
    }
    let (home, saved) = (Home::new(), tempfile::tempdir().expect("a folder"));
    let snapshot = saved.path().join("snapshot").display().to_string();
    let image = home.image.path().to_str().expect("text").to_string();
    let jail: &[&str] = if may_jail(geteuid().as_raw()) {
        &["--jail"]
    } else {
        &[]
    };
    let script = "echo new > /srv/data/new; sync; read x; cat /srv/data/new; stat -c %u /srv/data/file; exit 7";
    let run = [
        "run", "--name", "first", "--image", &image, "-m", "128M", "--cpus", "1",
    ];
    let more = [
        "--network",
        "none",
        "--tmpfs",
        "/own",
        "-v",
        "data:/srv/data",
        "--",
        script,
    ];
    let spawn = |arguments: &[&str]| {
        let mut hull = home.hull(arguments);
        let hull = hull
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        hull.spawn().expect("hull starts")
    };
    let first = spawn(&[&run[..], jail, &more].concat());
    let has_new = || home.run(&["exec", "first", "cat", "/srv/data/new"]).stdout == "new\n";
    wait_until(has_new);
    let done = home.run(&["snapshot", "--stop", "first", &snapshot]);
    assert_eq!((done.status, &*done.stderr), (Some(0), ""));
    first.wait_with_output().expect("an end");
    // One restored machine has the volume, and no other.
    let mut again = spawn(&["restore", &snapshot, "--name", "again"]);
    wait_until(|| home.run(&["exec", "again", "true"]).status == Some(0));
    home.refused(&["restore", &snapshot], "data");
    let other = home.machine(&["-v", "data:/srv/data"], "true");
    assert_eq!(other.status, Some(125));
    assert!(
        other.stderr.contains("volume data is in use by"),
        "{}",
        other.stderr
    );
    again
        .stdin
        .take()
        .expect("a pipe")
        .write_all(b"go\n")
        .expect("read");
    let output = again.wait_with_output().expect("an end");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        (output.status.code(), &*output.stdout),
        (Some(7), &b"new\n7\n"[..]),
        "{errors}"
    );
    // It has written since.
    home.refused(
        &["restore", &snapshot],
        "written to since the snapshot was taken",
    );
    assert_whole(&home.volume("data"));
}

#[test]
fn a_plain_user_has_volumes_with_all_owners_in_a_jail_or_not() {
    if !kvm("volumes") {
        return;
    }
    let (user, image, own) = (User::new(), image(), geteuid().as_raw());
    let uid = if own == 0 { NOBODY } else { own };
    let home = user.0.path();
    let run = |command: &mut Command| assert!(command.status().expect("it runs").success());
    run(Command::new("cp")
        .arg("-r")
        .arg(image.path())
        .arg(home.join("image")));
    if own == 0 {
        run(Command::new("chown")
            .args(["-R", &uid.to_string()])
            .arg(home));
    }
    let (hull, shown) = (env!("CARGO_BIN_EXE_hull"), home.display());
    let machine = |flags: &str, script: &str| {
        let script = format!(
            "exec {hull} run --image {shown}/image -m 128M --cpus 1 --network none {flags} -- \"{script}\""
        );
        let mut shell = user.shell_of(uid, &script);
        shell
            .env("HOME", home)
            .env("TMPDIR", home)
            .env_remove("HULL_CACHE");
        for name in ["XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"] {
            shell.env_remove(name);
        }
        machine::finish(shell, b"")
    };
    let script = "chown 5:4294967294 /srv/data/file; stat -c %u:%g:%a /srv/data /srv/data/program";
    let first = machine("-v data:/srv/data", script);
    first.assert(0, "70:71:2750\n0:9:4755\n", "");
    if !may_jail(uid) {
        return println!("left out: a jail without root: this host forbids user namespaces");
    }
    let script = "stat -c %u:%g /srv/data/file; echo x > /own/x; echo y > /y; cat /own/x /y";
    let jailed = machine("--jail --disk-size 50M -v data:/srv/data", script);
    jailed.assert(0, "5:4294967294\nx\ny\n", "");
    let volume = home.join(".local/share/hull/volumes/data");
    assert_eq!(fs::metadata(&volume).expect("a file").uid(), uid);
    assert_whole(&volume);
}

#[test]
fn volumes_are_made_listed_and_removed_as_docker_does() {
    let home = Home::new();
    let ok = |arguments: &[&str], stdout: &str| {
        let done = home.run(arguments);
        assert_eq!(
            (done.status, &*done.stdout, &*done.stderr),
            (Some(0), stdout, ""),
            "{arguments:?}"
        );
    };
    ok(&["volume", "create", "one"], "one\n");
    ok(&["volume", "create", "--size", "10M", "two"], "two\n");
    // Again.
    ok(&["volume", "create", "two"], "two\n");
    ok(&["volume", "create", "--size", "10M", "two"], "two\n");
    home.refused(
        &["volume", "create", "--size", "20M", "two"],
        "volume two is there and has 10 MiB",
    );
    ok(&["volume", "ls", "-q"], "one\ntwo\n");
    let unnamed = home.run(&["volume", "create", "--size", "8M"]).stdout;
    assert_eq!(unnamed.trim().len(), 64);
    ok(&["volume", "rm", unnamed.trim()], &unnamed);
    ok(&["volume", "rm", "-f", "none"], "");
    home.refused(
        &["volume", "rm", "none"],
        "there is no volume none; hull volume ls lists them",
    );
    home.refused(&["volume", "inspect", "none"], "there is no volume none");
    for name in ["a", "-a", "../two", "a b", "ä1", ".hidden"] {
        let done = home.run(&["volume", "create", "--size", "8M", "--", name]);
        assert_eq!(done.status, Some(125), "{name}");
        assert!(
            done.stderr.contains("is no name of a volume"),
            "{}",
            done.stderr
        );
    }
    assert_whole(&home.volume("one"));
    let about = fs::metadata(home.volume("one")).expect("a file");
    assert!(about.len() == 64 << 30 && about.blocks() * 512 < 2 << 20);
    assert_eq!(about.mode() & 0o777, 0o600);
    ok(&["volume", "prune", "-f"], "Total reclaimed space: 0 B\n");
    ok(&["volume", "ls", "-q"], "one\ntwo\n");
}

#[test]
fn a_disk_that_cannot_be_is_refused_by_name() {
    let home = Home::new();
    let image = home.image.path().to_str().expect("text").to_string();
    let run = |flags: &[&str]| {
        let all = [&["run", "--image", &image][..], flags, &["--", "true"]].concat();
        let done = home.run(&all);
        assert_ne!(done.status, Some(0), "{flags:?}");
        done.stderr
    };
    for size in ["0", "1M", "17T", "x", "-1"] {
        let message = run(&[&format!("--disk-size={size}")]);
        assert!(message.contains("it has 8M to 16T"), "{message}");
    }
    let message = run(&["--disk-size", "16T"]);
    assert!(
        message.contains("--disk-size: 16 TiB is more than the file system of"),
        "{message}"
    );
    let message = run(&["-v", "x:/y"]);
    assert!(message.contains("2 to 255 letters"), "{message}");
    let message = run(&["-v", "data:/y", "-v", "data:/z"]);
    assert!(
        message.contains("a machine has a volume at one path only"),
        "{message}"
    );
    let message = run(&["-v", "data:/y", "-v", "more:/y"]);
    assert!(
        message.contains("something else is mounted there, too"),
        "{message}"
    );
    fs::write(home.volume("broken"), vec![0; 1 << 20]).expect("written");
    let message = run(&["-v", "broken:/y"]);
    assert!(
        message.contains("broken: it holds no ext4; e2fsck -f may repair it"),
        "{message}"
    );
    let cut = fs::File::options()
        .write(true)
        .open(home.volume("data"))
        .expect("a volume");
    cut.set_len(1 << 20).expect("cut");
    let message = run(&["-v", "data:/y"]);
    assert!(
        message.contains("its ext4 has 68719476736 bytes and the file 1048576"),
        "{message}"
    );
    let listed = home.run(&["volume", "ls"]).stdout;
    assert_eq!(listed.matches("damaged").count(), 2, "{listed}");
    assert_eq!(fs::read_dir(home.path("tmp")).expect("a folder").count(), 0);
}
