//! Cloud Hypervisor.

use std::io;
use std::path::Path;
use std::process::Command;

use super::monitors::{MEMORY_MIB, Machine, Monitor};

/// `cloud-hypervisor --kernel KERNEL --initramfs IMAGE --serial tty`
pub struct CloudHypervisor;

impl Monitor for CloudHypervisor {
    fn name(&self) -> &'static str {
        "cloud-hypervisor"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["cloud-hypervisor"]
    }

    fn command(&self, program: &Path, machine: &Machine, _scratch: &Path) -> io::Result<Command> {
        let mut command = Command::new(program);
        command.arg("--kernel").arg(&machine.kernel);
        command.arg("--initramfs").arg(&machine.initrd);
        command.args(["--cpus", "boot=1", "--memory"]);
        command.arg(format!("size={MEMORY_MIB}M"));
        command.args(["--serial", "tty", "--console", "off", "--cmdline"]);
        command.arg(&machine.cmdline);
        Ok(command)
    }

    fn caveats(&self) -> Vec<String> {
        vec!["with its own seccomp filters; without Landlock, as is its default".into()]
    }
}
