//! Kernels of all supported formats boot, other projects' kernels too; damaged ones are refused.

mod machine;

use std::fs;

use machine::{built, kvm, lab, run};

/// Boots `kernel` with `flags`; its release and processor count must contain `expected`.
#[track_caller]
fn assert_boots(kernel: &str, flags: &[&str], expected: &str) {
    let mut arguments = vec!["run", kernel, "--kernel-log"];
    arguments.extend(flags);
    let proof = "uname -r; nproc; exit 3";
    arguments.extend(["--", "/bin/busybox", "sh", "-c", proof]);
    let finished = run(&arguments);
    assert_eq!(finished.status, Some(3), "{}", finished.stderr);
    let stdout = finished.stdout_text();
    assert!(stdout.contains(expected), "{stdout:?}\n{}", finished.stderr);
}

fn here(test: &str) -> bool {
    kvm(test) && lab(test, "a boot takes minutes where the kernel is emulated")
}

#[test]
fn a_bzimage_is_unpacked_on_the_host() {
    if here("bzImage") {
        assert_boots(&built("guest/bzImage"), &[], "-hull\n1\n");
    }
}

#[test]
fn a_bzimage_unpacks_itself_on_request() {
    if here("bzImage by itself") {
        assert_boots(&built("guest/bzImage"), &["--boot", "guest"], "-hull\n1\n");
    }
}

#[test]
fn a_kernel_starts_by_its_pvh_entry() {
    if here("PVH") {
        let flags = ["--boot", "pvh", "--cpus", "2"];
        assert_boots(&built("guest/vmlinux"), &flags, "-hull\n2\n");
    }
}

#[test]
fn a_bzimage_starts_by_the_pvh_entry_inside() {
    if here("PVH in a bzImage") {
        assert_boots(&built("guest/bzImage"), &["--boot", "pvh"], "-hull\n1\n");
    }
}

#[test]
fn a_stock_debian_kernel_boots_to_our_init() {
    if here("Debian's kernel") {
        assert_boots(&built("foreign/debian-vmlinuz"), &[], "-cloud-amd64\n1\n");
    }
}

#[test]
fn a_stock_debian_kernel_finds_four_processors() {
    if here("Debian's kernel, four processors") {
        let flags = ["--cpus", "4", "--memory", "256M"];
        assert_boots(
            &built("foreign/debian-vmlinuz"),
            &flags,
            "-cloud-amd64\n4\n",
        );
    }
}

#[test]
fn a_stock_debian_kernel_powers_off_by_acpi() {
    if here("Debian's kernel, power-off") {
        let kernel = built("foreign/debian-vmlinuz");
        let flags = ["--memory", "256M", "--", "/bin/busybox", "poweroff", "-f"];
        let finished = run(&[&["run", kernel.as_str()], flags.as_slice()].concat());
        // The guest told no status of the command, so there is no success.
        assert_eq!(finished.status, Some(125));
        let told = &finished.stderr;
        assert!(told.contains("the guest powered off before"), "{told}");
    }
}

#[test]
fn memtest86_starts_and_prints_on_the_serial_port() {
    if !here("memtest86+") {
        return;
    }
    let mut memtest = std::process::Command::new(env!("CARGO_BIN_EXE_hull"))
        .args([
            "run",
            &built("foreign/memtest86+"),
            "--memory",
            "64M",
            "--cpus",
            "2",
        ])
        .args(["--cmdline", "console=ttyS0,115200"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("hull starts");
    // memtest86+ never ends: stop when the expected text has come.
    let screen = memtest.stdout.take().expect("piped");
    let (found, awaited) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut seen = Vec::new();
        for byte in std::io::Read::bytes(std::io::BufReader::new(screen)).map_while(Result::ok) {
            seen.push(byte);
            if seen.ends_with(b"2 Cores 2 Threads") {
                let _ = found.send(());
            }
        }
    });
    let awaited = awaited.recv_timeout(machine::LIMIT);
    memtest.kill().expect("killed");
    memtest.wait().expect("reaped");
    awaited.expect("two processors on the screen of memtest86+");
}

#[test]
fn a_stock_debian_kernel_finds_its_root_disk_through_acpi() {
    if !here("Debian's root disk") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (root, image) = (folder.path().join("root"), folder.path().join("disk"));
    for name in ["sbin", "bin", "proc"] {
        fs::create_dir_all(root.join(name)).expect("folders");
    }
    fs::copy(built("foreign/busybox"), root.join("bin/busybox")).expect("busybox");
    let init = "#!/bin/busybox sh
        /bin/busybox mount -t proc proc /proc
        /bin/busybox uname -r
        /bin/busybox grep ' / ext4' /proc/mounts
        /bin/busybox grep -c virtio_mmio.device /proc/cmdline
        /bin/busybox poweroff -f";
    fs::write(root.join("sbin/init"), init).expect("an init");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(root.join("sbin/init"), executable).expect("executable");
    let file = fs::File::create(&image).expect("a file");
    file.set_len(16 << 20).expect("its size");
    let made = std::process::Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([&root, &image])
        .output();
    assert!(made.expect("mke2fs").status.success());
    let finished = run(&[
        "run",
        &built("foreign/debian-vmlinuz"),
        "--initrd",
        &built("foreign/debian-initrd"),
        "--disk",
        &image.display().to_string(),
        "--cmdline",
        "quiet",
    ]);
    assert_eq!(finished.status, Some(0), "{}", finished.stderr);
    let seen = finished.stdout_text().replace('\r', "");
    assert!(seen.contains("-cloud-amd64\n/dev/vda / ext4 ro"), "{seen}");
}

/// hull must refuse the built bzImage after `damage` with a message that holds `expected`.
#[track_caller]
fn assert_refused(damage: impl Fn(&mut Vec<u8>), expected: &str) {
    if !kvm("a damaged bzImage") {
        return;
    }
    let mut bytes = fs::read(built("guest/bzImage")).expect("the kernel is read");
    damage(&mut bytes);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("kernel");
    fs::write(&file, bytes).expect("the file is written");
    let finished = run(&["run", &file.display().to_string()]);
    let message = &finished.stderr;
    assert_eq!(finished.status, Some(125), "{message}");
    assert!(finished.stdout.is_empty(), "an error belongs on stderr");
    assert!(message.contains(expected), "{message:?} lacks {expected:?}");
}

/// The payload's offset in the file and its length (Documentation/arch/x86/boot.rst).
fn payload(bytes: &[u8]) -> (usize, usize) {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let setup = (usize::from(bytes[0x1f1]) + 1) * 512;
    (setup + word(0x248), word(0x24c))
}

#[test]
fn a_truncated_bzimage_is_refused() {
    for size in [0x230, 0x1000, 0x5000, 0x10_0000] {
        let cut = |bytes: &mut Vec<u8>| bytes.truncate(size);
        let expected = if size < 0x260 {
            "not a kernel"
        } else {
            "truncated"
        };
        assert_refused(cut, expected);
    }
}

#[test]
fn a_wrong_payload_length_is_refused() {
    let lie = |bytes: &mut Vec<u8>| bytes[0x24c..0x250].fill(0xff);
    assert_refused(lie, "its payload ends at byte");
}

#[test]
fn a_decompression_bomb_is_refused() {
    let huge = |bytes: &mut Vec<u8>| {
        let (offset, length) = payload(bytes);
        bytes[offset + length - 4..offset + length].fill(0xff);
    };
    assert_refused(huge, "states an unpacked size of 4294967295 bytes");
    let more_than_stated = |bytes: &mut Vec<u8>| {
        let (offset, length) = payload(bytes);
        bytes[offset + length - 4..offset + length].copy_from_slice(&4096u32.to_le_bytes());
    };
    assert_refused(more_than_stated, "-compressed kernel");
}

#[test]
fn a_damaged_payload_is_refused() {
    let damage = |bytes: &mut Vec<u8>| {
        let (offset, length) = payload(bytes);
        bytes[offset + 4..offset + length / 2].fill(0x5a);
    };
    assert_refused(damage, "is damaged");
}

#[test]
fn a_stock_debian_kernel_has_a_driver_for_the_generation_device() {
    if !here("Debian's kernel, generic event device") {
        return;
    }
    let kernel = built("foreign/debian-vmlinuz");
    let proof = "cat /proc/interrupts; cat /sys/bus/acpi/devices/HULL0001:00/path";
    let flags = ["--memory", "256M", "--", "/bin/busybox", "sh", "-c", proof];
    let finished = run(&[&["run", kernel.as_str()], flags.as_slice()].concat());
    assert_eq!(finished.status, Some(0), "{}", finished.stderr);
    let stdout = finished.stdout_text();
    let line = stdout.lines().find(|line| line.contains("ACPI:Ged"));
    let line = line.unwrap_or_else(|| panic!("no event device: {stdout}"));
    assert!(line.trim_start().starts_with("12:"), "{line}");
    assert!(stdout.ends_with("\\_SB_.VGEN\n"), "{stdout}");
}
