//! What is written is read back, whatever it is; what cannot be read is refused with its place.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::machine::{Command, Console};
use super::*;
use crate::boot::Via;
use crate::devices::rate::{Limit, Limits};
use crate::{disk, net};

fn limits() -> impl Strategy<Value = Limits> {
    let limit = || option::of((1..=1u64 << 50, 1..=1u64 << 50));
    (limit(), limit()).prop_map(|(bytes, operations)| {
        let limit = |(per_second, burst)| Limit { per_second, burst };
        Limits {
            bytes: bytes.map(limit),
            operations: operations.map(limit),
        }
    })
}

fn a_disk() -> impl Strategy<Value = disk::Config> {
    let name = option::of("[!-~]{1,20}");
    const FORMATS: &[Option<disk::Format>] =
        &[None, Some(disk::Format::Raw), Some(disk::Format::Qcow2)];
    let backing = vec("/[a-z,=]{1,8}", 0..3);
    let whole = ("[a-z,=:é/]{1,12}", any::<bool>(), any::<bool>(), name);
    let rest = (select(FORMATS), backing, limits());
    (whole, rest).prop_map(
        |((path, read_only, keep, name), (format, backing, limits))| disk::Config {
            source: disk::Source::Image(path.into()),
            read_only,
            name,
            cache: if keep {
                disk::Cache::Writeback
            } else {
                disk::Cache::Unsafe
            },
            format,
            backing: backing.into_iter().map(Into::into).collect(),
            overlay: false,
            limits,
            root: false,
        },
    )
}

fn a_net() -> impl Strategy<Value = net::Config> {
    let publish = vec((any::<u32>(), 1..=u16::MAX, any::<bool>()), 0..3);
    let user = (publish, any::<bool>()).prop_map(|(ports, host_loopback)| net::Kind::User {
        host_loopback,
        publish: ports
            .into_iter()
            .map(|(address, port, tcp)| net::Publish {
                address: address.into(),
                host: port,
                guest: port,
                protocol: if tcp {
                    net::Protocol::Tcp
                } else {
                    net::Protocol::Udp
                },
            })
            .collect(),
    });
    let subnet = option::of((1..=32u8).prop_map(|prefix| net::Subnet {
        address: Ipv4Addr::new(10, 0, 2, 15),
        prefix,
    }));
    let tap = ("[a-z][a-z0-9.-]{0,14}", subnet).prop_map(|(name, address)| net::Kind::Tap {
        name,
        gateway: address.map(|_| Ipv4Addr::new(10, 0, 2, 1)),
        address,
    });
    let names = vec("[a-zA-Z0-9_.-]{1,20}", 0..3);
    let shared =
        ("[a-z][a-z0-9_.-]{6,14}", names).prop_map(|(network, aliases)| net::Kind::Shared {
            network,
            aliases,
            publish: Vec::new(),
        });
    let kind = prop_oneof![user, tap, shared];
    let allow = "([a-z]{1,5}\\.[a-z]{2,3}|\\*\\.[a-z]{2,6}|10\\.1\\.0\\.0/16)(:[1-9][0-9]{0,3})?";
    let policy = (vec(allow, 0..3), any::<bool>());
    (kind, option::of(any::<[u8; 5]>()), limits(), policy).prop_map(
        |(kind, mac, limits, (allow, deny_private))| net::Config {
            policy: match kind {
                net::Kind::Tap { .. } => net::policy::Policy::default(),
                _ => net::policy::Policy {
                    allow: allow
                        .iter()
                        .map(|it| it.parse().expect("a destination"))
                        .collect(),
                    deny_private,
                },
            },
            kind,
            mac: mac.map(|[a, b, c, d, e]| [2, a, b, c, d, e]),
            limits,
        },
    )
}

prop_compose! {
    fn a_command()(
        argv in vec(".{0,8}", 1..4),
        env in vec("[A-Z]=.{0,8}", 0..3),
        cwd in "(/[a-z]{1,4})?",
        user in "([a-z0-9]{1,4}(:[a-z0-9]{1,4})?)?",
        tty in option::of(any::<bool>()),
    ) -> Command {
        let words = |words: Vec<String>| words.into_iter().map(Into::into).collect();
        Command { argv: words(argv), env: words(env), cwd: cwd.into(), user: user.into(), tty, root: None }
    }
}

prop_compose! {
    fn a_draft()(
        sizes in (1..=32u8, 2u64 << 20..=1 << 40),
        files in (option::of("[a-z/]{1,9}|full").prop_map(|it| it.map(OsString::from)), option::of("[a-z/]{1,9}"), ".{0,9}"),
        ways in (select(&[Via::Auto, Via::Pvh, Via::Guest][..]), any::<bool>(), any::<bool>()),
        disks in vec(a_disk(), 0..3),
        scratches in vec(1u64 << 20..=1 << 44, 0..2),
        nets in vec(a_net(), 0..3),
        share in option::of(("[a-z:.]{1,6}", "/[a-z]{1,6}", any::<bool>())),
        rest in (any::<bool>(), option::of(0..1u64 << 20), option::of(3..u32::MAX)),
        faults in subsequence(&[Fault::NoMptable, Fault::BadE820, Fault::WrongCpuid][..], 0..3),
        command in option::of(a_command()),
    ) -> Draft {
        let (kernel, initrd, cmdline) = files;
        let words = |words: &[OsString]| words.iter().map(|word| without_nul(word)).collect();
        Draft {
            machine: Machine {
                name: Some("m1".into()),
                cpus: sizes.0,
                memory_bytes: sizes.1 & !0xfff,
                kernel: kernel.map_or(Kernel::Tiny, Kernel::from),
                initrd: initrd.map(Into::into),
                boot: ways.0,
                cmdline: cmdline.replace('\0', ""),
                console: if ways.1 { Console::Serial } else { Console::Virtio },
                kernel_log: ways.2,
                lockdown: if ways.1 { Lockdown::Required } else { Lockdown::default() },
                jail: ways.2.then_some(Jail { uid: ways.1.then_some(5), gid: None }),
                limits: limits::Limits {
                    cpu_hundredths: ways.1.then_some(105),
                    pids: ways.2.then_some(1000),
                    ..limits::Limits::default()
                },
                faults,
                command: command.map(|command| Command {
                    argv: words(&command.argv),
                    env: words(&command.env),
                    ..command
                }),
                ..Machine::default()
            },
            devices: BTreeMap::from([
                ("disk", disks.into_iter().map(Device::Disk).collect()),
                ("scratch", scratches
                    .into_iter()
                    .map(|bytes| device::parse("scratch", &bytes.to_string()).expect("a size"))
                    .collect()),
                ("net", nets.into_iter().map(Device::Net).collect()),
                ("share", share
                    .map(|(folder, path, read_only)| {
                        let end = if read_only { ":ro" } else { "" };
                        let text = format!("{folder}:{path}{end}");
                        device::parse("share", &text).expect("a share")
                    })
                    .into_iter()
                    .collect()),
                ("rng", rest.0.then_some(Device::Rng).into_iter().collect()),
                ("balloon", rest.1
                    .map(|target_bytes| {
                        let period = Some(Duration::from_secs(5));
                        Device::Balloon(Balloon { target_bytes, period })
                    })
                    .into_iter()
                    .collect()),
                ("vsock", rest.2
                    .map(|cid| Device::Vsock(Vsock { cid, socket: "/tmp/a,b".into() }))
                    .into_iter()
                    .collect()),
            ]),
        }
    }
}

fn without_nul(word: &std::ffi::OsStr) -> std::ffi::OsString {
    word.to_string_lossy().replace('\0', "").into()
}

proptest! {
    #[test]
    fn a_machine_is_read_as_it_was_written(draft in a_draft()) {
        // Drafts with two disks of one file, for example, describe no machine.
        let Ok(machine) = draft.machine() else { return Ok(()) };
        let text = file::write(&machine).expect("it is UTF-8").text();
        let read = file::parse(&text).and_then(Draft::machine);
        prop_assert_eq!(read.map_err(|error| error.to_string()), Ok(machine.clone()), "{}", text);
        // What is saved of a machine does not say how hull runs it.
        let machine = Machine {
            lockdown: Lockdown::default(),
            jail: None,
            limits: limits::Limits::default(),
            ..machine
        };
        let json = serde_json::to_string(&machine).expect("plain data");
        prop_assert_eq!(&serde_json::from_str::<Machine>(&json).expect("JSON"), &machine);
        let bytes = postcard::to_allocvec(&machine).expect("plain data");
        prop_assert_eq!(&postcard::from_bytes::<Machine>(&bytes).expect("its bytes"), &machine);
    }

    #[test]
    fn no_file_makes_the_parser_panic(text in ".{0,200}", key in select(file::keys().collect::<Vec<_>>())) {
        let _ = file::parse(&text);
        let _ = file::parse(&format!("{{{text:?}: 1}}"));
        let _ = file::parse(&format!("{key} = {text}"));
        let _ = file::parse(&format!("{{\"{key}\": {text}}}"));
        let _ = file::parse(&format!("{{\"{key}\": {text:?}}}")).map(Draft::machine);
        let _ = file::parse(&format!("{{\"{key}\": [{{{text:?}: true}}]}}"));
    }
}

#[test]
fn every_key_is_known() {
    for key in file::keys() {
        let refusal = file::parse(&format!("{{\"{key}\": null}}")).map(drop);
        let refusal = refusal.expect_err("null is no value").to_string();
        assert!(
            refusal.contains(&format!(": {key}: ")) && !refusal.contains("unknown"),
            "{refusal}"
        );
    }
}

#[test]
fn a_table_is_the_text_of_its_flag() {
    let toml = r#"
        memory = 1073741824
        rng = "off"
        balloon = { size = "64M", stats = 5 }
        vsock = { cid = 3, socket = "/tmp/a,b" }
        disk = ["a.img,ro", { path = "b,c.img", ro = true, overlay = false, id = "d,e", rate = "1M" }]
        scratch = { size = "1G" }
        share = { folder = "/a:/b", path = "/src", ro = true }
        net = [{ user = true, publish = ["80:80", "81:81/udp"] }, { tap = "t", mac = "02:00:00:00:00:01" }]
    "#;
    let json = r#"{
        "memory": "1GiB", "rng": false, "balloon": "64M,stats=5", "vsock": "cid=3,socket=/tmp/a,b",
        "disk": ["a.img,ro", "b,,c.img,ro,id=d,,e,rate=1M"], "scratch": ["1G"],
        "share": "/a:/b:/src:ro",
        "net": ["user,publish=80:80,publish=81:81/udp", "tap=t,mac=02:00:00:00:00:01"]
    }"#;
    let machine = |text| file::parse(text).and_then(Draft::machine).expect(text);
    assert_eq!(machine(toml), machine(json));
    assert_eq!(machine(toml).devices.len(), 8);
}

#[test]
fn what_a_file_must_not_say_is_refused_with_its_place() {
    for (text, part) in [
        (
            "memry = 1",
            "memry: unknown key 'memry'; did you mean 'memory'?",
        ),
        ("zzzzzzzz = 1", "there are name, cpus"),
        (
            "disk = [\"a\", { path = \"b\", chache = \"unsafe\" }]",
            "disk[1].chache: unknown key 'chache'; did you mean 'cache'?",
        ),
        (
            "[command]\narg = []",
            "command.arg: unknown key 'arg'; did you mean 'argv'?",
        ),
        ("cpus = 0", "cpus: 0: a guest has 1 to 32 vCPUs"),
        ("cpus = 1.5", "cpus: 1.5: a guest has 1 to 32"),
        ("memory = true", "memory: it is a string"),
        (
            "disk = 5\nnet = { tap = \"a,mac=x\" }",
            "net.tap: the tap of a net has no ','",
        ),
        ("disk = { ro = true }", "disk: ,ro: a disk needs a path"),
        (
            "share = { folder = \"a\", path = \"/b:/c\" }",
            "the path of a share has no ':'",
        ),
        (
            "console = \"vga\"",
            "console: vga: a console is serial or virtio",
        ),
        ("break = [\"x\"]", "break[0]: x: 'x' is no part"),
        ("command = [\"a\", 1]", "command[1]: it is a string"),
        (
            "{",
            "no valid JSON: EOF while parsing an object at line 1 column 1",
        ),
        ("{\"a\" 1}", "line 1 column 6"),
        ("a = [", "no valid TOML: TOML parse error at line 1"),
        ("a = 1\na = 2", "duplicate key"),
        (&"[".repeat(10_000), "no valid TOML"),
        (
            &format!("{{\"disk\": {}", "[".repeat(10_000)),
            "recursion limit",
        ),
    ] {
        let refusal = file::parse(text).map(drop).expect_err(text).to_string();
        assert!(refusal.contains(part), "{text}: {refusal}");
    }
}

#[test]
fn what_excludes_each_other_is_refused_by_name() {
    for (text, part) in [
        ("net = [\"tap=a\", \"tap=a\"]", "net tap=a: given twice"),
        ("disk = [\"a\", \"a\"]", "disk a: named twice"),
        (
            "disk = [\"a,ro,id=x\"]\noverlay = \"b,id=x\"",
            "overlay id=x: two disks",
        ),
        (
            "root-disk = \"a\"\ninitrd = \"b\"",
            "root-disk excludes an initial RAM disk",
        ),
        (
            "balloon = \"128M\"",
            "balloon 128 MiB: the guest has 128 MiB in all",
        ),
        ("share = [\"a:/b\", \"c:/b\"]", "share /b: two folders"),
        ("break = \"no-irqchip\"\ncpus = 2", "break no-irqchip"),
    ] {
        let draft = file::parse(text).expect(text);
        let refusal = draft.machine().map(drop).expect_err(text).to_string();
        assert!(refusal.starts_with(part), "{text}: {refusal}");
    }
}
