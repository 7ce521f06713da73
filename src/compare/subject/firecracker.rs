//! Firecracker. One JSON configuration describes a machine, for its configuration file and for its API.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::monitor::{Launch, Machine, Monitor, instance_file};
use super::stage::MEMORY_MIB;
use crate::compare::measure::error::RunError;

/// Its exit code when its own seccomp filter traps a system call.
const BAD_SYSCALL: i32 = 148;
pub const CAVEAT: &str = "with its own seccomp filters; without its jailer";

/// `firecracker --no-api --config-file FILE`
#[derive(Default)]
pub struct Firecracker {
    /// Its filters do not fit its C library.
    without_filters: bool,
}

/// `machine` as Firecracker's configuration: each key is also a resource of its API.
pub fn config(machine: &Machine) -> Value {
    let mut config = json!({
        "boot-source": {
            "kernel_image_path": machine.kernel,
            "initrd_path": machine.initrd,
            "boot_args": machine.cmdline,
        },
        "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
    });
    let devices = &machine.devices;
    let disk = devices.disk.iter().map(|path| drive("disk", path));
    let scratch = devices.all.iter().map(|all| drive("scratch", &all.scratch));
    config["drives"] = disk.chain(scratch).collect();
    if let Some(tap) = &devices.tap {
        config["network-interfaces"] = json!([{"iface_id": "eth0", "host_dev_name": tap}]);
    }
    if let Some(socket) = &devices.vsock {
        config["vsock"] = json!({"guest_cid": 3, "uds_path": socket});
    }
    if devices.all.is_some() {
        config["balloon"] = json!({"amount_mib": 0, "deflate_on_oom": false});
        config["entropy"] = json!({});
    }
    config
}

fn drive(name: &str, path: &Path) -> Value {
    json!({
        "drive_id": name,
        "path_on_host": path,
        "is_root_device": false,
        "is_read_only": false,
    })
}

impl Monitor for Firecracker {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["firecracker"]
    }

    fn command(&self, launch: &Launch) -> io::Result<Command> {
        let file = instance_file(launch.stage, self, launch.id);
        fs::write(&file, config(launch.machine).to_string())?;
        let mut command = Command::new(launch.program);
        command.args(["--no-api", "--config-file"]).arg(file);
        // By default its log goes to standard output, which has the command's output.
        command.args(["--level", "Warn", "--log-path", "/dev/stderr"]);
        if self.without_filters {
            command.arg("--no-seccomp");
        }
        Ok(command)
    }

    fn adapt(&mut self, error: &RunError) -> bool {
        let RunError::Failed { status, .. } = error else {
            return false;
        };
        let filtered = status.code() == Some(BAD_SYSCALL) || status.signal() == Some(libc::SIGSYS);
        self.without_filters |= filtered;
        filtered
    }

    fn caveats(&self) -> Vec<String> {
        let caveat = if self.without_filters {
            "its own seccomp filters kill this build of it: it ran without them (--no-seccomp)"
        } else {
            CAVEAT
        };
        vec![caveat.into()]
    }
}
