//! Wrong input and missing host features: each gives an error message that names it, status 125, and nothing
//! on standard output, without a hang.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use hull::boot::initrd::{File, cpio};

const HULL: &str = env!("CARGO_BIN_EXE_hull");

/// Time limit of a refusal, which normally takes milliseconds.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs `command`, which must end by itself.
fn output(command: &mut Command) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let start = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if start.elapsed() > LIMIT {
            let _ = child.kill();
            panic!("{command:?} hangs");
        }
        sleep(Duration::from_millis(1));
    }
    child.wait_with_output().expect("its output")
}

/// Runs a command that must fail with status 125, and returns its message.
fn message(command: &mut Command) -> String {
    let output = output(command);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{command:?}: {message}");
    assert!(output.stdout.is_empty(), "an error belongs on stderr");
    assert!(message.starts_with("error: "), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

fn refusal(arguments: &[&str]) -> String {
    message(Command::new(HULL).args(arguments))
}

/// Temporary files of one test.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).expect("the file is written");
        path
    }

    /// A sparse file of zeros.
    fn sparse(&self, name: &str, size: u64) -> String {
        let path = self.file(name, b"");
        let file = fs::File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(size))
            .expect("a sparse file");
        path
    }
}

/// hull's message about a kernel file with these bytes.
fn refusal_of_kernel(bytes: &[u8]) -> String {
    refusal(&["run", &Files::new().file("kernel", bytes)])
}

/// A 64-bit ELF kernel of one instruction, HLT at 1 MiB (System V ABI, 4 and 5).
fn elf() -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    for half in [2u16, 62] {
        bytes.extend(half.to_le_bytes()); // ET_EXEC, EM_X86_64
    }
    bytes.extend(1u32.to_le_bytes());
    for word in [0x10_0000u64, 64, 0] {
        bytes.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    bytes.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    for word in [1u32, 5] {
        bytes.extend(word.to_le_bytes()); // PT_LOAD, readable and executable
    }
    for word in [120u64, 0x10_0000, 0x10_0000, 1, 1, 0x1000] {
        bytes.extend(word.to_le_bytes()); // offset, addresses, sizes, alignment
    }
    bytes.push(0xf4);
    bytes
}

/// That kernel with some bytes replaced: offsets and the new bytes.
fn elf_with(changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = elf();
    for (at, change) in changes {
        bytes[*at..at + change.len()].copy_from_slice(change);
    }
    bytes
}

/// A flat payload that halts forever, so that a refusal must come before it runs.
const PAYLOAD: &[u8] = b"\xeb\x0eHULLFLAT\x10\0\0\0\0\0\xf4\xeb\xfd";

fn kvm_is_there(test: &str) -> bool {
    let there = Path::new("/dev/kvm").exists();
    if !there {
        println!("skipped: {test}: this machine has no /dev/kvm");
    }
    there
}

#[test]
fn a_kernel_that_cannot_be_read_is_named() {
    let files = Files::new();
    for (kernel, expected) in [
        ("/no/such/kernel".to_string(), "No such file"),
        ("/".to_string(), "not a regular file"),
        ("/dev/zero".to_string(), "not a regular file"),
        (files.file("file", b"") + "/kernel", "Not a directory"),
        (
            files.sparse("large", 2 << 30),
            "2147483648 bytes; at most 1 GiB is read",
        ),
    ] {
        let message = refusal(&["run", &kernel]);
        let expected = format!("kernel {kernel}: {expected}");
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn an_unwritable_report_is_refused_before_the_boot() {
    let files = Files::new();
    let report = files.path("no-folder/report");
    let message = refusal(&["run", "--json", &report, "--", "true"]);
    assert!(
        message.contains(&format!("--json {report}: there is no folder")),
        "{message}"
    );
    let report = files.path("report");
    refusal(&["run", &files.path("none"), "--json", &report]);
    assert!(!std::path::Path::new(&report).exists());
}

#[test]
fn a_fifo_without_a_writer_is_refused_at_once() {
    let fifo = Files::new();
    let path = fifo.path("kernel");
    let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo");
    assert!(made.success());
    assert!(refusal(&["run", &path]).contains("a pipe and not a regular file"));
}

#[test]
fn a_command_without_its_dashes_is_told_how_to_be_one() {
    let hint = "to run a command in the guest, write `--` before it: hull run -- ";
    for (words, line) in [
        (&["run", "uname", "-a"][..], "uname -a"),
        (&["run", "echo", "hi"], "echo hi"),
        (&["uname", "-a"], "uname -a"),
        (&["run", "ls"], "CMD"),
    ] {
        let message = refusal(words);
        assert!(message.contains(&format!("{hint}{line}\n")), "{message}");
    }
    for words in [
        &["run", "--memry", "1"][..],
        &["runn"],
        &["run", "k", "--x", "--", "ls"],
    ] {
        let message = refusal(words);
        assert!(!message.contains(hint), "{message}");
    }
    if !kvm_is_there("programs that are no kernel") {
        return;
    }
    // A static program, which would be loaded and end in a triple fault, and a dynamic one.
    let busybox = concat!(env!("CARGO_MANIFEST_DIR"), "/target/foreign/busybox");
    for program in [busybox, "/bin/sh"] {
        let message = refusal(&["run", program, "--", "true"]);
        assert!(message.contains(hint), "{message}");
    }
}

#[test]
fn an_initrd_that_cannot_be_read_is_named() {
    let files = Files::new();
    let kernel = files.file("kernel", &elf());
    for (initrd, expected) in [("/no/such/initrd", "No such file"), ("/", "not a regular")] {
        let message = refusal(&["run", &kernel, "--initrd", initrd]);
        let expected = format!("--initrd {initrd}: {expected}");
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn impossible_memory_sizes_are_refused() {
    for size in [
        "0",
        "1M",
        "999T",
        "12Q",
        "abc",
        "",
        "-1",
        "99999999999999999999",
    ] {
        let message = refusal(&["run", "--memory", size, "kernel"]);
        assert!(
            message.contains(&format!("'{size}' for '--memory")),
            "{message}"
        );
    }
}

#[test]
fn a_balloon_of_all_memory_is_refused() {
    let refused = refusal(&["run", "--balloon=128M", "--", "true"]);
    assert!(refused.contains("has 128 MiB in all"), "{refused}");
}

#[test]
fn impossible_numbers_of_cpus_are_refused() {
    for cpus in ["0", "33", "-1", "abc", "", "1.5", "256"] {
        let message = refusal(&["run", "--cpus", cpus, "kernel"]);
        assert!(
            message.contains(&format!("'{cpus}' for '--cpus")) && message.contains("1 to 32"),
            "{message}"
        );
    }
}

#[test]
fn an_unknown_flag_is_refused_with_the_nearest_known_one() {
    let message = refusal(&["run", "--memry", "1G", "kernel"]);
    assert!(message.contains("--memory"), "{message}");
}

// hull opens KVM first, without which no kernel can run.
#[test]
fn files_that_are_no_kernel_are_refused_with_what_they_seem_to_be() {
    if !kvm_is_there("files_that_are_no_kernel") {
        return;
    }
    for (bytes, expected) in [
        (&b""[..], "the kernel file is empty"),
        (b"#!/bin/sh\necho hi\n", "a text file"),
        (b"\x7fELF", "the ELF file is truncated"),
        (
            b"\xeb\x0eHULLFLAT\x11\0\0\0\0\0\xf4",
            "mode 17 (16, 32 or 64 expected)",
        ),
        (b"070701 and so on", "pass it as the initrd"),
        (&[0; 4096], "zeros only"),
    ] {
        let message = refusal_of_kernel(bytes);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn kernels_for_other_processors_are_refused_by_name() {
    if !kvm_is_there("kernels_for_other_processors") {
        return;
    }
    let arm64 = elf_with(&[(18, &183u16.to_le_bytes())]);
    assert!(refusal_of_kernel(&arm64).contains("(e_machine 183)"));
    let arm = elf_with(&[(4, b"\x01"), (18, &40u16.to_le_bytes())]);
    assert!(refusal_of_kernel(&arm).contains("(e_machine 40)"));
    let big_endian = elf_with(&[(5, b"\x02")]);
    assert!(refusal_of_kernel(&big_endian).contains("big-endian"));
    let mut i386 = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
    i386.resize(52, 0);
    assert!(refusal_of_kernel(&i386).contains("32-bit"));
}

#[test]
fn segments_outside_of_memory_are_refused_with_their_address() {
    if !kvm_is_there("segments_outside_of_memory") {
        return;
    }
    let segment_at =
        |address: u64| elf_with(&[(24, &address.to_le_bytes()), (88, &address.to_le_bytes())]);
    for (address, expected) in [
        (0x8000u64, "0x8000 of 0x1 bytes is below 1 MiB"),
        (
            0x800_0000,
            "0x8000000 of 0x1 bytes is outside of the guest's 128 MiB",
        ),
        (0xc000_0000, "0xc0000000 of 0x1 bytes is in the device area"),
        (u64::MAX, "0xffffffffffffffff of 0x1 bytes"),
    ] {
        let message = refusal_of_kernel(&segment_at(address));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_kernel_cut_off_anywhere_is_refused() {
    if !kvm_is_there("a_kernel_cut_off_anywhere") {
        return;
    }
    // In the magic, the header and the program header, and at the end of each.
    for length in [4, 16, 63, 64, 100, 119, 120] {
        let message = refusal_of_kernel(&elf()[..length]);
        let size = format!("the file has {length}\n");
        assert!(message.contains("ELF file is truncated: ") && message.ends_with(&size));
    }
}

#[test]
fn an_initrd_that_does_not_fit_is_refused_with_the_sizes() {
    if !kvm_is_there("an_initrd_that_does_not_fit") {
        return;
    }
    let files = Files::new();
    let archive = cpio(&[File {
        path: "file",
        mode: 0o100644,
        content: &[7; 3 << 20],
    }]);
    let (kernel, initrd) = (
        files.file("kernel", &elf()),
        files.file("initrd", &archive.expect("small")),
    );
    let message = refusal(&["run", &kernel, "--initrd", &initrd, "--memory", "3M"]);
    assert!(
        message.contains("the initrd of 314")
            && message.contains("bytes does not fit")
            && message.contains("more memory"),
        "{message}"
    );
}

#[test]
fn a_command_line_that_a_kernel_would_not_read_is_refused() {
    if !kvm_is_there("a_command_line_that_a_kernel_would_not_read") {
        return;
    }
    let files = Files::new();
    let kernel = files.file("kernel", &elf());
    for length in [3000, 100_000] {
        let line = "x".repeat(length);
        let message = refusal(&["run", &kernel, "--cmdline", &line]);
        assert!(
            message.contains("command line is") && message.contains("shorten it"),
            "{message}"
        );
    }
}

#[test]
fn a_command_for_a_flat_payload_is_refused() {
    let payload = Files::new();
    let payload = payload.file("payload", PAYLOAD);
    assert!(refusal(&["run", &payload, "--", "true"]).contains("`-- CMD` needs a Linux kernel"));
}

/// hull in a mount namespace whose /dev the shell script `change` has modified; `None`, after a message, where
/// namespaces cannot be created.
fn with_other_dev(test: &str, change: &str, arguments: &[&str]) -> Option<Command> {
    let is_root = rustix::process::geteuid().is_root();
    let namespace = if is_root { "-m" } else { "-rm" };
    let script = format!("{change} && exec \"$@\"");
    let command = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command
            .args([namespace, "sh", "-c", &script, "sh"])
            .args(arguments);
        command
    };
    match command(&["/bin/true"]).output() {
        Ok(done) if done.status.success() => Some(command(arguments)),
        _ => {
            println!("skipped: {test}: namespaces cannot be created");
            None
        }
    }
}

/// The lines of `hull doctor` about /dev/kvm: the failed check with its remedy.
fn doctors_lines(command: &mut Command) -> String {
    let output = output(command);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let (_, rest) = text.split_once("fail  /dev/kvm").expect("a failed check");
    let end = rest
        .find("\nok")
        .or(rest.find("\nwarn"))
        .unwrap_or(rest.len());
    assert!(rest[..end].contains("-> "), "no remedy: {text}");
    rest[..end].split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_machine_without_kvm_gets_a_message_with_a_remedy() {
    const NO_DEV: &str = "mount -t tmpfs none /dev";
    let payload = Files::new();
    let payload = payload.file("payload", PAYLOAD);
    let test = "a_machine_without_kvm";
    let Some(mut run) = with_other_dev(test, NO_DEV, &[HULL, "run", &payload]) else {
        return;
    };
    let message = message(&mut run);
    assert!(message.contains("/dev/kvm: No such file"), "{message}");
    let doctor = with_other_dev(test, NO_DEV, &[HULL, "doctor"]);
    let word = doctors_lines(&mut doctor.expect("as before"));
    assert!(word.starts_with("No such file"), "{word}");
}

#[test]
fn a_dev_kvm_that_is_not_kvm_is_recognised() {
    const NULL: &str = "mount --bind /dev/null /dev/kvm";
    if !kvm_is_there("a_dev_kvm_that_is_not_kvm") {
        return;
    }
    let payload = Files::new();
    let payload = payload.file("payload", PAYLOAD);
    let test = "a_dev_kvm_that_is_not_kvm";
    let Some(mut run) = with_other_dev(test, NULL, &[HULL, "run", &payload]) else {
        return;
    };
    let message = message(&mut run);
    assert!(message.contains("it is not Linux's KVM"), "{message}");
    let doctor = with_other_dev(test, NULL, &[HULL, "doctor"]);
    let word = doctors_lines(&mut doctor.expect("as before"));
    assert!(word.contains("it is not Linux's KVM"), "{word}");
}

#[test]
fn a_user_without_access_to_kvm_learns_how_to_get_it() {
    const NOBODY: u32 = 65534;
    let test = "a_user_who_may_not_use_kvm";
    if !kvm_is_there(test) {
        return;
    }
    let kvm = fs::metadata("/dev/kvm").expect("it is there");
    if kvm.permissions().mode() & 0o006 != 0 || !rustix::process::geteuid().is_root() {
        println!(
            "skipped: {test}: everyone has access to /dev/kvm, or this user cannot become another"
        );
        return;
    }
    // hull is copied, as that user may have no access to its folder. cp copies it: other tests' children could
    // inherit a descriptor of ours that writes it, and executing it would fail with ETXTBSY.
    let files = Files::new();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(files.0.path(), open.clone()).expect("it is ours");
    let hull = PathBuf::from(files.path("hull"));
    let copied = Command::new("cp").arg(HULL).arg(&hull).status();
    assert!(copied.expect("cp starts").success());
    fs::set_permissions(&hull, open).expect("it is ours");
    let payload = files.file("payload", PAYLOAD);

    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new(&hull);
        command.args(arguments).uid(NOBODY).gid(NOBODY);
        command
    };
    let message = message(&mut as_nobody(&["run", &payload]));
    assert!(
        message.contains("/dev/kvm: Permission denied") && message.contains("group kvm"),
        "{message}"
    );
    let word = doctors_lines(&mut as_nobody(&["doctor"]));
    assert!(
        word.starts_with("Permission denied") && word.contains("group kvm"),
        "{word}"
    );
}
