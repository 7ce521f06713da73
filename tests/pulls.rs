//! Pulls that must fail, and where else an image comes from: full disks, mirrors, too many files, ports that
//! are taken.

#[path = "images/layout.rs"]
mod layout;
mod machine;
#[path = "images/registry.rs"]
mod registry;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use ::tar::{EntryType, Header};
use layout::{Layer, Layout};
use machine::user::User;
use machine::{Finished, finish, kvm};
use registry::{Answer, Registry};
use rustix::process::geteuid;
use serde_json::json;

/// An image of two layers, the second with a file of this size.
fn image(bytes: usize) -> Layout {
    let layer = |path: &str, data: &[u8]| {
        Layer::new().entry(EntryType::Regular, path, 0o644, (0, 0), "", data)
    };
    let layers = vec![layer("small", b"x"), layer("large", &vec![0; bytes])];
    Layout::new(layers, json!({ "Cmd": ["/bin/sh"] }))
}

/// `program` with a store and a home in `folder`.
fn in_folder(program: impl AsRef<std::ffi::OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    for name in ["HULL_CACHE", "HOME", "DOCKER_CONFIG"] {
        command.env(name, folder);
    }
    for name in ["HULL_MIRRORS", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"] {
        command.env_remove(name);
    }
    command
}

const HULL: &str = env!("CARGO_BIN_EXE_hull");

#[test]
fn a_pull_to_a_full_disk_leaves_nothing_half() {
    let (folder, layout) = (tempfile::tempdir().expect("a folder"), image(4 << 20));
    let registry = Registry::start(&layout);
    let script = "set -e; mount -t tmpfs -o size=1m none \"$HULL_CACHE\"
        status=0; \"$@\" || status=$?
        find \"$HULL_CACHE\" -type f; exit $status";
    let mut full = in_folder("unshare", folder.path());
    full.arg(if geteuid().is_root() { "-m" } else { "-rm" });
    full.args(["sh", "-c", script, "sh", HULL, "pull", "--insecure"]);
    full.arg(registry.name("app"));
    let full = finish(full, b"");
    if full.stderr.starts_with("unshare: ") {
        println!("skipped: a full disk: {}", full.stderr);
        return;
    }
    assert_eq!(full.status, Some(125), "{}", full.stderr);
    let why = format!(
        "the disk with {}/images is full; hull rmi",
        folder.path().display()
    );
    assert!(full.stderr.contains(&why), "{}", full.stderr);
    let left = full.stdout_text();
    for half in ["/names/", "/partial/", "/roots/"] {
        assert!(!left.contains(half), "{left}");
    }
}

#[test]
fn mirrors_are_asked_in_their_order_and_the_origin_last() {
    let layout = image(10);
    let [empty, mirror] = [(); 2].map(|()| Registry::start(&layout));
    empty.always("manifests", Answer::Status(404));
    let url = |it: &Registry| format!("http://{}/", it.name("").trim_end_matches('/'));
    let pull = |program: &[&str], mirrors: &[String]| -> Finished {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = in_folder(program[0], folder.path());
        command.args(&program[1..]).args(["pull", "fleet/app:1"]);
        finish(command_with(command, mirrors), b"")
    };
    // One is down, one has it not; the name stays docker.io's.
    let down = String::from("http://localhost:1");
    let all = [down.clone(), url(&empty), url(&mirror)];
    pull(&[HULL], &all).assert(0, "docker.io/fleet/app:1\n", "");
    assert!(
        empty
            .seen()
            .iter()
            .any(|it| it.contains("/v2/fleet/app/manifests/1"))
    );
    assert!(
        mirror
            .seen()
            .iter()
            .any(|it| it.contains("layer /v2/fleet/app/blobs/"))
    );
    if !geteuid().is_root() {
        return println!("left out: the origin: a machine without a network takes root");
    }
    // Without a network none is reached.
    let refused = pull(&["unshare", "--net", HULL], &[down]);
    assert_eq!(refused.status, Some(125));
    let why = "image fleet/app:1: the registry docker.io: there is no host of this name";
    assert!(refused.stderr.contains(why), "{}", refused.stderr);
}

fn command_with(mut command: Command, mirrors: &[String]) -> Command {
    command.env("HULL_MIRRORS", mirrors.join(" "));
    command
}

/// One more than a million, which is what the index has room for; it comes as a stream.
#[test]
fn an_image_of_too_many_files_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut header = Header::new_gnu();
    header.set_path("file").expect("a short path");
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_cksum();
    let thousand = header.as_bytes().repeat(1000);
    let mut hull = in_folder(HULL, folder.path());
    hull.args(["pull", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let mut hull = hull.spawn().expect("hull starts");
    let mut input = hull.stdin.take().expect("a pipe");
    for _ in 0..1001 {
        input.write_all(&thousand).expect("hull reads all");
    }
    input.write_all(&[0; 1024]).expect("the end of an archive");
    drop(input);
    let output = hull.wait_with_output().expect("an end");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(
        stderr.contains("layer 1: the image has more than 1000000 files"),
        "{stderr}"
    );
    for half in ["names", "partial", "roots"] {
        let left = fs::read_dir(folder.path().join("images").join(half));
        assert_eq!(left.into_iter().flatten().count(), 0, "{half}");
    }
}

#[test]
fn a_published_port_that_is_taken_is_named_and_no_machine_stays() {
    if !kvm("a taken port") {
        return;
    }
    if machine::in_lab() || !Path::new("/usr/bin/passt").exists() {
        return println!("skipped: a taken port: passt cannot run here");
    }
    let (user, layout) = (User::new(), image(10));
    let taken = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let publish = format!("{port}:80");
    let image = layout.path().display().to_string();
    for detached in [&["run"][..], &["run", "-d"]] {
        let flags = [
            "--name", "web", "-m", "128M", "--cpus", "1", "-p", &publish, "--image", &image,
        ];
        let mut hull = user.hull(&[detached, &flags].concat());
        hull.env("HULL_CACHE", user.0.path().join("cache"));
        let refused = finish(hull, b"");
        assert_eq!(refused.status, Some(125));
        assert!(
            refused.stderr.contains(&port.to_string()),
            "{}",
            refused.stderr
        );
        assert_eq!(user.run(&["ps", "-aq"]).stdout, "");
    }
}
