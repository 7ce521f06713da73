//! Kernels of every kind through the program: a command runs under those that are whole, and a
//! message tells what is wrong with the others.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Output};

/// The built guest's file, or `None` with a word about it where nothing can run.
fn built(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("target/guest")
        .join(name);
    if !std::path::Path::new("/dev/kvm").exists() {
        println!("skipped: {name}: this machine has no /dev/kvm");
        return None;
    }
    if !path.exists() {
        println!("skipped: {} is not built: run `make build`", path.display());
        return None;
    }
    Some(path)
}

/// Whether the host's KVM is the lab's, where a guest kernel's code is not emulated.
fn in_lab() -> bool {
    let lab = std::env::var("HULL_TEST_HOST").is_ok_and(|host| host == "lab");
    if !lab {
        println!("skipped here: only in the lab, where a whole boot takes a second or two");
    }
    lab
}

fn hull(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hull"));
    command
        .arg("run")
        .args(arguments)
        .output()
        .expect("hull starts")
}

fn assert_boots(name: &str, flags: &[&str]) {
    let Some(kernel) = built(name) else { return };
    let kernel = kernel.display().to_string();
    let command = ["--", "/bin/busybox", "echo", "up"];
    let output = hull(&[&[kernel.as_str()], flags, &command].concat());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "up\n", "{message}");
    assert_eq!(output.status.code(), Some(0), "{message}");
}

#[test]
fn a_bzimage_boots_unpacked_on_the_host() {
    if in_lab() {
        assert_boots("bzImage", &[]);
    }
}

#[test]
fn a_bzimage_boots_unpacked_by_itself() {
    if in_lab() {
        assert_boots("bzImage", &["--boot", "guest"]);
    }
}

#[test]
fn a_bzimage_boots_by_its_pvh_entry() {
    if in_lab() {
        assert_boots("bzImage", &["--boot", "pvh", "--cpus", "2"]);
    }
}

#[test]
fn a_vmlinux_boots_by_its_pvh_entry() {
    if in_lab() {
        assert_boots("vmlinux", &["--boot", "pvh"]);
    }
}

/// A kernel of Debian's in `target/stock`, and the name of the package that holds it in /boot.
fn stock(name: &str, package: &str) -> Option<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("target/stock")
        .join(name);
    if !in_lab() {
        return None;
    }
    if !path.exists() {
        println!(
            "skipped: {} is missing: unpack it from the package {package}",
            path.display()
        );
        return None;
    }
    Some(path.display().to_string())
}

#[test]
fn a_stock_kernel_finds_its_cpus_by_acpi() {
    let Some(kernel) = stock("vmlinuz-cloud", "linux-image-cloud-amd64") else {
        return;
    };
    for cpus in ["1", "4"] {
        let flags = ["--memory", "256M", "--cpus", cpus];
        let command = ["--", "/bin/busybox", "nproc"];
        let output = hull(&[&[kernel.as_str()], flags.as_slice(), &command].concat());
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(stdout.trim_end(), cpus, "{message}");
        assert_eq!(output.status.code(), Some(0), "{message}");
    }
}

#[test]
fn a_stock_kernel_powers_off_by_acpi() {
    let Some(kernel) = stock("vmlinuz-cloud", "linux-image-cloud-amd64") else {
        return;
    };
    let command = ["--", "/bin/busybox", "poweroff", "-f"];
    let output = hull(&[&[kernel.as_str(), "--memory", "256M"], command.as_slice()].concat());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{message}");
}

#[test]
fn memtest_which_is_no_linux_starts_its_cpus_and_prints_on_the_serial_port() {
    let Some(kernel) = stock("memtest86+x64.bin", "memtest86+") else {
        return;
    };
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"))
        .args([
            "run",
            &kernel,
            "--memory",
            "64M",
            "--cpus",
            "2",
            "--kernel-log",
        ])
        .args(["--cmdline", "console=ttyS0,115200"])
        .stdout(writer.try_clone().expect("a second end"))
        .stderr(writer)
        .spawn()
        .expect("hull starts");
    let mut output = Vec::new();
    let mut chunk = [0; 512];
    // It tests for ever: ends with what is awaited, or when hull ends.
    while !String::from_utf8_lossy(&output).contains("2 Cores 2 Threads") {
        match reader.read(&mut chunk).expect("the pipe is read") {
            0 => panic!("hull ended: {}", String::from_utf8_lossy(&output)),
            count => output.extend(&chunk[..count]),
        }
    }
    hull.kill().expect("hull is killed");
    hull.wait().expect("hull ends");
}

/// What hull says of the built bzImage after `damage`.
fn refusal_of_bzimage(damage: impl Fn(&mut Vec<u8>)) -> Option<String> {
    let mut bytes = fs::read(built("bzImage")?).expect("the kernel is read");
    damage(&mut bytes);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("kernel");
    fs::write(&file, bytes).expect("the file is written");
    let output = hull(&[&file.display().to_string()]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{message}");
    assert!(output.stdout.is_empty(), "an error belongs on stderr");
    Some(message)
}

fn assert_refused(damage: impl Fn(&mut Vec<u8>), expected: &str) {
    if let Some(message) = refusal_of_bzimage(damage) {
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
    }
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
fn a_payload_length_that_lies_is_refused() {
    let lie = |bytes: &mut Vec<u8>| bytes[0x24c..0x250].fill(0xff);
    assert_refused(lie, "its payload ends at byte");
}

#[test]
fn a_bomb_is_refused() {
    let huge = |bytes: &mut Vec<u8>| {
        let (offset, length) = payload(bytes);
        bytes[offset + length - 4..offset + length].fill(0xff);
    };
    assert_refused(huge, "says that it unpacks to 4294967295 bytes");
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
