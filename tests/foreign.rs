//! Kernels in every form, and kernels of others. In the lab: elsewhere each takes minutes.

mod machine;

use machine::{built, kvm, lab, run};

/// Boot `kernel` with `flags` and have it print who it is.
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
fn a_bzimage_unpacks_itself_when_asked_to() {
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
fn a_stock_debian_kernel_boots_to_our_init() {
    if here("Debian's kernel") {
        assert_boots(&built("foreign/debian-vmlinuz"), &[], "-cloud-amd64\n1\n");
    }
}

#[test]
fn a_stock_debian_kernel_finds_four_processors() {
    if here("Debian's kernel, four processors") {
        let flags = ["--cpus", "4", "--memory", "256M"];
        assert_boots(&built("foreign/debian-vmlinuz"), &flags, "-cloud-amd64\n4\n");
    }
}

#[test]
fn memtest86_starts_and_prints_on_the_serial_port() {
    if !here("memtest86+") {
        return;
    }
    let mut memtest = std::process::Command::new(env!("CARGO_BIN_EXE_hull"))
        .args(["run", &built("foreign/memtest86+"), "--memory", "64M"])
        .args(["--cmdline", "console=ttyS0,115200"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("hull starts");
    let mut screen = memtest.stdout.take().expect("piped");
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&seen).contains("Memtest86+") {
        let n = std::io::Read::read(&mut screen, &mut buffer).expect("output");
        assert!(n > 0, "hull ended: {}", String::from_utf8_lossy(&seen));
        seen.extend(&buffer[..n]);
    }
    memtest.kill().expect("killed");
    memtest.wait().expect("reaped");
}
