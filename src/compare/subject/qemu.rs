//! QEMU with its smallest machine, microvm.

use std::io;
use std::process::Command;

use super::monitor::{Launch, Monitor};
use super::stage::MEMORY_MIB;

/// microvm without what this guest does not need (docs/system/i386/microvm.rst): option ROMs; PIT, PIC and
/// RTC, which KVM's clock and interrupt controllers replace; kernel arguments about virtio devices, of which
/// there are none; ACPI, which the guest's kernel lacks, so that QEMU takes the faster firmware.
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

    fn command(&self, launch: &Launch) -> io::Result<Command> {
        let machine = launch.machine;
        let mut command = Command::new(launch.program);
        command.args(["-M", MACHINE, "-accel", "kvm", "-cpu", "host"]);
        command.args(["-smp", "1", "-m", &format!("{MEMORY_MIB}M")]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-display", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(&machine.kernel);
        command.arg("-initrd").arg(&machine.initrd);
        command.arg("-append").arg(&machine.cmdline);
        Ok(command)
    }

    fn caveats(&self) -> Vec<String> {
        let caveat = format!("-M {MACHINE}; without its seccomp filter, as is its default");
        vec![caveat]
    }
}
