//! kvmtool, whose program has had several names.

use std::io;
use std::process::Command;

use super::monitor::{Launch, Monitor};
use super::stage::MEMORY_MIB;

/// `lkvm run --kernel BZIMAGE --initrd IMAGE`
pub struct Kvmtool;

impl Monitor for Kvmtool {
    fn name(&self) -> &'static str {
        "kvmtool"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["lkvm", "vm", "kvmtool"]
    }

    fn command(&self, launch: &Launch) -> io::Result<Command> {
        let machine = launch.machine;
        let mut command = Command::new(launch.program);
        command.args(["run", "--nodefaults", "--cpus", "1", "--mem"]);
        command.arg(MEMORY_MIB.to_string());
        command.arg("--kernel").arg(&machine.kernel);
        command.arg("--initrd").arg(&machine.initrd);
        command.args(["--console", "serial", "--network", "mode=none"]);
        command.args(["--loglevel", "error", "--params"]);
        command.arg(&machine.cmdline);
        Ok(command)
    }

    fn version_flag(&self) -> &'static str {
        "version"
    }

    fn needs_bzimage(&self) -> bool {
        true
    }

    fn caveats(&self) -> Vec<String> {
        vec!["boots a bzImage, which unpacks itself in the guest; no seccomp filter".into()]
    }
}
