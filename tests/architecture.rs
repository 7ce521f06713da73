//! The rules of the source tree, checked on the text of `src/`: which module may use which, no circles
//! of files inside a module, where `unsafe`, printing and new threads may stand, how long a file, a
//! function and a verb may be, and how limits are named.
//!
//! Each rule is a function from source text to faults. The tests below try it on small texts and then on
//! the tree. Test code (`#[cfg(test)]` and files of tests) must follow the rule on `unsafe` only.

#[path = "architecture/circles.rs"]
mod circles;
#[path = "architecture/source.rs"]
mod source;

use std::collections::BTreeSet;

use circles::circle_faults;
use source::{Source, first_word, paths, tree, words};

/// Each top-level module and the modules it may use. A new module needs a line here.
const EDGES: &[(&str, &[&str])] = &[
    ("main", &["cli", "launch"]),
    ("lib", &[]),
    // The doctor examines KVM itself, without a machine; a rate is typed as the devices have it.
    (
        "cli",
        &[
            "agent",
            "boot",
            "compare",
            "compose",
            "config",
            "control",
            "devices",
            "disk",
            "doctor",
            "fleet",
            "gdb",
            "guest",
            "image",
            "inspect",
            "kvm",
            "launch",
            "leftover",
            "memory",
            "net",
            "profile",
            "sandbox",
            "share",
            "snapshot",
            "supervisor",
            "symbols",
            "sync",
            "templates",
            "trace",
            "vmm",
            "volume",
        ],
    ),
    // `boot::Entry` and its tables are plain data, which kvm turns into registers.
    (
        "vmm",
        &[
            "agent", "boot", "config", "control", "devices", "disk", "fleet", "inspect", "kvm",
            "memory", "net", "profile", "sandbox", "share", "snapshot", "symbols", "sync", "trace",
        ],
    ),
    ("agent", &[]),
    // The floor of what a machine costs is KVM's; a report says on what kind of KVM it was taken.
    ("compare", &["guest", "kvm", "leftover", "sandbox"]),
    // Plain data that any module may use; a device's part is beside what it configures.
    (
        "config",
        &["boot", "devices", "disk", "fleet", "memory", "net", "share"],
    ),
    // A file becomes flags of `hull run`, whose values are checked as those are.
    ("compose", &["config", "fleet", "net"]),
    ("control", &["fleet", "inspect", "sandbox", "sync"]),
    ("fleet", &[]),
    // What KVM and the devices hold, in words.
    (
        "inspect",
        &["config", "devices", "kvm", "memory", "sandbox", "symbols"],
    ),
    ("boot", &["memory"]),
    // Events are plain data that any module may record.
    ("devices", &["config", "memory", "sandbox", "sync", "trace"]),
    // It examines KVM itself, without a machine.
    ("doctor", &["config", "guest", "kvm", "memory", "sandbox"]),
    // It serves the requests that the device model takes apart.
    ("disk", &["config", "devices", "memory", "sandbox", "sync"]),
    // It stops, looks at and changes a whole machine.
    ("gdb", &["boot", "kvm", "memory", "sandbox", "sync", "vmm"]),
    ("guest", &["memory"]),
    // Files on the host, which become a machine's disk in launch.
    ("image", &["config", "leftover", "templates"]),
    ("kvm", &["boot", "memory", "sandbox", "sync"]),
    // A machine's start, from its configuration on.
    (
        "launch",
        &[
            "agent",
            "boot",
            "config",
            "control",
            "disk",
            "fleet",
            "guest",
            "image",
            "kvm",
            "memory",
            "net",
            "pool",
            "symbols",
            "templates",
            "vmm",
        ],
    ),
    ("memory", &["sandbox"]),
    // It moves the frames that the device model takes apart; a switch is a process of its own.
    ("net", &["config", "devices", "memory", "sandbox"]),
    ("pool", &["agent", "control", "fleet", "sandbox"]),
    ("profile", &["kvm", "memory", "symbols", "sync"]),
    ("sandbox", &[]),
    // It serves the requests that the device model takes apart.
    ("share", &["config", "devices", "memory", "sandbox"]),
    ("snapshot", &["memory"]),
    // It waits for a machine that runs in another process; who attaches to that speaks the agent's protocol.
    (
        "supervisor",
        &[
            "agent", "config", "disk", "fleet", "sandbox", "share", "vmm",
        ],
    ),
    ("symbols", &["memory"]),
    // It stores plain files and does not know what a snapshot is.
    ("templates", &["config", "memory"]),
    ("leftover", &[]),
    ("sync", &[]),
    ("trace", &["sync"]),
    // Files on the host, which become a machine's disks in launch.
    ("volume", &["config", "disk", "fleet", "leftover"]),
];

/// Modules with `unsafe`; `net` has it for the ioctls of tap devices, in a file of their own.
const UNSAFE: &[&str] = &["kvm", "memory", "net", "sandbox"];

/// Modules that print: the command line, and main for its final error.
const PRINTS: &[&str] = &["cli", "main"];

/// Most lines of a file, tests included.
const MAX_LINES: usize = 700;

/// Most lines of a function, from `fn` to its closing brace.
const MAX_FUNCTION_LINES: usize = 60;

/// Most lines of a verb in `cli`, without comments, blank lines and tests.
const MAX_VERB_LINES: usize = 150;

/// Uses that close a circle and are a pattern: from, to, and why. They do not count as circles.
const PATTERNS: &[(&str, &str, &str)] = &[
    ("boot/error", "boot/bzimage", BOOT_ERROR),
    ("boot/error", "boot/cmdline", BOOT_ERROR),
    ("boot/error", "boot/detect", BOOT_ERROR),
    ("boot/error", "boot/elf", BOOT_ERROR),
    ("boot/error", "boot/flat", BOOT_ERROR),
    ("boot/error", "boot/initrd", BOOT_ERROR),
];

/// Each loader has its own error, and returns all of them as one.
const BOOT_ERROR: &str = "BootError holds the error of each loader by #[from]";

/// Faults that still stand: a file or folder below `src/`, and a part of the message. An entry without a
/// fault is refused, so that this list only gets shorter.
const EXCEPTIONS: &[(&str, &str)] = &[];

/// Most lines between a SAFETY comment and its `unsafe`.
const SAFETY_WITHIN: usize = 8;

/// Uses of a top-level module that EDGES does not allow.
fn edge_faults(source: &Source) -> Vec<String> {
    let product = source.product();
    let top = source.top();
    let Some((_, allowed)) = EDGES.iter().find(|(module, _)| *module == top) else {
        return vec![source.fault(1, format!("module {top} has no line in EDGES"))];
    };
    let is_module = |name: &str| EDGES.iter().any(|(module, _)| *module == name);
    // `super` as often as there are modules leads to the crate, too.
    let used = |path: &[&'_ str]| {
        let above = path.iter().take_while(|name| **name == "super").count();
        let from_crate = matches!(path[0], "crate" | "hull") || above == source.modules().len();
        let name = path.get(above.max(1)).filter(|_| from_crate)?;
        (is_module(name) && *name != top && !allowed.contains(name)).then(|| name.to_string())
    };
    let all = paths(&product).into_iter();
    let all: BTreeSet<_> = all
        .filter_map(|(line, path)| Some((line, used(&path)?)))
        .collect();
    let fault = |(line, name)| source.fault(line, format!("{top} must not use {name}"));
    all.into_iter().map(fault).collect()
}

/// Printing below the command line.
fn print_faults(source: &Source) -> Vec<String> {
    if PRINTS.contains(&source.top()) {
        return Vec::new();
    }
    let product = source.product();
    ["print", "println", "eprint", "eprintln", "dbg"]
        .iter()
        .flat_map(|name| words(&product, name))
        .filter(|(_, rest)| rest.starts_with('!'))
        .map(|(line, _)| source.fault(line, "only the command line prints"))
        .collect()
}

/// `unsafe` in other modules than UNSAFE, or without a SAFETY comment.
fn unsafe_faults(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut faults = Vec::new();
    for (line, rest) in words(&source.code, "unsafe") {
        // `unsafe(no_mangle)` is an attribute.
        if rest.starts_with('(') {
            continue;
        }
        if !UNSAFE.contains(&source.top()) {
            faults.push(source.fault(line, "unsafe belongs into kvm, memory, net and sandbox"));
        }
        let above = &lines[line.saturating_sub(1 + SAFETY_WITHIN)..line];
        let comment = |line: &&str| {
            let comment = line.trim_start().strip_prefix("//");
            comment.is_some_and(|text| text.contains("SAFETY:") || text.contains("# Safety"))
        };
        if !above.iter().any(comment) {
            faults.push(source.fault(line, "unsafe without a SAFETY comment"));
        }
    }
    faults
}

/// Files over MAX_LINES.
fn length_faults(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    if lines > MAX_LINES && !source.is_test() {
        vec![source.fault(lines, format!("longer than {MAX_LINES} lines"))]
    } else {
        Vec::new()
    }
}

/// Functions over MAX_FUNCTION_LINES.
fn function_faults(source: &Source) -> Vec<String> {
    let product = source.product();
    let long = words(&product, "fn")
        .into_iter()
        .filter_map(|(line, rest)| {
            let lines = 1 + rest[..body_end(rest)?].matches('\n').count();
            let name = first_word(rest);
            let what = format!("fn {name} has {lines} lines, more than {MAX_FUNCTION_LINES}");
            (lines > MAX_FUNCTION_LINES && !name.is_empty()).then(|| source.fault(line, what))
        });
    long.collect()
}

/// Where the body of the function ends whose signature `text` begins with; `None` without a body.
fn body_end(text: &str) -> Option<usize> {
    let mut depth = 0;
    let mut braces = 0;
    for (i, c) in text.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            ';' if depth == 0 && braces == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}

/// Verbs over MAX_VERB_LINES: files in `cli` that execute something.
fn verb_faults(source: &Source) -> Vec<String> {
    let product = source.product();
    let is_verb = words(&product, "fn")
        .iter()
        .any(|(_, rest)| first_word(rest) == "execute");
    let lines = product
        .lines()
        .filter(|line| !line.trim().is_empty())
        .count();
    if source.top() != "cli" || source.path == "cli/mod.rs" || !is_verb || lines <= MAX_VERB_LINES {
        return Vec::new();
    }
    vec![source.fault(
        1,
        format!("the verb has {lines} lines of code, more than {MAX_VERB_LINES}"),
    )]
}

/// Threads that do not begin in `sandbox`.
fn thread_faults(source: &Source) -> Vec<String> {
    if source.top() == "sandbox" {
        return Vec::new();
    }
    let begins = |path: &Vec<&str>| {
        let is_begin = |pair: &[&str]| matches!(pair, ["thread", "Builder" | "spawn"]);
        path.windows(2).any(is_begin)
    };
    let product = source.product();
    let all = paths(&product).into_iter().filter(|(_, path)| begins(path));
    all.map(|(line, _)| source.fault(line, "threads begin in sandbox only"))
        .collect()
}

/// Limits named `*_MOST` or `*_LEAST` instead of `MAX_*` or `MIN_*`.
fn limit_name_faults(source: &Source) -> Vec<String> {
    let product = source.product();
    let names = words(&product, "const").into_iter();
    let names = names.map(|(line, rest)| (line, first_word(rest)));
    let faults = names.filter(|(_, name)| name.ends_with("_MOST") || name.ends_with("_LEAST"));
    faults
        .map(|(line, name)| source.fault(line, format!("{name} should be MAX_* or MIN_*")))
        .collect()
}

/// All rules of a single file.
const RULES: &[fn(&Source) -> Vec<String>] = &[
    edge_faults,
    print_faults,
    unsafe_faults,
    length_faults,
    function_faults,
    verb_faults,
    thread_faults,
    limit_name_faults,
];

fn is_exception(fault: &str, (path, what): &(&str, &str)) -> bool {
    let rest = fault
        .strip_prefix("src/")
        .and_then(|fault| fault.strip_prefix(path));
    rest.is_some_and(|rest| rest.starts_with([':', '/']) && rest.contains(what))
}

fn refuse(faults: Vec<String>) {
    let listed = |fault: &String| {
        EXCEPTIONS
            .iter()
            .any(|exception| is_exception(fault, exception))
    };
    let faults: Vec<String> = faults.into_iter().filter(|fault| !listed(fault)).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

fn judge(rule: fn(&Source) -> Vec<String>) {
    let sources = tree();
    assert!(sources.len() > 20, "src/ was not found");
    refuse(sources.iter().flat_map(rule).collect());
}

#[test]
fn modules_use_only_what_they_may() {
    judge(edge_faults);
}

#[test]
fn nothing_below_the_command_line_prints() {
    judge(print_faults);
}

#[test]
fn unsafe_stands_where_it_may_and_has_a_safety_comment() {
    judge(unsafe_faults);
}

#[test]
fn files_are_short_enough_to_read() {
    judge(length_faults);
}

#[test]
fn functions_are_short_enough_to_read() {
    judge(function_faults);
}

#[test]
fn verbs_only_parse_call_and_print() {
    judge(verb_faults);
}

#[test]
fn threads_begin_in_the_sandbox() {
    judge(thread_faults);
}

#[test]
fn limits_are_named_max_and_min() {
    judge(limit_name_faults);
}

#[test]
fn files_of_a_module_use_each_other_in_no_circle() {
    refuse(circle_faults(&tree(), PATTERNS));
}

#[test]
fn every_exception_is_needed() {
    let sources = tree();
    let mut faults = circle_faults(&sources, PATTERNS);
    faults.extend(RULES.iter().flat_map(|rule| sources.iter().flat_map(rule)));
    let needed = |exception: &_| faults.iter().any(|fault| is_exception(fault, exception));
    let mended: Vec<_> = EXCEPTIONS
        .iter()
        .filter(|exception| !needed(exception))
        .collect();
    assert!(
        mended.is_empty(),
        "drop them from EXCEPTIONS, as they are mended: {mended:?}"
    );
}

#[test]
fn every_module_of_the_crate_has_its_edges() {
    let lib = tree().into_iter().find(|source| source.path == "lib.rs");
    let code = lib.unwrap().code;
    let modules = words(&code, "mod");
    assert!(modules.len() > 5);
    for (_, rest) in modules {
        let name = first_word(rest);
        assert!(
            EDGES.iter().any(|edge| edge.0 == name),
            "{name} is not in EDGES"
        );
    }
}

/// How many faults `rule` finds in `text` as the file `path`.
fn count(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> usize {
    rule(&Source::new(path, text)).len()
}

#[test]
fn a_forbidden_use_is_found_however_it_is_written() {
    for (path, text, faults) in [
        ("devices/bus.rs", "use crate::kvm::Vm;", 1),
        (
            "devices/mod.rs",
            "use crate::{\n    memory::{a, b},\n    kvm::{self, Vm},\n};",
            1,
        ),
        ("devices/bus.rs", "use crate :: kvm;", 1),
        (
            "devices/bus.rs",
            "fn f(vm: &crate::kvm::Vm) { crate::vmm::g() }",
            2,
        ),
        ("devices/mod.rs", "use super::kvm::Vm;", 1),
        ("devices/bus.rs", "use super::super::{kvm, vmm};", 2),
        ("devices/bus.rs", "use super::kvm::Vm;", 0),
        ("devices/legacy/rtc.rs", "use super::super::super::kvm;", 1),
        (
            "devices/bus.rs",
            "use crate::devices::kvm; use crate::memory::kvm;",
            0,
        ),
        (
            "devices/bus.rs",
            "//! See [`crate::kvm`].\nlet a = \"crate::kvm\";",
            0,
        ),
        (
            "devices/bus.rs",
            "#[cfg(test)]\nmod tests { use crate::kvm; }",
            0,
        ),
        (
            "devices/bus.rs",
            "#[cfg(test)]\nmod tests;\nuse crate::kvm;",
            1,
        ),
        ("devices/bus/tests.rs", "use crate::kvm;", 0),
        ("boot/elf.rs", "use crate::memory::M; use crate::kvm::K;", 1),
        ("kvm/vcpu.rs", "use crate::devices::Bus;", 1),
        ("kvm/regs.rs", "use crate::boot::Entry;", 0),
        ("memory/backing.rs", "use crate::boot::Entry;", 1),
        ("main.rs", "use hull::cli; use hull::vmm;", 1),
        ("novelty/mod.rs", "", 1),
    ] {
        assert_eq!(count(edge_faults, path, text), faults, "{path}: {text}");
    }
}

#[test]
fn printing_is_found() {
    for (path, text, faults) in [
        ("vmm/mod.rs", "println!(\"a\"); eprint!(\"b\"); dbg!(1);", 3),
        (
            "vmm/mod.rs",
            "writeln!(out, \"println!()\"); my_println!(); // println!()",
            0,
        ),
        (
            "vmm/mod.rs",
            "fn f() {}\n#[cfg(test)]\nmod tests { fn f() { println!(); } }",
            0,
        ),
        (
            "vmm/mod.rs",
            "#[cfg(test)]\nmod tests { }\nfn f() { println!(); }",
            1,
        ),
        ("cli/run.rs", "println!(\"a\");", 0),
    ] {
        assert_eq!(count(print_faults, path, text), faults, "{path}: {text}");
    }
}

#[test]
fn unsafe_is_found() {
    let far = format!(
        "// SAFETY: far away.\n{}unsafe {{ f() }}",
        "\n".repeat(SAFETY_WITHIN)
    );
    for (path, text, faults) in [
        ("kvm/vm.rs", "// SAFETY: it is.\nunsafe { f() }", 0),
        (
            "kvm/vm.rs",
            "// SAFETY: it is.\nlet a =\n    unsafe { f() };",
            0,
        ),
        (
            "kvm/vm.rs",
            "/// # Safety\n/// Be careful.\npub unsafe fn f() {}",
            0,
        ),
        ("kvm/vm.rs", "unsafe { f() }", 1),
        ("kvm/vm.rs", "let a = \"// SAFETY: no\";\nunsafe { f() }", 1),
        ("kvm/vm.rs", &far, 1),
        ("kvm/tests.rs", "unsafe { f() }", 1),
        ("vmm/mod.rs", "// SAFETY: it is.\nunsafe { f() }", 1),
        ("vmm/mod.rs", "unsafe impl Send for A {}", 2),
        (
            "vmm/mod.rs",
            "#![forbid(unsafe_code)] // unsafe\nlet a = 'u'; \"unsafe\";",
            0,
        ),
    ] {
        assert_eq!(count(unsafe_faults, path, text), faults, "{path}: {text}");
    }
}

#[test]
fn long_files_are_found() {
    let lines = |count| "a\n".repeat(count);
    assert_eq!(count(length_faults, "kvm/vm.rs", &lines(MAX_LINES)), 0);
    assert_eq!(count(length_faults, "kvm/vm.rs", &lines(MAX_LINES + 1)), 1);
    assert_eq!(
        count(length_faults, "kvm/vm/tests.rs", &lines(MAX_LINES + 1)),
        0
    );
    assert_eq!(
        count(length_faults, "kvm/tests/rings.rs", &lines(MAX_LINES + 1)),
        0
    );
}

#[test]
fn long_functions_are_found() {
    let function = |lines: usize| format!("fn f(a: [u8; 4]) {{{}}}", "\n".repeat(lines - 1));
    let long = function(MAX_FUNCTION_LINES + 1);
    for (path, text, faults) in [
        ("kvm/vm.rs", function(MAX_FUNCTION_LINES), 0),
        ("kvm/vm.rs", long.clone(), 1),
        ("kvm/tests.rs", long.clone(), 0),
        (
            "kvm/vm.rs",
            format!("#[cfg(test)]\nmod tests {{ {long} }}"),
            0,
        ),
        (
            "kvm/vm.rs",
            format!("trait A {{ fn a(&self); }}\n{long}"),
            1,
        ),
        ("kvm/vm.rs", format!("type A = fn(u8) -> u8;\n{long}"), 1),
    ] {
        assert_eq!(
            count(function_faults, path, &text),
            faults,
            "{path}: {text}"
        );
    }
}

#[test]
fn long_verbs_are_found() {
    let verb = |lines: usize| {
        format!(
            "fn execute() {{\n{}}}\n",
            "a();\n\n// b\n".repeat(lines - 2)
        )
    };
    let long = verb(MAX_VERB_LINES + 1);
    assert_eq!(count(verb_faults, "cli/run.rs", &verb(MAX_VERB_LINES)), 0);
    assert_eq!(count(verb_faults, "cli/run.rs", &long), 1);
    assert_eq!(
        count(verb_faults, "cli/run.rs", &long.replace("execute", "show")),
        0
    );
    assert_eq!(count(verb_faults, "cli/mod.rs", &long), 0);
    assert_eq!(count(verb_faults, "vmm/run.rs", &long), 0);
}

#[test]
fn threads_outside_the_sandbox_are_found() {
    for (path, text, faults) in [
        (
            "net/passt.rs",
            "std::thread::spawn(f); thread::Builder::new();",
            2,
        ),
        ("net/passt.rs", "use std::{fs, thread::{self, Builder}};", 1),
        (
            "net/passt.rs",
            "thread::sleep(a); tempfile::Builder::new(); // thread::spawn",
            0,
        ),
        ("net/passt/tests.rs", "thread::spawn(f);", 0),
        ("sandbox/mod.rs", "thread::Builder::new();", 0),
    ] {
        assert_eq!(count(thread_faults, path, text), faults, "{path}: {text}");
    }
}

#[test]
fn badly_named_limits_are_found() {
    let text = "const CPUS_MOST: u8 = 1;\npub const A_LEAST: u8 = 1; const MOST_A: u8 = 1;";
    assert_eq!(count(limit_name_faults, "vmm/mod.rs", text), 2);
}
