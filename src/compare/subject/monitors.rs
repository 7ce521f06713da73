//! The virtual machine monitors, each with the command line that runs a [`Machine`].

use std::io;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::hull;
use super::monitor::{Launch, Machine, Monitor, SCRATCH_BYTES, instance_file};
use super::stage::MEMORY_MIB;

/// microvm without what this guest does not need (docs/system/i386/microvm.rst): option ROMs; PIT, PIC and
/// RTC, which KVM's clock and interrupt controllers replace; kernel arguments about virtio devices, of which
/// there are none; ACPI, which the guest's kernel lacks, so that QEMU takes the faster firmware.
macro_rules! microvm {
    () => {
        "-M microvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on,\
         auto-kernel-cmdline=off,acpi=off"
    };
}

pub const HULL: Monitor = Monitor {
    name: "hull",
    programs: &["hull"],
    version_flag: "--version",
    needs_bzimage: false,
    caveat: None,
    caveat_without_filters: None,
    command: hull,
};

pub const FIRECRACKER: Monitor = Monitor {
    name: "firecracker",
    programs: &["firecracker"],
    caveat: Some("with its own seccomp filters; without its jailer"),
    caveat_without_filters: Some(
        "its own seccomp filters kill this build of it: it ran without them (--no-seccomp)",
    ),
    command: firecracker,
    ..HULL
};

pub const CLOUD_HYPERVISOR: Monitor = Monitor {
    name: "cloud-hypervisor",
    programs: &["cloud-hypervisor"],
    caveat: Some("with its own seccomp filters; without Landlock, as is its default"),
    command: |launch| {
        let words = "--kernel KERNEL --initramfs INITRD --cpus boot=1 --memory size=MIBM --serial tty \
                     --console off --cmdline CMDLINE";
        Ok(filled(words, launch))
    },
    ..HULL
};

pub const QEMU: Monitor = Monitor {
    name: "qemu-microvm",
    programs: &["qemu-system-x86_64"],
    caveat: Some(concat!(
        microvm!(),
        "; without its seccomp filter, as is its default"
    )),
    command: |launch| {
        let words = concat!(
            microvm!(),
            " -accel kvm -cpu host -smp 1 -m MIBM -nodefaults -no-user-config -no-reboot -display none",
            " -serial stdio -kernel KERNEL -initrd INITRD -append CMDLINE"
        );
        Ok(filled(words, launch))
    },
    ..HULL
};

pub const KVMTOOL: Monitor = Monitor {
    name: "kvmtool",
    programs: &["lkvm", "vm", "kvmtool"],
    version_flag: "version",
    needs_bzimage: true,
    caveat: Some("boots a bzImage, which unpacks itself in the guest; no seccomp filter"),
    command: |launch| {
        let words = "run --nodefaults --cpus 1 --mem MIB --kernel KERNEL --initrd INITRD --console serial \
                     --network mode=none --loglevel error --params CMDLINE";
        Ok(filled(words, launch))
    },
    ..HULL
};

/// The program with `words`, in which the machine's values replace the names in capitals.
fn filled(words: &str, launch: &Launch) -> Command {
    let machine = launch.machine;
    let mut command = Command::new(launch.program);
    for word in words.split(' ') {
        match word {
            "KERNEL" => command.arg(&machine.kernel),
            "INITRD" => command.arg(&machine.initrd),
            "CMDLINE" => command.arg(&machine.cmdline),
            word => command.arg(word.replace("MIB", &MEMORY_MIB.to_string())),
        };
    }
    command
}

fn firecracker(launch: &Launch) -> io::Result<Command> {
    let file = instance_file(launch.stage, &FIRECRACKER, launch.id);
    std::fs::write(&file, firecracker_config(launch.machine).to_string())?;
    let mut command = Command::new(launch.program);
    command.args(["--no-api", "--config-file"]).arg(file);
    // By default its log goes to standard output, which has the command's output.
    command.args(["--level", "Warn", "--log-path", "/dev/stderr"]);
    if launch.without_filters {
        command.arg("--no-seccomp");
    }
    Ok(command)
}

/// `machine` as Firecracker's configuration: each key is also a resource of its API.
pub fn firecracker_config(machine: &Machine) -> Value {
    let mut config = json!({
        "boot-source": {
            "kernel_image_path": machine.kernel,
            "initrd_path": machine.initrd,
            "boot_args": machine.cmdline,
        },
        "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB},
    });
    let drive = |name: &str, path: &Path| {
        json!({
            "drive_id": name,
            "path_on_host": path,
            "is_root_device": false,
            "is_read_only": false,
        })
    };
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

/// `hull run KERNEL`, with the machine of the other monitors.
fn hull(launch: &Launch) -> io::Result<Command> {
    let machine = launch.machine;
    let words = ["run", "--name", launch.id];
    let mut hull = hull::command(launch.stage, launch.program, &words);
    hull.arg("--memory").arg(format!("{MEMORY_MIB}M"));
    hull.arg("--cmdline").arg(&machine.cmdline);
    hull.arg("--initrd").arg(&machine.initrd);
    let devices = &machine.devices;
    if let Some(tap) = &devices.tap {
        hull.arg("--net").arg(format!("tap={tap}"));
    }
    if let Some(socket) = &devices.vsock {
        let vsock = format!("cid=3,socket={}", socket.display());
        hull.arg("--vsock").arg(vsock);
    }
    if let Some(disk) = &devices.disk {
        hull.arg("--disk").arg(disk);
    }
    if let Some(all) = &devices.all {
        let share = format!("{}:/share:ro", all.share.display());
        hull.args(["--balloon", "--console", "virtio", "--share", &share]);
        hull.args(["--scratch", &SCRATCH_BYTES.to_string()]);
    }
    hull.arg(&machine.kernel);
    Ok(hull)
}
