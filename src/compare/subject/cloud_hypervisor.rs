//! Cloud Hypervisor.

use std::io;
use std::process::Command;

use super::monitor::{Launch, Monitor};
use super::stage::MEMORY_MIB;

/// `cloud-hypervisor --kernel KERNEL --initramfs IMAGE --serial tty`
pub struct CloudHypervisor;

impl Monitor for CloudHypervisor {
    fn name(&self) -> &'static str {
        "cloud-hypervisor"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["cloud-hypervisor"]
    }

    fn command(&self, launch: &Launch) -> io::Result<Command> {
        let machine = launch.machine;
        let mut command = Command::new(launch.program);
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
