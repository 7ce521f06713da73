//! What a run of the bench works with: all of it in one folder, in memory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::Process;
use super::{Result, guest};

pub const MEMORY_MIB: u64 = 128;

/// The folder. hull has its cache, its records and its temporary files there, too.
pub struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir_in("/dev/shm")?;
        let files = Self { folder };
        for name in ["cache", "run", "tmp"] {
            fs::create_dir(files.path(name))?;
            fs::set_permissions(files.path(name), fs::Permissions::from_mode(0o700))?;
        }
        fs::copy(env!("CARGO_BIN_EXE_hull"), files.path("hull"))?;
        if hull::guest::embedded().is_none() {
            return Err("hull carries no guest: run `make build` first".into());
        }
        Ok(files)
    }

    /// What both monitors boot: the kernel, and the initial RAM disks `command` and `idle`.
    pub fn add_guests(&self) -> Result<()> {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest");
        self.copy(&built.join("vmlinux"))?;
        let initramfs = fs::read(built.join("initramfs.cpio"))?;
        let command = guest::runs(&super::COMMAND);
        for (name, init) in [("command", command), ("idle", guest::idle())] {
            fs::write(self.path(name), guest::initrd(&initramfs, &init)?)?;
        }
        Ok(())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn copy(&self, from: &Path) -> Result<PathBuf> {
        let to = self.path(&from.file_name().unwrap_or_default().to_string_lossy());
        fs::copy(from, &to).map_err(|error| format!("{}: {error}", from.display()))?;
        Ok(to)
    }

    pub fn kernel(&self) -> PathBuf {
        self.path("vmlinux")
    }

    /// The kernel's command line: quiet, without the devices that Firecracker's own leaves out.
    pub fn words(&self) -> String {
        format!(
            "console=ttyS0 reboot=k panic=-1 quiet i8042.noaux i8042.nomux i8042.dumbkbd rdinit=/{}",
            guest::INIT
        )
    }

    /// hull with these flags.
    pub fn hull(&self, words: &[&str]) -> Command {
        let mut hull = Command::new(self.path("hull"));
        hull.args(words).env("HULL_CACHE", self.path("cache"));
        hull.env("XDG_RUNTIME_DIR", self.path("run"));
        hull.env("TMPDIR", self.path("tmp"));
        hull
    }

    pub fn start(&self, hull: &mut Command) -> Result<Process> {
        Process::start(hull, &self.path("err"))
    }

    /// The control socket of a machine.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.path("run").join("hull").join(name).join("socket")
    }

    /// Save a machine; what `--json` says of that, and how long it took.
    pub fn snapshot(&self, name: &str) -> Result<(serde_json::Value, f64, PathBuf)> {
        let dir = self.path(&format!("{name}.snapshot"));
        let mut hull = self.hull(&["snapshot", name, "--json"]);
        hull.arg(&dir);
        let started = std::time::Instant::now();
        let output = hull.output()?;
        let ms = started.elapsed().as_secs_f64() * 1e3;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().into());
        }
        Ok((serde_json::from_slice(&output.stdout)?, ms, dir))
    }
}
