//! docker and hull, each with the same image and a folder of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use ::tar::EntryType;
use serde_json::json;

use super::daemon::Daemon;
use super::layout::{Layer, Layout};
use super::machine::{self, Finished, finish};

/// The image, by docker's name.
const IMAGE: &str = "beside:1";
/// Both of them.
pub struct Both {
    docker: Daemon,
    folder: tempfile::TempDir,
}

/// What each of both is expected to answer: its status, and words of its message.
pub type Answer<'a> = (i32, &'a str);

impl Both {
    /// docker has the image by `docker load`, and hull takes it from there.
    pub fn start(docker: Daemon) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let saved = busybox().saved(IMAGE);
        let both = Self { docker, folder };
        let mut load = both.docker.docker(&["load".into()]);
        load.current_dir(both.folder.path());
        assert_eq!(finish(load, &saved).status, Some(0));
        both
    }

    /// A path in the folder of the test.
    pub fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// The words of a line; IMAGE is how a command is run in the image.
    fn words(line: &[&str], image: &[&str]) -> Vec<String> {
        let words = line.iter().flat_map(|word| match *word {
            "IMAGE" => image.to_vec(),
            word => vec![word],
        });
        words.map(String::from).collect()
    }

    /// docker's answer to a line.
    pub fn docker(&self, line: &[&str], input: &[u8]) -> Finished {
        let image = ["--network", "none", IMAGE];
        let mut docker = self.docker.docker(&Self::words(line, &image));
        docker
            .current_dir(self.at("docker"))
            .env("GIVEN", "by the host");
        finish(docker, input)
    }

    /// hull's.
    pub fn hull(&self, line: &[&str], input: &[u8]) -> Finished {
        let from = format!("docker-daemon:{IMAGE}");
        let image = [
            "--network",
            "none",
            "-m",
            "128M",
            "--cpus",
            "1",
            "--image",
            &from,
            "--",
        ];
        let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
        hull.args(Self::words(line, &image))
            .current_dir(self.at("hull"));
        for (name, folder) in [
            ("HULL_CACHE", "cache"),
            ("HOME", "home"),
            ("XDG_RUNTIME_DIR", "run"),
            ("XDG_STATE_HOME", "state"),
            ("XDG_DATA_HOME", "data"),
        ] {
            hull.env(name, self.at(folder));
        }
        hull.envs(self.docker.surroundings())
            .env("GIVEN", "by the host");
        finish(hull, input)
    }

    /// Both have the same status and output, which is returned.
    #[track_caller]
    pub fn same_with(&self, line: &[&str], input: &[u8]) -> (i32, String) {
        let (docker, hull) = (self.docker(line, input), self.hull(line, input));
        let all = |it: &Finished| (it.status, it.stdout_text());
        let messages = format!("{line:?}\n{}{}", docker.stderr, hull.stderr);
        assert_eq!(all(&hull), all(&docker), "{messages}");
        (docker.status.expect("no signal"), docker.stdout_text())
    }

    /// Both have this status and output.
    #[track_caller]
    pub fn same(&self, line: &[&str], status: i32, stdout: &str) {
        assert_eq!(
            self.same_with(line, b""),
            (status, stdout.into()),
            "{line:?}"
        );
    }

    /// Both fail, and say why in these words: docker's on either stream, hull's on standard error.
    #[track_caller]
    pub fn fail(&self, line: &[&str], docker: Answer<'_>, hull: Answer<'_>) {
        let (dockers, hulls) = (self.docker(line, b""), self.hull(line, b""));
        let said = dockers.stdout_text() + &dockers.stderr;
        assert_eq!(dockers.status, Some(docker.0), "{line:?}: docker: {said}");
        assert!(said.contains(docker.1), "{line:?}: docker: {said}");
        assert_eq!(
            hulls.status,
            Some(hull.0),
            "{line:?}: hull: {}",
            hulls.stderr
        );
        assert!(
            hulls.stderr.contains(hull.1),
            "{line:?}: hull: {}",
            hulls.stderr
        );
    }
}

impl Drop for Both {
    /// Nothing runs on, also after a failure, and nothing stays in control groups.
    fn drop(&mut self) {
        for of in [Self::docker, Self::hull] {
            let there = of(self, &["ps", "-aq"], b"").stdout_text();
            let line = ["rm", "-f"].into_iter().chain(there.lines());
            of(self, &line.collect::<Vec<_>>(), b"");
        }
    }
}

/// An image of busybox.
fn busybox() -> Layout {
    let program = fs::read(machine::built("foreign/busybox")).expect("busybox");
    let folder = |layer: Layer, path: &str, mode| {
        layer.entry(EntryType::Directory, path, mode, (0, 0), "", b"")
    };
    let file = |layer: Layer, path: &str, mode, data: &[u8]| {
        layer.entry(EntryType::Regular, path, mode, (0, 0), "", data)
    };
    let users = b"root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n";
    let groups = b"root:x:0:\nwheel:x:10:root\nweb:x:1001:\nmore:x:55:web\n";
    let mut layer = Layer::new();
    for path in ["bin", "etc", "srv"] {
        layer = folder(layer, path, 0o755);
    }
    layer = folder(layer, "tmp", 0o1777);
    layer = file(layer, "bin/busybox", 0o755, &program);
    layer = file(layer, "etc/passwd", 0o644, users);
    layer = file(layer, "etc/group", 0o644, groups);
    for applet in [
        "cat", "echo", "env", "find", "grep", "hostname", "id", "ls", "mkfifo", "pwd", "sh",
        "sleep", "sort", "stat", "test", "touch", "true",
    ] {
        let path = format!("bin/{applet}");
        layer = layer.entry(EntryType::Symlink, &path, 0o777, (0, 0), "busybox", b"");
    }
    let config = json!({ "Env": ["A=image", "B=image"], "Cmd": ["echo", "by the image"] });
    Layout::new(vec![layer], config)
}
