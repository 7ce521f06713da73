//! The rules of the source tree that a reader relies on, checked on the text of `src/`: who may
//! use whom, where `unsafe` and printing may stand, how long a file may be.
//!
//! Each rule is a function from text to faults, tried on small texts below before the tree itself
//! is judged by it. Test code (`#[cfg(test)]` and files of tests) is held to the rule on `unsafe`
//! alone.

use std::fs;
use std::path::{Path, PathBuf};

/// Each top-level module and those it may use. A new module needs a line here.
const EDGES: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("lib", &[]),
    // The doctor examines KVM itself, without a machine; a rate is typed as the devices have it.
    (
        "cli",
        &[
            "agent",
            "boot",
            "compare",
            "control",
            "devices",
            "disk",
            "fleet",
            "gdb",
            "guest",
            "inspect",
            "kvm",
            "memory",
            "net",
            "pool",
            "profile",
            "share",
            "snapshot",
            "symbols",
            "templates",
            "trace",
            "vmm",
        ],
    ),
    // `boot::Entry` and its tables are plain data, which kvm turns into registers.
    (
        "vmm",
        &[
            "agent", "boot", "control", "devices", "disk", "fleet", "inspect", "kvm", "memory",
            "net", "profile", "share", "snapshot", "symbols", "trace",
        ],
    ),
    ("agent", &[]),
    // The floor of what a machine costs is KVM's; a report says on what kind of KVM it was taken.
    ("compare", &["guest", "kvm"]),
    ("control", &["fleet", "inspect"]),
    ("fleet", &[]),
    // What KVM and the devices hold, in words.
    ("inspect", &["devices", "kvm", "memory", "symbols"]),
    ("boot", &["memory"]),
    // Events are plain data that anybody may record.
    ("devices", &["memory", "trace"]),
    // It serves the requests that the device model takes apart.
    ("disk", &["devices", "memory"]),
    // It stops, looks at and changes a whole machine.
    ("gdb", &["boot", "kvm", "memory", "vmm"]),
    ("guest", &["memory"]),
    ("kvm", &["boot", "memory"]),
    ("memory", &[]),
    // It moves the frames that the device model takes apart.
    ("net", &["devices", "memory"]),
    ("pool", &["agent", "control", "fleet"]),
    ("profile", &["kvm", "memory", "symbols"]),
    ("sandbox", &[]),
    // As the disk does.
    ("share", &["devices", "memory", "sandbox"]),
    ("snapshot", &["memory"]),
    ("symbols", &["memory"]),
    // Plain files: what a snapshot is, is no matter to it.
    ("templates", &[]),
    ("trace", &[]),
];

/// Where `unsafe` may stand; in `net` for the ioctls of tap devices, in a file of their own.
const UNSAFE: &[&str] = &["kvm", "memory", "net", "sandbox"];

/// What may print: the command line, and main its last word.
const PRINTS: &[&str] = &["cli", "main"];

/// Lines of a file, tests in it included.
const MAX_LINES: usize = 700;

/// A comment on safety stands at most so many lines above the `unsafe` that it is about.
const SAFETY_WITHIN: usize = 8;

/// A file of `src/`, as the rules see it.
struct Source {
    /// Below `src/`, with `/`.
    path: String,
    text: String,
    /// `text` with comments and literals blanked out.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
            code: blank(text),
        }
    }

    /// Modules from the crate to this file: `["kvm", "vcpu"]` for `kvm/vcpu.rs`.
    fn modules(&self) -> Vec<&str> {
        let stem = self.path.trim_end_matches(".rs").trim_end_matches("/mod");
        stem.split('/').collect()
    }

    fn top(&self) -> &str {
        self.modules()[0]
    }

    fn is_test(&self) -> bool {
        let is_test = |module: &&str| matches!(*module, "tests" | "testing" | "fake");
        self.modules().iter().any(is_test)
    }

    /// `code` without what is compiled for tests alone.
    fn product(&self) -> String {
        match self.is_test() {
            true => String::new(),
            false => without_tests(&self.code),
        }
    }

    fn fault(&self, line: usize, what: impl std::fmt::Display) -> String {
        format!("src/{}:{line}: {what}", self.path)
    }
}

/// `text` with comments, strings and characters replaced by spaces, line by line the same.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::new();
    let mut i = 0;
    while i < chars.len() {
        let end = match (at(i), at(i + 1)) {
            ('/', '/') => (i..chars.len()).find(|&j| at(j) == '\n'),
            ('/', '*') => {
                let mut depth = 0;
                (i + 1..chars.len()).find_map(|j| {
                    match (at(j - 1), at(j)) {
                        ('/', '*') => depth += 1,
                        ('*', '/') => depth -= 1,
                        _ => {}
                    }
                    (depth == 0).then_some(j + 1)
                })
            }
            ('r', '"' | '#') if !out.ends_with(is_word) => {
                let hashes = (i + 1..chars.len()).take_while(|&j| at(j) == '#').count();
                let close = format!("\"{}", "#".repeat(hashes));
                match at(i + 1 + hashes) {
                    '"' => (i + 2 + hashes..chars.len())
                        .find(|&j| close.chars().enumerate().all(|(k, c)| at(j + k) == c))
                        .map(|j| j + close.len()),
                    _ => Some(i),
                }
            }
            ('"', _) => closing(&chars, i, '"'),
            ('\'', '\\') => closing(&chars, i, '\''),
            // A character, not a lifetime.
            ('\'', _) if at(i + 2) == '\'' => Some(i + 3),
            _ => Some(i),
        }
        .unwrap_or(chars.len());
        if end == i {
            out.push(at(i));
            i += 1;
        }
        while i < end {
            out.push(if at(i) == '\n' { '\n' } else { ' ' });
            i += 1;
        }
    }
    out
}

/// Where the literal that `quote` opens at `start` is over.
fn closing(chars: &[char], start: usize, quote: char) -> Option<usize> {
    let mut escaped = false;
    (start + 1..chars.len()).find_map(|i| {
        let here = chars[i] == quote && !escaped;
        escaped = chars[i] == '\\' && !escaped;
        here.then_some(i + 1)
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `code` with each item under `#[cfg(test)]` blanked out: up to its block's end or its `;`.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let Some(start) = code.find(MARK) else {
        return code.into();
    };
    let mut depth = 0;
    let item = code[start..].char_indices().find_map(|(i, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        (depth == 0 && matches!(c, '}' | ';')).then_some(start + i + 1)
    });
    let end = item.unwrap_or(code.len());
    let lines = code[start..end].matches('\n').count();
    let rest = without_tests(&code[end..]);
    format!("{}{}{rest}", &code[..start], "\n".repeat(lines))
}

/// Places of `word` in `code`, as a word of its own: line from 1, and what comes after.
fn words<'a>(code: &'a str, word: &str) -> Vec<(usize, &'a str)> {
    let alone = |&(i, _): &(usize, &str)| {
        !code[..i].ends_with(is_word) && !code[i + word.len()..].starts_with(is_word)
    };
    code.match_indices(word)
        .filter(alone)
        .map(|(i, _)| (1 + code[..i].matches('\n').count(), &code[i + word.len()..]))
        .collect()
}

/// First names of a path or of a group of paths: `a` of `a::b`, `a` and `b` of `{a::x, b}`.
fn first_names(path: &str) -> Vec<String> {
    let path = path.trim_start();
    let Some(group) = path.strip_prefix('{') else {
        return vec![path.chars().take_while(|&c| is_word(c)).collect()];
    };
    let mut depth = 0;
    let end = group.find(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        depth < 0
    });
    let mut depth = 0;
    group[..end.unwrap_or(group.len())]
        .split(|c| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            depth == 0 && c == ','
        })
        .map(|path| path.trim().chars().take_while(|&c| is_word(c)).collect())
        .collect()
}

/// Uses of other top-level modules that are not allowed.
fn edge_faults(source: &Source) -> Vec<String> {
    let product = source.product();
    let top = source.top();
    let Some((_, allowed)) = EDGES.iter().find(|(module, _)| *module == top) else {
        return vec![source.fault(1, format!("module {top} has no line in EDGES"))];
    };
    let mut uses: Vec<(usize, String)> = Vec::new();
    for word in ["crate", "hull"] {
        for (line, rest) in words(&product, word) {
            if let Some(path) = rest.trim_start().strip_prefix("::") {
                uses.extend(first_names(path).into_iter().map(|name| (line, name)));
            }
        }
    }
    // As many `super` as there are modules lead to the crate, too.
    let depth = source.modules().len();
    for (line, rest) in words(&product, "super") {
        let mut path = rest;
        for _ in 1..depth {
            path = path.strip_prefix("::super").unwrap_or_default();
        }
        if let Some(path) = path.strip_prefix("::") {
            uses.extend(first_names(path).into_iter().map(|name| (line, name)));
        }
    }
    let is_module = |name: &str| EDGES.iter().any(|(module, _)| *module == name);
    uses.into_iter()
        .filter(|(_, name)| is_module(name) && name != top && !allowed.contains(&name.as_str()))
        .map(|(line, name)| source.fault(line, format!("{top} must not use {name}")))
        .collect()
}

/// Printing outside of the command line.
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

/// `unsafe` where it must not be, or without a word on why it is sound.
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

/// Files too long to read.
fn length_faults(source: &Source) -> Vec<String> {
    let lines = source.text.lines().count();
    match lines > MAX_LINES && !source.is_test() {
        true => vec![source.fault(lines, format!("longer than {MAX_LINES} lines"))],
        false => Vec::new(),
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(&path, files),
            false => files.push(path),
        }
    }
}

fn tree() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&src, &mut files);
    files.retain(|path| path.extension().is_some_and(|ext| ext == "rs"));
    files
        .iter()
        .map(|path| {
            let name = path.strip_prefix(&src).unwrap().to_str().unwrap();
            Source::new(name, &fs::read_to_string(path).unwrap())
        })
        .collect()
}

fn judge(rule: fn(&Source) -> Vec<String>) {
    let sources = tree();
    assert!(sources.len() > 20, "src/ was not found");
    let faults: Vec<String> = sources.iter().flat_map(rule).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
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
fn unsafe_stands_where_it_may_and_says_why_it_is_sound() {
    judge(unsafe_faults);
}

#[test]
fn files_are_short_enough_to_read() {
    judge(length_faults);
}

#[test]
fn all_modules_of_the_crate_are_ruled() {
    let lib = tree().into_iter().find(|source| source.path == "lib.rs");
    let code = lib.unwrap().code;
    let modules = words(&code, "mod");
    assert!(modules.len() > 5);
    for (_, rest) in modules {
        let name = first_names(rest).remove(0);
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
fn the_checker_sees_a_forbidden_use_however_it_is_written() {
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
fn the_checker_sees_what_prints() {
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
fn the_checker_sees_what_is_unsafe() {
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
fn the_checker_sees_what_is_long() {
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
fn blanking_leaves_code_and_lines() {
    for (text, code) in [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */ d */ e", "a                   e"),
        ("a(\"b \\\" c\", d)", "a(        , d)"),
        ("a('\"', '\\'', b)", "a(   ,     , b)"),
        ("fn a<'b>(c: &'b str)", "fn a<'b>(c: &'b str)"),
        ("a(r#\"b \" c\"#, d)", "a(          , d)"),
        ("r#type, for\"a\"", "r#type, for   "),
        ("a(b\"c\")", "a(b   )"),
        ("\"a\nb\" c", "  \n   c"),
    ] {
        assert_eq!(blank(text), code);
    }
}
