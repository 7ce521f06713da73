//! `hull inspect`, and the records with which it finds a machine.

mod machine;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use machine::user::{Running, User};
use machine::{built, kvm};
use serde_json::Value;

/// The element of a list whose `key` is `value`.
#[track_caller]
fn one<'a>(list: &'a Value, key: &str, value: &str) -> &'a Value {
    let mut all = list.as_array().expect("a list").iter();
    let found = all.find(|element| element[key] == value);
    found.unwrap_or_else(|| panic!("no {key} {value} in {list}"))
}

fn number(value: &Value) -> u64 {
    let text = value.as_str().expect("a hexadecimal number");
    u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("a hexadecimal number")
}

#[test]
fn registers_show_where_a_payload_spins_and_where_a_vcpu_waits() {
    if !kvm("inspect a payload") {
        return;
    }
    let user = User::new();
    let hull = user.spin(&["--name", "spin", "--cpus", "2"]);
    let seen = user.inspect("spin", &["registers"]);
    let [first, second] = seen["vcpus"].as_array().expect("vCPUs").as_slice() else {
        panic!("{seen}");
    };
    assert_eq!(first["mode"], "real mode");
    assert_eq!(
        number(&one(&first["general"], "name", "RIP")["value"]),
        0x8010
    );
    assert_eq!(first["code"][0]["bytes"], "eb fe");
    assert_eq!(first["code"][0]["text"], "jmp short 0x8010");
    assert_eq!(one(&first["segments"], "name", "CS")["selector"], "0x0");
    assert_eq!(second["state"], "waits for its INIT");
    let seen = user.inspect("spin", &["registers", "--cpu", "1"]);
    assert_eq!(seen["vcpus"].as_array().map(Vec::len), Some(1));
    assert_eq!(seen["vcpus"][0]["index"], 1);

    let seen = user.inspect("spin", &["memory"]);
    let payload = one(&seen["memory"]["areas"], "what", "flat payload");
    assert_eq!(
        (&payload["start"], &payload["end"]),
        (&"0x8000".into(), &"0x8012".into())
    );
    let walk = &user.inspect("spin", &["pagetables", "8000"])["walk"];
    assert_eq!(
        (&walk["gpa"], &walk["what"]),
        (&"0x8000".into(), &"flat payload".into())
    );
    let chips = &user.inspect("spin", &["interrupts"])["interrupts"];
    assert_eq!(chips["ioapic"].as_array().map(Vec::len), Some(24));
    assert_eq!(chips["lapics"].as_array().map(Vec::len), Some(2));
    let overview = user.run(&["inspect", "spin"]);
    for word in ["2 vCPUs", "waits for its INIT", "flat payload", "COM1"] {
        assert!(overview.stdout.contains(word), "{}", overview.stdout);
    }
    assert_eq!(hull.terminate(), Some(143));
    let left = fs::read_dir(user.0.path()).expect("the folder");
    assert_eq!(left.count(), 0, "files are left");
}

#[test]
fn a_name_belongs_to_one_machine_while_it_runs() {
    if !kvm("names") {
        return;
    }
    let user = User::new();
    user.refused(
        &["inspect", "nobody"],
        "no such machine: nobody; none is running",
    );
    let payload = built("guest/payloads/spin.bin");
    for bad in ["a/b", "..", "", "123", "a b", ".hidden", &"x".repeat(65)] {
        let name = format!("--name={bad}");
        user.refused(&["run", &payload, &name], "a name is 1 to 64 letters");
    }
    let mut first = user.spin(&["--name", "same"]);
    let pid = first.0.id().to_string();
    let unnamed = user.spin(&[]);
    let there = format!(
        "these are running: {}, same (process {pid})",
        unnamed.0.id()
    );
    user.refused(&["inspect", "nobody"], &there);
    let taken = format!("the machine name \"same\" is already in use by process {pid}");
    user.refused(&["run", &payload, "--name", "same"], &taken);
    user.refused(
        &["inspect", "same", "registers", "--cpu", "1"],
        "there is no vCPU 1: this machine has vCPU 0 alone",
    );
    user.refused(&["inspect", "same", "pagetables"], "needs an address");
    user.refused(
        &["inspect", "same", "memory", "12"],
        "only pagetables takes",
    );
    user.refused(
        &["inspect", "same", "pagetables", "nonsense"],
        "neither an address in hexadecimal nor a function",
    );

    // The next machine removes the record of a killed one.
    first.0.kill().expect("killed");
    first.0.wait().expect("an end");
    assert!(user.folder().join("same/lock").exists());
    user.refused(&["inspect", "same"], "no such machine: same");
    assert!(!user.folder().join("same").exists());
    let again = user.spin(&["--name", "same"]);
    drop(again); // killed, too, and taken over
    let again = user.spin(&["--name", "same"]);
    assert_eq!(again.terminate(), Some(143));
    assert_eq!(unnamed.terminate(), Some(143));
    assert!(!user.folder().exists(), "files are left");
}

#[test]
fn without_a_folder_for_records_only_a_named_machine_is_refused() {
    if !kvm("no records") {
        return;
    }
    let user = User::new();
    let payload = built("guest/payloads/hello.bin");
    // A file where the folder should be.
    fs::write(user.folder(), "in the way").expect("written");
    let done = user.run(&["run", &payload]);
    assert_eq!(
        (done.status, done.stdout.as_str(), done.stderr.as_str()),
        (Some(0), "Hello from a virtual machine\n", "")
    );
    let named = ["run", &payload, "--name", "hello"];
    user.refused(&named, "no folder for records of running machines");
}

#[test]
fn a_hostile_client_costs_only_its_connection() {
    if !kvm("hostile clients") {
        return;
    }
    let user = User::new();
    let hull = user.spin(&["--name", "target"]);
    let socket = user.folder().join("target/socket");
    let connect = || UnixStream::connect(&socket).expect("it listens");
    let silent: Vec<_> = (0..5).map(|_| connect()).collect();
    for bytes in [&b""[..], b"\n", b"{}\n", b"\xff\xfe\n", &[b'{'; 100_000]] {
        let mut stream = connect();
        let _ = stream.write_all(bytes);
        if bytes.contains(&b'\n') {
            let mut answer = String::new();
            BufReader::new(stream)
                .read_line(&mut answer)
                .expect("an answer");
            assert!(answer.contains("refused"), "{answer}");
        }
    }
    assert!(user.inspect("target", &["registers"])["vcpus"].is_array());
    drop(silent);
    // More clients than are accepted at once: the others wait until these close.
    let _silent: Vec<_> = (0..10).map(|_| connect()).collect();
    assert!(user.inspect("target", &["registers"])["vcpus"].is_array());
    assert_eq!(hull.terminate(), Some(143));
}

/// The address of a symbol of hull's kernel.
fn symbol(name: &str) -> u64 {
    let map = fs::read_to_string(built("guest/System.map")).expect("a System.map");
    let line = map.lines().find(|line| line.ends_with(&format!(" {name}")));
    let address = line.and_then(|line| line.split(' ').next());
    u64::from_str_radix(address.expect(name), 16).expect("an address")
}

/// Where Linux maps its image: physical address 0 would be here (Documentation/arch/x86/x86_64/mm.rst).
const IMAGE_MAP: u64 = 0xffff_ffff_8000_0000;

fn check_linux(user: &User) {
    let seen = user.inspect("linux", &["registers"]);
    let cpu = &seen["vcpus"][0];
    let words = |name: &str| {
        let words = one(&cpu["control"], "name", name)["words"].as_str();
        words.expect("words").to_string()
    };
    assert!(words("CR0").ends_with("PG"), "{}", words("CR0"));
    assert!(words("EFER").contains("LMA"), "{}", words("EFER"));
    assert_eq!(words("CR3"), "4-level paging");
    let mode = cpu["mode"].as_str().expect("a mode");
    assert!(mode.starts_with("64-bit mode, CPL "), "{mode}");
    let code = one(&cpu["gdt"]["entries"], "selector", "0x10");
    assert_eq!(code["kind"], "64-bit code, execute/read, accessed, DPL 0");
    assert_eq!(cpu["idt"]["entries"][0]["symbol"], "asm_exc_divide_error");

    let seen = user.inspect("linux", &["memory"]);
    let kernel = one(&seen["memory"]["areas"], "what", "kernel");
    assert_eq!(number(&kernel["start"]), symbol("_text") - IMAGE_MAP);
    assert_eq!(number(&kernel["end"]), symbol("_end") - IMAGE_MAP);
    let areas = seen["memory"]["areas"].as_array().expect("areas");
    assert!(
        areas
            .windows(2)
            .all(|pair| pair[0]["end"] == pair[1]["start"])
    );
    assert!(seen["memory"]["resident"].as_u64() > Some(1 << 20));

    let walk = &user.inspect("linux", &["pagetables", "start_kernel+0x10"])["walk"];
    assert_eq!(number(&walk["address"]), symbol("start_kernel") + 0x10);
    assert_eq!(
        number(&walk["gpa"]),
        symbol("start_kernel") + 0x10 - IMAGE_MAP
    );
    assert_eq!(walk["what"], "kernel");
    assert_eq!(walk["levels"][0]["table"], "PML4");
    // The direct map of all memory.
    let walk = &user.inspect("linux", &["pagetables", "0xffff888000100000"])["walk"];
    assert_eq!(walk["gpa"], "0x100000");
    let walk = &user.inspect("linux", &["pagetables", "0x10"])["walk"];
    assert_eq!(walk["gpa"], Value::Null);
    assert!(
        walk["end"]
            .as_str()
            .expect("words")
            .contains("is not present")
    );
    let walk = &user.inspect("linux", &["pagetables", "0x800000000000"])["walk"];
    assert!(
        walk["end"]
            .as_str()
            .expect("words")
            .contains("not canonical")
    );

    let seen = user.inspect("linux", &["devices"]);
    let rng = one(&seen["devices"], "name", "rng");
    let status = one(&rng["registers"], "name", "Status");
    assert_eq!(status["words"], "ACKNOWLEDGE DRIVER FEATURES_OK DRIVER_OK");
    let features = one(&rng["registers"], "name", "DriverFeatures");
    assert_eq!(features["words"], "INDIRECT_DESC EVENT_IDX VERSION_1");
    let com1 = one(&seen["devices"], "name", "COM1");
    assert_eq!(one(&com1["registers"], "name", "LSR")["words"], "THRE TEMT");
    let gsi = com1["gsi"].clone();

    let seen = user.inspect("linux", &["queues"]);
    let console = one(&seen["queues"], "device", "virtio console");
    let input = &console["queues"][0];
    assert_eq!(
        (&input["ready"], &input["size"]),
        (&true.into(), &64.into())
    );
    let rings = &input["rings"];
    assert_eq!(rings["fault"], Value::Null);
    assert_eq!(rings["chains"][0]["descriptors"][0]["flags"], "WRITE");
    let seen = user.inspect("linux", &["interrupts"]);
    let com1 = one(&seen["interrupts"]["ioapic"], "device", "COM1");
    assert_eq!((&com1["pin"], &com1["masked"]), (&gsi, &false.into()));
    let lapic = &seen["interrupts"]["lapics"][0]["registers"];
    let spurious = one(lapic, "name", "SVR")["words"].as_str();
    assert_eq!(spurious, Some("enabled, spurious vector 0xff"));
}

#[test]
fn inspecting_linux_does_not_disturb_it() {
    if !kvm("inspect Linux") {
        return;
    }
    const LINES: u32 = 2000;
    let user = User::new();
    let script = format!(
        "echo up; read line; i=0; while [ $i -lt {LINES} ]; do echo $i; i=$((i+1)); done; \
         read line; exit 7"
    );
    let mut hull = user.hull(&["run", "--name", "linux", "--", "sh", "-c", &script]);
    let hull = hull.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut hull = Running(hull.spawn().expect("hull starts"));
    let mut stdout = BufReader::new(hull.0.stdout.take().expect("a pipe"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a line");
    assert_eq!(line, "up\n");
    check_linux(&user);

    let mut stdin = hull.0.stdin.take().expect("a pipe");
    stdin.write_all(b"\n").expect("hull reads");
    let rest = thread::spawn(move || {
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).map(|_| rest)
    });
    for topic in ["registers", "memory", "devices", "queues", "interrupts"].repeat(20) {
        let done = user.run(&["inspect", "linux", topic]);
        assert_eq!(
            (done.status, done.stderr.as_str()),
            (Some(0), ""),
            "{topic}"
        );
    }
    stdin.write_all(b"\n").expect("hull reads");
    let rest = rest.join().expect("no panic").expect("text");
    let expected: String = (0..LINES).map(|line| format!("{line}\n")).collect();
    assert!(rest == expected, "lines are missing");
    assert_eq!(hull.0.wait().expect("an end").code(), Some(7));
    assert!(!Path::new(&user.folder()).exists(), "files are left");
}
