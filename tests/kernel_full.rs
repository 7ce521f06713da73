//! The kernel `full`: what it has beside the tiny one, and how it is chosen and found. `make test-full` builds it.

#[path = "images/layout.rs"]
mod layout;
mod machine;

use std::fs;
use std::path::Path;
use std::process::Command;

use ::tar::EntryType;
use layout::{Layer, Layout};
use machine::user::User;
use machine::{Finished, built, finish, kvm, lab};
use serde_json::json;

/// Whether the tests that take the kernel run: in the lab, by `make test-full`.
fn here(test: &str) -> bool {
    if std::env::var_os("HULL_TEST_FULL").is_none() {
        println!(
            "skipped: {test}: only in make test-full (HULL_TEST_FULL=1), which builds the kernel full"
        );
        return false;
    }
    kvm(test) && lab(test, "a boot takes long where the kernel is emulated")
}

fn hull(cache: &Path, arguments: &[&str]) -> Finished {
    let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
    hull.env("HULL_CACHE", cache).args(arguments);
    finish(hull, b"")
}

/// Prints a line for each that works. busybox knows the networks' devices by type alone.
const CHECKS: &str = r#"
uname -r
check() { name=$1; shift; if "$@" > /dev/null 2> /tmp/why; then echo "$name"; else echo "$name: $(cat /tmp/why)"; fi; }
for name in btrfs xfs squashfs vfat iso9660 nfs4 hugetlbfs binfmt_misc bpf; do
    check "$name" grep -qw "$name" /proc/filesystems
done
check kallsyms grep -q '^ffffffff8[0-9a-f]* T start_kernel$' /proc/kallsyms
for type in bridge veth dummy; do check "$type" ip link add "of-$type" type "$type"; done
check vlan ip link add link eth0 name of-vlan type vlan id 5
swap() { echo 64M > /sys/block/zram0/disksize && mkswap /dev/zram0 && swapon /dev/zram0 && grep -q zram0 /proc/swaps; }
check zram swap
pages() { echo 4 > /proc/sys/vm/nr_hugepages && grep -q 'HugePages_Total: *4' /proc/meminfo; }
check hugepages pages
mount -t securityfs none /sys/kernel/security
check landlock grep -q landlock /sys/kernel/security/lsm
check conntrack test -e /proc/sys/net/netfilter/nf_conntrack_max
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
check foreign test -e /proc/sys/fs/binfmt_misc/register
check kvm test -c /dev/kvm
chmod 755 /host/thirty-two; check old /host/thirty-two
ip -o link | grep -cE 'dummy0|bond0|tunl0|gre0|ifb0|sit0'
"#;

const FOUND: &str = "btrfs xfs squashfs vfat iso9660 nfs4 hugetlbfs binfmt_misc bpf kallsyms bridge veth dummy vlan zram \
                     hugepages landlock conntrack foreign kvm old";

/// exit(0) by the system call of 32-bit programs.
fn thirty_two_bits(folder: &Path) {
    let source = folder.join("32.s");
    let text = ".globl _start\n_start: movl $1, %eax\nxorl %ebx, %ebx\nint $0x80\n";
    fs::write(&source, text).expect("written");
    let build = "as --32 -o 32.o 32.s && ld -m elf_i386 -o thirty-two 32.o";
    let built = Command::new("sh")
        .args(["-c", build])
        .current_dir(folder)
        .status();
    assert!(built.is_ok_and(|status| status.success()));
}

#[test]
fn it_has_what_is_usual_and_starts_warm() {
    if !here("the kernel full") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    thirty_two_bits(folder.path());
    let share = format!("{}:/host", folder.path().display());
    let flags = [
        "run", "--kernel", "full", "-m", "256M", "--net", "user", "--share", &share,
    ];
    let cache = folder.path().join("cache");
    let checked = hull(&cache, &[&flags[..], &["--", "sh", "-c", CHECKS]].concat());
    let stdout = checked.stdout_text();
    let lines: Vec<_> = stdout.lines().collect();
    let (release, found) = lines.split_first().expect("a release");
    assert!(release.ends_with("-hull-full"), "{release}");
    let meant: Vec<_> = FOUND.split_whitespace().chain(["0"]).collect();
    assert_eq!((found, &*checked.stderr), (&*meant, ""));
    // The machine above left a template, by whose kernel it is told from another.
    let templates = hull(&cache, &["templates"]).stdout_text();
    assert!(
        templates.lines().any(|line| line.contains(" full ")),
        "{templates}"
    );
    let warm = hull(
        &cache,
        &[&flags[..], &["--timing", "--", "uname", "-r"]].concat(),
    );
    assert_eq!(warm.stdout_text(), format!("{release}\n"));
    assert!(warm.stderr.contains("hull: no boot: "), "{}", warm.stderr);
    let tiny = hull(
        &cache,
        &["run", "--kernel", "tiny", "-m", "256M", "--", "uname", "-r"],
    );
    assert!(tiny.stdout_text().ends_with("-hull\n"));
}

/// An image of busybox whose label names a kernel.
fn labelled(kernel: &str) -> Layout {
    let program = fs::read(built("foreign/busybox")).expect("busybox");
    let (regular, folder) = (EntryType::Regular, EntryType::Directory);
    let layer = Layer::new()
        .entry(folder, "bin", 0o755, (0, 0), "", b"")
        .entry(regular, "bin/busybox", 0o755, (0, 0), "", &program);
    let config = json!({
        "Entrypoint": ["/bin/busybox", "uname", "-r"],
        "Labels": { "dev.hull.kernel": kernel },
    });
    Layout::new(vec![layer], config)
}

#[test]
fn an_image_chooses_it_by_its_label() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = |image: &Layout, flags: &[&str]| {
        let image = image.path().to_str().expect("text");
        let all = ["run", "-m", "128M", "--network", "none", "--image", image];
        hull(folder.path(), &[&all[..], flags].concat())
    };
    let refused = run(&labelled("/etc/passwd"), &[]);
    assert_eq!(refused.status, Some(125));
    let message = "has the label dev.hull.kernel=/etc/passwd, which is tiny or full";
    assert!(refused.stderr.contains(message), "{}", refused.stderr);
    if here("an image's kernel") {
        let image = labelled("full");
        assert!(run(&image, &[]).stdout_text().ends_with("-hull-full\n"));
        let tiny = run(&image, &["--kernel", "tiny"]).stdout_text();
        assert!(tiny.ends_with("-hull\n"), "{tiny}");
    }
}

/// The program alone, without what `make install` puts beside it.
#[test]
fn a_missing_one_is_told_with_what_builds_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("bin/hull");
    fs::create_dir(folder.path().join("bin")).expect("made");
    fs::copy(env!("CARGO_BIN_EXE_hull"), &program).expect("copied");
    let mut hull = Command::new(&program);
    hull.args(["run", "--kernel", "full", "--", "true"]);
    let place = folder.path().join("lib/hull/full/vmlinux");
    let message = format!(
        "error: there is no kernel full: not {}; `make kernel-full` builds it, and `make install` then installs it \
         with hull\n",
        place.display()
    );
    finish(hull, b"").assert(125, "", &message);
    // As a file of a machine writes it.
    let user = User::new();
    for (flag, written) in [
        ("full", r#""kernel": "full""#),
        ("./full", r#""kernel": "./full""#),
    ] {
        let shown = user
            .run(&["run", "--kernel", flag, "--print-config"])
            .stdout;
        assert!(shown.contains(written), "{shown}");
    }
    let shown = user.run(&["run", "full", "--print-config"]).stdout;
    assert!(shown.contains(r#""kernel": "./full""#), "{shown}");
    let both = user.run(&["run", "vmlinux", "--kernel", "full"]);
    assert_eq!(both.status, Some(125), "{}", both.stderr);
}
