//! Firecracker, without its API: a configuration file says it all.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::monitors::{MEMORY_MIB, Machine, Monitor};
use crate::compare::measure::timed::RunError;

/// Its exit code when a filter of its own kills it ("bad system call").
const BAD_SYSCALL: i32 = 148;

/// `firecracker --no-api --config-file FILE`
#[derive(Default)]
pub struct Firecracker {
    /// Its filters do not fit its C library.
    unfiltered: bool,
}

impl Monitor for Firecracker {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["firecracker"]
    }

    fn command(&self, program: &Path, machine: &Machine, scratch: &Path) -> io::Result<Command> {
        let config = json!({
            "boot-source": {
                "kernel_image_path": machine.kernel,
                "initrd_path": machine.initrd,
                "boot_args": machine.cmdline,
            },
            "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
            "drives": [],
        });
        fs::write(scratch, config.to_string())?;
        let mut command = Command::new(program);
        command.args(["--no-api", "--config-file"]).arg(scratch);
        // Its log would be among the command's output.
        command.args(["--level", "Warn", "--log-path", "/dev/stderr"]);
        if self.unfiltered {
            command.arg("--no-seccomp");
        }
        Ok(command)
    }

    fn adapt(&mut self, error: &RunError) -> bool {
        let RunError::Failed { status, .. } = error else {
            return false;
        };
        let filtered = status.code() == Some(BAD_SYSCALL) || status.signal() == Some(libc::SIGSYS);
        self.unfiltered |= filtered;
        filtered
    }

    fn caveats(&self) -> Vec<String> {
        let filters = match self.unfiltered {
            true => {
                "its own seccomp filters kill this build of it: it ran without them (--no-seccomp)"
            }
            false => "with its own seccomp filters; not in its jailer",
        };
        vec![filters.into()]
    }
}
