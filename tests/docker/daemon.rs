//! A dockerd of the test's own, and the program `docker` that asks it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::geteuid;

/// How long it may take to start.
const START: Duration = Duration::from_secs(30);
/// The oldest version whose answers are those that are compared.
const OLDEST: u32 = 20;

/// It has process IDs and mounts of its own, so that nothing of it stays, however it or the test ends.
pub struct Daemon {
    folder: tempfile::TempDir,
    program: Child,
    docker: PathBuf,
}

impl Daemon {
    /// Start it.
    ///
    /// # Errors
    /// Why there is none here.
    pub fn start() -> Result<Self, String> {
        if !geteuid().is_root() {
            return Err("a dockerd takes root".into());
        }
        let dockerd =
            find(&["/usr/sbin", "/usr/bin"], "dockerd").ok_or("no dockerd is installed")?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let at = |name: &str| folder.path().join(name);
        let log = fs::File::create(at("log")).map_err(|error| error.to_string())?;
        let mut program = Command::new("setpriv");
        program.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
        ]);
        program.args(["--kill-child", "--mount-proc"]).arg(dockerd);
        program.arg("--data-root").arg(at("data"));
        program.arg("--exec-root").arg(at("exec"));
        program.arg("--pidfile").arg(at("pid"));
        program.arg("--host").arg(socket(folder.path()));
        // No file of this machine's, and no change of its network.
        program.arg("--config-file").arg(at("config.json"));
        program.args(["--storage-driver", "vfs", "--bridge", "none"]);
        program.args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
        program.args(["--cgroup-parent", &control_group()]);
        program.args([
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
        ]);
        fs::write(at("config.json"), "{}").map_err(|error| error.to_string())?;
        let program = program
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let program = program
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let docker = PathBuf::new();
        let mut daemon = Self {
            folder,
            program,
            docker,
        };
        daemon.wait()?;
        daemon.docker = daemon
            .client()
            .ok_or("no docker of version 20 or newer is installed")?;
        Ok(daemon)
    }

    fn wait(&mut self) -> Result<(), String> {
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.folder.path().join("socket")).is_err() {
            let ended = self.program.try_wait().is_ok_and(|status| status.is_some());
            if ended || start.elapsed() > START {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                let last = log.lines().last().unwrap_or("it says nothing");
                return Err(format!("dockerd does not start: {last}"));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The first program `docker` that is docker's.
    fn client(&self) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = [PathBuf::from("/usr/bin")]
            .into_iter()
            .chain(env::split_paths(&path));
        let mut programs = folders.map(|folder| folder.join("docker"));
        programs.find(|docker| {
            let mut version = Command::new(docker);
            version.arg("-H").arg(socket(self.folder.path()));
            version.args(["version", "--format", "{{.Client.Version}}"]);
            let output = version.stdin(Stdio::null()).output();
            let text = output.map(|it| it.stdout).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let major = text.split('.').next().and_then(|it| it.trim().parse().ok());
            major.is_some_and(|major: u32| major >= OLDEST)
        })
    }

    /// `docker` with these arguments.
    pub fn docker(&self, arguments: &[String]) -> Command {
        let mut docker = Command::new(&self.docker);
        docker
            .arg("-H")
            .arg(socket(self.folder.path()))
            .args(arguments);
        // No account and no settings of the user's.
        docker.env("DOCKER_CONFIG", self.folder.path());
        docker
    }

    /// The variables with which another program finds it and its client.
    pub fn surroundings(&self) -> [(&'static str, OsString); 2] {
        let folder = self.docker.parent().unwrap_or(Path::new("/usr/bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(
            [folder.to_path_buf()]
                .into_iter()
                .chain(env::split_paths(&path)),
        );
        [
            ("DOCKER_HOST", socket(self.folder.path())),
            ("PATH", path.unwrap_or_default()),
        ]
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
        // cgroup 2, and the hierarchies of cgroup 1.
        let all = PathBuf::from("/sys/fs/cgroup");
        let each = fs::read_dir(&all).into_iter().flatten().flatten();
        for hierarchy in each.map(|entry| entry.path()).chain([all]) {
            remove(&hierarchy.join(control_group().trim_start_matches('/')));
        }
    }
}

/// Of its containers.
fn control_group() -> String {
    format!("/hull-test-{}", std::process::id())
}

/// Remove the control group, which has no process, and those in it.
fn remove(group: &Path) {
    let inner = fs::read_dir(group).into_iter().flatten().flatten();
    let folders = inner.map(|entry| entry.path()).filter(|path| path.is_dir());
    folders.for_each(|path| remove(&path));
    let _ = fs::remove_dir(group);
}

fn socket(folder: &Path) -> OsString {
    let mut text = OsString::from("unix://");
    text.push(folder.join("socket"));
    text
}

fn find(folders: &[&str], name: &str) -> Option<PathBuf> {
    let mut paths = folders.iter().map(|folder| Path::new(folder).join(name));
    paths.find(|path| path.exists())
}
