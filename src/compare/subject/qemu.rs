//! QEMU with its smallest machine, microvm.

use std::io;
use std::path::Path;
use std::process::Command;

use super::monitors::{MEMORY_MIB, Machine, Monitor};

/// What of a microvm this guest can do without (docs/system/i386/microvm.rst): option ROMs; the timer, the
/// interrupt controller and the clock of a PC, as KVM gives it better ones; words about virtio devices, of
/// which there are none; and ACPI, which its kernel does not have, so that the quicker firmware is taken.
const MACHINE: &str = "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on,\
    auto-kernel-cmdline=off,acpi=off";

/// `qemu-system-x86_64 -M microvm -accel kvm`
pub struct Qemu;

impl Monitor for Qemu {
    fn name(&self) -> &'static str {
        "qemu-microvm"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["qemu-system-x86_64"]
    }

    fn command(&self, program: &Path, machine: &Machine, _scratch: &Path) -> io::Result<Command> {
        let mut command = Command::new(program);
        command.args([
            "-M", MACHINE, "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m",
        ]);
        command.arg(format!("{MEMORY_MIB}M"));
        command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-display", "none", "-serial", "stdio", "-kernel"]);
        command
            .arg(&machine.kernel)
            .arg("-initrd")
            .arg(&machine.initrd);
        command.arg("-append").arg(&machine.cmdline);
        Ok(command)
    }

    fn caveats(&self) -> Vec<String> {
        vec![format!(
            "-M {MACHINE}; without its seccomp filter, as is its default"
        )]
    }
}
