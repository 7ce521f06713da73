//! Images: an OCI layout that the test writes itself, run, listed, removed and pulled, through the real
//! binary. No registry but those of the test is asked.

#[path = "images/layout.rs"]
mod layout;
mod machine;
#[path = "images/registry.rs"]
mod registry;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use ::tar::EntryType;
use layout::{Layer, Layout};
use machine::{Finished, finish, kvm};
use registry::{Answer, Registry};
use serde_json::{Value, json};

/// A store of images and a cache of templates that are gone afterwards.
struct Store(tempfile::TempDir);

impl Store {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn hull(&self, arguments: &[&str]) -> Finished {
        self.hull_with(arguments, b"")
    }

    fn hull_with(&self, arguments: &[&str], input: &[u8]) -> Finished {
        let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
        hull.env("HULL_CACHE", self.0.path());
        // No account of the user's.
        hull.env("DOCKER_CONFIG", self.0.path())
            .env("HOME", self.0.path());
        hull.env_remove("XDG_RUNTIME_DIR")
            .env_remove("REGISTRY_AUTH_FILE");
        hull.args(arguments);
        finish(hull, input)
    }

    /// All files of the store, but the lock.
    fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        for folder in ["configs", "layers", "names", "partial", "roots"] {
            let entries = fs::read_dir(self.0.path().join("images").join(folder));
            let entries = entries.into_iter().flatten().flatten();
            found
                .extend(entries.map(|it| format!("{folder}/{}", it.file_name().to_string_lossy())));
        }
        found
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// An image of busybox in two layers, with a little of everything.
fn busybox() -> Layout {
    let program = fs::read(machine::built("foreign/busybox")).expect("busybox");
    let mut below = Layer::new()
        .entry(EntryType::Directory, "bin", 0o755, (0, 0), "", b"")
        .entry(
            EntryType::Regular,
            "bin/busybox",
            0o755,
            (0, 0),
            "",
            &program,
        )
        .entry(EntryType::Directory, "etc", 0o755, (0, 0), "", b"")
        .entry(
            EntryType::Regular,
            "etc/passwd",
            0o644,
            (0, 0),
            "",
            b"root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n",
        )
        .entry(
            EntryType::Regular,
            "etc/group",
            0o644,
            (0, 0),
            "",
            b"web:x:1001:\nmore:x:55:web\naudio:x:63:\n",
        )
        .entry(EntryType::Directory, "tmp", 0o1777, (0, 0), "", b"")
        .entry(EntryType::Regular, "gone", 0o644, (0, 0), "", b"x")
        .entry(EntryType::Regular, "opaque/low", 0o644, (0, 0), "", b"x")
        .entry(
            EntryType::Regular,
            "data",
            0o640,
            (7, 8),
            "",
            &[b'd'; 100_000],
        );
    for applet in [
        "sh",
        "stat",
        "cat",
        "id",
        "ls",
        "touch",
        "env",
        "sha256sum",
        "grep",
        "readlink",
    ] {
        below = below.entry(
            EntryType::Symlink,
            &format!("bin/{applet}"),
            0o777,
            (0, 0),
            "busybox",
            b"",
        );
    }
    let above = Layer::new()
        .entry(EntryType::Regular, ".wh.gone", 0o644, (0, 0), "", b"")
        .entry(
            EntryType::Regular,
            "opaque/.wh..wh..opq",
            0o644,
            (0, 0),
            "",
            b"",
        )
        .entry(
            EntryType::Regular,
            "opaque/high",
            0o644,
            (0, 0),
            "",
            b"high",
        )
        .entry(EntryType::Link, "data2", 0o640, (7, 8), "data", b"")
        .entry(EntryType::Regular, "setuid", 0o4755, (0, 0), "", b"x");
    let config = json!({
        "Env": ["A=image", "B=image"],
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["echo from the image"],
        "User": "web",
        "WorkingDir": "/srv/app",
        "StopSignal": "SIGUSR1",
        "ExposedPorts": {"8080/tcp": {}},
    });
    Layout::new(vec![below, above], config)
}

/// What the command in the guest prints, and what it must print.
const CHECKS: &[(&str, &str)] = &[
    (
        "id",
        "uid=1000(web) gid=1001(web) groups=55(more),63(audio),77,1001(web)",
    ),
    (
        "cat /etc/resolv.conf",
        "nameserver 10.9.8.7\nsearch example.org\noptions ndots:2",
    ),
    ("readlink /proc/self/cwd", "/srv/app"),
    ("echo $A $B $HOSTNAME $HOME", "user image box /home/web"),
    ("ls -d /gone 2>/dev/null", ""),
    ("ls /opaque", "high"),
    ("cat /opaque/high", "high"),
    (
        "stat -c '%a %u %g %h %s %Y' /data",
        "640 7 8 2 100000 1000000000",
    ),
    ("stat -c '%a %u' /setuid", "4755 0"),
    ("stat -c %t,%T,%a /dev/null", "1,3,666"),
    ("cat /etc/hostname", "box"),
    ("grep -c localhost /etc/hosts", "2"),
    ("grep box /etc/hosts", "127.0.1.1\tbox"),
    ("grep db /etc/hosts", "10.1.2.3\tdb"),
    ("touch /tmp/x && echo written", "written"),
    (
        "grep ^CapBnd /proc/self/status",
        "CapBnd:\t00000000a80435fa",
    ),
    ("touch /run/x 2>/dev/null && echo memory", "memory"),
    ("cat /shared/file", "of the host"),
];

#[test]
fn an_image_runs_as_an_engine_runs_it() {
    if !kvm("an image") {
        return;
    }
    let (store, layout, shared) = (
        Store::new(),
        busybox(),
        tempfile::tempdir().expect("a folder"),
    );
    fs::write(shared.path().join("file"), "of the host").expect("written");
    let script: String = CHECKS
        .iter()
        .map(|(command, _)| format!("printf '%s|\\n' \"$({command})\"\n"))
        .collect();
    let volume = format!("{}:/shared:ro", text(shared.path()));
    let flags = ["-m", "128M", "--cpus", "1", "--network", "none"];
    let more = [
        &[
            "run",
            "--image",
            text(layout.path()),
            "-e",
            "A=user",
            "--hostname",
            "box",
        ][..],
        &[
            "--group-add",
            "audio",
            "--group-add",
            "77",
            "--cap-add",
            "CAP_NET_ADMIN",
            "--cap-drop",
            "chown",
        ],
        &[
            "--dns",
            "10.9.8.7",
            "--dns-search",
            "example.org",
            "--dns-option",
            "ndots:2",
        ],
        &[
            "--add-host",
            "db:10.1.2.3",
            "--tmpfs",
            "/run:mode=1777",
            "-v",
            &volume,
        ],
        &flags,
        &["--", &script],
    ];
    let finished = store.hull(&more.concat());
    assert_eq!((finished.status, &*finished.stderr), (Some(0), ""));
    let meant: String = CHECKS
        .iter()
        .map(|(_, text)| format!("{text}|\n"))
        .collect();
    assert_eq!(finished.stdout_text(), meant);
    // The same machine again, from the template of the first: the image is no part of it.
    let base = [&["run", "--image", text(layout.path())][..], &flags].concat();
    let again = store.hull(&base);
    again.assert(0, "from the image\n", "");
    let read_only = [
        &base[..],
        &[
            "--read-only",
            "-u",
            "0",
            "--entrypoint",
            "/bin/touch",
            "--",
            "/x",
        ],
    ];
    let finished = store.hull(&read_only.concat());
    assert_eq!(finished.status, Some(1), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("Read-only file system"),
        "{}",
        finished.stderr
    );
    let unknown = [&base[..], &["--group-add", "nogroup", "--", "true"]].concat();
    store.hull(&unknown).assert(
        125,
        "",
        "hull: guest: unable to find group nogroup: no matching entries in group file\n",
    );
    let unknown = [&base[..], &["--cap-add", "FLY"]].concat();
    let finished = store.hull(&unknown);
    assert_eq!(finished.status, Some(125));
    assert!(
        finished.stderr.contains("unknown capability"),
        "{}",
        finished.stderr
    );
    in_the_background(&store, text(layout.path()));
}

/// Its exposed port is published where a network can be, and it is stopped by the image's signal.
fn in_the_background(store: &Store, image: &str) {
    let name = format!("image-{}", std::process::id());
    let shape = ["-m", "128M", "--cpus", "1"];
    let begin = [
        "run",
        "-d",
        "--name",
        &name,
        "--group-add",
        "audio",
        "--image",
        image,
    ];
    let published = !machine::in_lab() && Path::new("/usr/bin/passt").exists();
    let network: &[&str] = match published {
        true => &["-P", "--expose", "53/udp", "-p", "8081"],
        false => &["--network", "none"],
    };
    let script = "busybox httpd -p 8081 -h /etc; trap 'echo by the image; exit 4' USR1; echo up; while :; do busybox sleep 1; done";
    let started = store.hull(&[&begin[..], &shape, network, &["--", script]].concat());
    started.assert(0, &format!("{name}\n"), "");
    if published {
        let ports = store.hull(&["port", &name]);
        let ports = ports.stdout_text();
        let of = |port: &str| {
            let mut lines = ports.lines();
            lines
                .find_map(|line| line.strip_prefix(port)?.strip_prefix(" -> "))
                .map(String::from)
        };
        let tcp = of("8080/tcp").unwrap_or_else(|| panic!("{ports:?}"));
        assert!(of("53/udp").is_some(), "{ports:?}");
        let one = store.hull(&["port", &name, "8080"]);
        assert_eq!(one.stdout_text(), format!("{tcp}\n"));
        TcpStream::connect(&tcp).expect("it is listened on");
    }
    machine::user::wait_until(|| store.hull(&["logs", &name]).stdout_text() == "up\n");
    // Another user of it has the groups of --group-add, too.
    for (user, meant) in [
        (
            &[][..],
            "uid=1000(web) gid=1001(web) groups=55(more),63(audio),1001(web)\n",
        ),
        (&["-u", "0"], "uid=0(root) gid=0 groups=0,63(audio)\n"),
    ] {
        let exec = [&["exec"][..], user, &[&name, "id"]].concat();
        store.hull(&exec).assert(0, meant, "");
    }
    if published {
        let chosen = store.hull(&["port", &name, "8081"]).stdout_text();
        let answer = get(chosen.trim_end(), "/passwd");
        assert!(
            answer.contains(" 200 OK") && answer.contains("web:x:1000"),
            "{answer}"
        );
    }
    assert_eq!(store.hull(&["stop", &name]).status, Some(0));
    assert_eq!(store.hull(&["wait", &name]).stdout_text(), "4\n");
    let log = store.hull(&["logs", &name]);
    // The shell may say on standard error that the signal ended its sleep, too.
    assert_eq!(log.stdout_text(), "up\nby the image\n");
    assert_eq!(store.hull(&["rm", &name]).status, Some(0));
}

/// What an HTTP server on a port of this host answers.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it is listened on");
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// An image that no machine is made of.
fn small(name: &str) -> Layout {
    let entry = |layer: Layer, path: &str| {
        layer.entry(
            EntryType::Regular,
            path,
            0o644,
            (0, 0),
            "",
            &[name.len() as u8; 60_000],
        )
    };
    let layers = vec![entry(Layer::new(), "shared"), entry(Layer::new(), name)];
    Layout::new(layers, json!({ "Cmd": ["/bin/sh"] }))
}

#[test]
fn images_are_listed_and_removed() {
    let (store, layout) = (Store::new(), small("a"));
    let empty = store.hull(&["images"]);
    empty.assert(0, "", "hull: no images yet\n");
    let pulled = store.hull(&["pull", text(layout.path())]);
    pulled.assert(0, &format!("{}\n", text(layout.path())), "");
    let listed = store.hull(&["images", "--json"]);
    let images: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert_eq!(images[0]["layers"], 2);
    let id = images[0]["id"].as_str().expect("an ID");
    let shown = store.hull(&["image", "inspect", &id[7..15]]);
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    assert_eq!(shown[0]["configuration"]["config"]["Cmd"][0], "/bin/sh");
    // By standard input, as `docker save` gives it: the same image under its own name.
    let saved = layout.saved("user/app:1");
    let named = store.hull_with(&["pull", "-"], &saved);
    named.assert(0, "docker.io/user/app:1\n", "");
    assert_eq!(
        store
            .files()
            .iter()
            .filter(|it| it.starts_with("layers/"))
            .count(),
        2
    );
    store.hull(&["rmi", text(layout.path())]);
    assert!(!store.files().iter().any(|it| it.starts_with("partial/")));
    let listed = store.hull(&["images"]).stdout_text();
    assert!(
        listed.contains("docker.io/user/app:1") && listed.contains(&id[7..19]),
        "{listed}"
    );
    store
        .hull(&["rmi", &id[7..]])
        .assert(0, "docker.io/user/app:1\n", "");
    assert!(store.files().is_empty(), "{:?}", store.files());
    let gone = store.hull(&["rmi", "user/app:1"]);
    assert_eq!(gone.status, Some(125));
    assert!(
        gone.stderr.contains("there is no image user/app:1"),
        "{}",
        gone.stderr
    );
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let store = Store::new();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "no archive").expect("written");
    let other = small("a").for_platform("arm64");
    let damaged = small("b");
    damaged.damage();
    for (text, why) in [
        ("Not-A-Name", "lower case"),
        ("a:b:c", "no tag"),
        ("/no/such/folder", "No such file"),
        (text(&file), "cut short"),
        (text(other.path()), "linux/arm64, and hull runs linux/amd64"),
        (text(damaged.path()), "damaged or was replaced"),
        (
            "docker-daemon:none-such-image",
            "image docker-daemon:none-such-image",
        ),
        ("localhost:1/app", "registry localhost:1"),
    ] {
        let refused = store.hull(&["run", "--image", text]);
        assert_eq!(refused.status, Some(125), "{text}");
        assert!(refused.stderr.contains(why), "{text}: {}", refused.stderr);
    }
    let unknown = store.hull(&["run", "--pull", "never", "--image", "alpine"]);
    assert!(
        unknown.stderr.contains("hull pull gets one"),
        "{}",
        unknown.stderr
    );
    let left = store.files();
    let half = |it: &String| it.starts_with("names/") || it.starts_with("partial/");
    assert!(!left.iter().any(half), "{left:?}");
}

#[test]
fn a_registry_gives_an_image_to_who_has_a_token() {
    let (store, layout) = (Store::new(), small("a"));
    let registry = Registry::start(&layout);
    let name = registry.name("app");
    let pull = ["pull", "--insecure", &name];
    let plain = store.hull(&["pull", &name]);
    assert_eq!(plain.status, Some(125), "it has no TLS");
    registry.answer("/v2/", Answer::Token);
    // The first layer breaks off twice, the second time before its first byte.
    registry.answer("layer", Answer::Break(100));
    registry.answer("layer", Answer::Break(0));
    registry.answer("layer", Answer::Busy(429, Some(0)));
    let pulled = store.hull(&pull);
    pulled.assert(0, &format!("{name}:latest\n"), "");
    assert!(
        registry
            .seen()
            .iter()
            .any(|it| it.contains("range: bytes=")),
        "it goes on"
    );
    let before = registry.seen().len();
    store.hull(&pull).assert(0, &format!("{name}:latest\n"), "");
    let again = registry.seen().split_off(before);
    assert!(
        !again.iter().any(|it| it.contains("layer")),
        "layers are here: {again:?}"
    );
}

#[test]
fn a_registry_that_lies_or_fails_is_named() {
    let layout = small("a");
    for (what, answer, why) in [
        ("manifests", Answer::Status(404), "it has no localhost"),
        ("manifests", Answer::Status(403), "docker login"),
        ("manifests", Answer::Busy(429, Some(3600)), "3600 seconds"),
        (
            "manifests",
            Answer::Body(b"{\"layers\": 5}".to_vec()),
            "manifest cannot be read",
        ),
        ("manifests", Answer::Long(1 << 30), "more than 8 MiB"),
        ("manifests", Answer::Redirect, "redirects more than 5 times"),
        (
            "config",
            Answer::Body(b"{}".to_vec()),
            "damaged or was replaced",
        ),
        ("layer", Answer::Changed, "damaged or was replaced"),
        ("layer", Answer::Status(404), "a layer"),
        ("layer", Answer::Long(1 << 20), "more than the"),
        (
            "manifests",
            Answer::Body(other_platforms()),
            "linux/arm64, windows/amd64, and hull runs linux/amd64",
        ),
    ] {
        let (store, registry) = (Store::new(), Registry::start(&layout));
        registry.always(what, answer);
        let refused = store.hull(&["pull", "--insecure", &registry.name("app")]);
        assert_eq!(refused.status, Some(125), "{why}");
        assert!(refused.stderr.contains(why), "{why}: {}", refused.stderr);
        let left = store.files();
        assert!(
            !left.iter().any(|it| it.starts_with("names/")),
            "{why}: {left:?}"
        );
    }
}

/// An index without this computer's platform.
fn other_platforms() -> Vec<u8> {
    let of = |os: &str, architecture: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{}", "0".repeat(64)),
            "size": 5,
            "platform": { "os": os, "architecture": architecture },
        })
    };
    let manifests = [of("linux", "arm64"), of("windows", "amd64")];
    json!({ "schemaVersion": 2, "manifests": manifests })
        .to_string()
        .into_bytes()
}
