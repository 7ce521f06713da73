//! kvmtool, whose program has had several names.

use std::io;
use std::path::Path;
use std::process::Command;

use super::monitors::{MEMORY_MIB, Machine, Monitor};

/// `lkvm run --kernel BZIMAGE --initrd IMAGE`
pub struct Kvmtool;

impl Monitor for Kvmtool {
    fn name(&self) -> &'static str {
        "kvmtool"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["lkvm", "vm", "kvmtool"]
    }

    fn command(&self, program: &Path, machine: &Machine, _scratch: &Path) -> io::Result<Command> {
        let mut command = Command::new(program);
        command.args(["run", "--nodefaults", "--kernel"]);
        command
            .arg(&machine.kernel)
            .arg("--initrd")
            .arg(&machine.initrd);
        command
            .args(["--cpus", "1", "--mem"])
            .arg(MEMORY_MIB.to_string());
        command.args(["--console", "serial", "--network", "mode=none"]);
        command
            .args(["--loglevel", "error", "--params"])
            .arg(&machine.cmdline);
        Ok(command)
    }

    fn version_flag(&self) -> &'static str {
        "version"
    }

    fn takes_bzimage(&self) -> bool {
        true
    }

    fn caveats(&self) -> Vec<String> {
        vec!["from a bzImage, which unpacks itself in the guest; no seccomp filter".into()]
    }
}
