//! NOTICE names all that the program file holds. `NOTICE=overwrite cargo test --test notice` writes it anew after
//! a change of the dependencies.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

const HEAD: &str = "\
NOTICE of hull

hull is licensed under the Apache License, Version 2.0, whose text is in LICENSE. The program file holds
other works too, each under its own licence. This file names them, and says where their source is.

Linux, the guest's kernel: GPL-2.0 WITH Linux-syscall-note
    Debian's package linux-source-6.12 (https://packages.debian.org/bookworm/linux-source-6.12, or
    `apt-get download linux-source-6.12`) with the changes in guest/kernel/patches and the configuration
    guest/kernel/config of hull's source. guest/kernel/build builds it; `hull version` prints its version.

busybox, the programs in the guest: GPL-2.0
    Debian's package busybox-static, unchanged; its source: `apt-get source busybox`
    (https://packages.debian.org/source/bookworm/busybox).

The GNU C library: LGPL-2.1 or later, with parts under other licences
    Linked statically, as Rust's target x86_64-unknown-linux-gnu does. Its source: `apt-get source glibc`.
    With hull's source `make build` links the program with another version of it.

Rust's standard library: MIT OR Apache-2.0
    https://github.com/rust-lang/rust; its libraries are named in its COPYRIGHT file.

liblzma of XZ Utils, in the crate liblzma-sys: 0BSD, older parts in the public domain
    https://tukaani.org/xz/

The kernel and busybox are separate programs that hull starts in a virtual machine; the sources of all are
offered by the distributors named above.

";

/// The text of iced-x86, whose crate comes without it: that of its repository.
const ICED: &str = "\
Copyright (C) 2018-present iced project and contributors

Permission is hereby granted, free of charge, to any person obtaining
a copy of this software and associated documentation files (the
\"Software\"), to deal in the Software without restriction, including
without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to
permit persons to whom the Software is furnished to do so, subject to
the following conditions:

The above copyright notice and this permission notice shall be
included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND,
EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT.
IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY
CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT,
TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.";

/// A crate that is linked into the program or the guest's init.
struct Linked {
    name: String,
    version: String,
    licence: String,
    source: String,
    folder: PathBuf,
}

/// The output of cargo with `arguments`.
fn cargo(arguments: &[&str]) -> String {
    let mut cargo = Command::new(env!("CARGO"));
    let output = cargo.args(arguments).args(["--offline", "--locked"]);
    let output = output.current_dir(ROOT).output().expect("cargo starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// The names and versions of what is linked. Procedural macros run in the compiler only.
fn names() -> BTreeSet<(String, String)> {
    let tree = cargo(&[
        "tree",
        "--edges=normal,no-proc-macro",
        "--target=x86_64-unknown-linux-gnu",
        "--prefix=none",
        "--no-dedupe",
        "--format={p}",
    ]);
    let named = |line: &str| {
        let (name, version) = line.split_once(" v").expect("a name and a version");
        let version = version.split(' ').next().unwrap_or_default();
        (name.to_string(), version.to_string())
    };
    let all = tree.lines().filter(|line| !line.is_empty()).map(named);
    all.filter(|(name, _)| !name.starts_with("hull")).collect()
}

fn linked() -> Vec<Linked> {
    let names = names();
    // Without the crates of other systems, which are not downloaded.
    let metadata = cargo(&[
        "metadata",
        "--format-version=1",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ]);
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let packages = metadata["packages"].as_array().expect("packages");
    let all = packages.iter().map(|package| Linked {
        name: text(&package["name"]),
        version: text(&package["version"]),
        licence: text(&package["license"]),
        source: text(&package["repository"]),
        folder: Path::new(&text(&package["manifest_path"])).with_file_name(""),
    });
    let mut all: Vec<Linked> = all
        .filter(|found| names.contains(&(found.name.clone(), found.version.clone())))
        .collect();
    all.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    assert_eq!(all.len(), names.len());
    all
}

impl Linked {
    /// Whether the Apache License alone is enough, so that no text but LICENSE is needed.
    fn is_apache(&self) -> bool {
        let parts = self.licence.split(" OR ").flat_map(|part| part.split('/'));
        parts
            .map(str::trim)
            .any(|part| part.trim_end_matches(" WITH LLVM-exception") == "Apache-2.0")
    }

    /// The texts in its folder, and of the library in C below it, that must be handed on.
    fn texts(&self) -> BTreeSet<String> {
        let mut folders = vec![self.folder.clone()];
        let below = fs::read_dir(&self.folder).expect("its folder");
        folders.extend(
            below
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.is_dir()),
        );
        let files = folders
            .iter()
            .flat_map(|folder| fs::read_dir(folder).expect("a folder"));
        let mut texts = BTreeSet::new();
        if self.name == "iced-x86" {
            texts.insert(ICED.to_string());
        }
        for file in files.flatten().filter(|file| file.path().is_file()) {
            let name = file.file_name().to_string_lossy().to_uppercase();
            let begins = |words: &[&str]| words.iter().any(|word| name.starts_with(word));
            let is_notice = begins(&["NOTICE"]);
            let is_licence = begins(&["LICENSE", "LICENCE", "COPYING", "UNLICENSE"]);
            let Ok(text) = fs::read_to_string(file.path()) else {
                continue;
            };
            let wanted = is_notice || is_licence && !self.is_apache();
            // The library may be had under a BSD licence, which stands beside these.
            let other = text.contains("Apache License") && text.len() > 8000
                || text.contains("GNU GENERAL PUBLIC")
                || text.contains("GNU LESSER");
            if wanted && !other {
                texts.insert(text.replace('\r', "").trim().to_string());
            }
        }
        texts
    }
}

fn notice() -> String {
    let linked = linked();
    let mut notice = HEAD.to_string();
    notice += "The crates from https://crates.io:\n\n";
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for one in &linked {
        let name = format!("{} {}", one.name, one.version);
        writeln!(notice, "{name}: {}\n    {}", one.licence, one.source).expect("memory");
        let found = one.texts();
        for text in found {
            texts.entry(text).or_default().push(name.clone());
        }
    }
    notice += "\nTexts that come with them, apart from the Apache License:\n";
    let mut texts: Vec<_> = texts.into_iter().collect();
    texts.sort_by(|a, b| a.1.cmp(&b.1).then(a.0.cmp(&b.0)));
    for (text, names) in texts {
        write!(
            notice,
            "\n{}\n{}\n\n{text}\n",
            "-".repeat(80),
            names.join(", ")
        )
        .expect("memory");
    }
    notice
}

#[test]
fn the_notice_names_all_that_is_linked() {
    let path = Path::new(ROOT).join("NOTICE");
    let expected = notice();
    if std::env::var_os("NOTICE").is_some_and(|wish| wish == "overwrite") {
        fs::write(&path, &expected).expect("it is written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "NOTICE does not fit Cargo.lock: NOTICE=overwrite cargo test --test notice"
    );
    // What has no text of its own offers the Apache License, or its text was not found.
    for one in linked().iter().filter(|one| !one.is_apache()) {
        assert!(
            !one.texts().is_empty(),
            "{} {} under {} comes without its text",
            one.name,
            one.version,
            one.licence
        );
    }
}
