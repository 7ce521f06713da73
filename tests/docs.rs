//! README.md, docs/ and benches/RESULTS.md: links lead somewhere, paths exist, and the commands and flags
//! that they show are hull's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a newcomer reads.
const MAX_README_LINES: usize = 250;
/// Folders whose files the pages name in backquotes.
const FOLDERS: [&str; 6] = ["src/", "guest/", "tests/", "benches/", "fuzz/", "docs/"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages, by path from the root.
fn pages() -> BTreeMap<PathBuf, String> {
    let docs = fs::read_dir(root().join("docs")).expect("docs/").flatten();
    let mut paths: Vec<PathBuf> = docs
        .map(|page| Path::new("docs").join(page.file_name()))
        .collect();
    paths.extend(["README.md", "benches/RESULTS.md", "guest/lessons/README.md"].map(PathBuf::from));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(root().join(&path)).expect("text");
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// The anchors of a page's headings, as web sites make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn links_lead_to_files_and_headings_that_exist() {
    let mut links = 0;
    for (page, text) in pages() {
        let folder = root().join(&page).parent().expect("a folder").to_path_buf();
        let targets = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for link in targets.filter(|link| !link.contains("://")) {
            links += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => root().join(&page),
                file => folder.join(file),
            };
            assert!(target.exists(), "{}: no {link}", page.display());
            if !anchor.is_empty() {
                let there = anchors(&fs::read_to_string(&target).expect("text"));
                assert!(
                    there.contains(anchor),
                    "{}: {link}: {there:?}",
                    page.display()
                );
            }
        }
    }
    assert!(links > 20, "{links} links");
}

/// The pieces of a page between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn files_that_the_pages_name_exist() {
    for (page, text) in pages() {
        for path in quoted(&text).filter_map(|quoted| quoted.split_whitespace().next()) {
            if FOLDERS.iter().any(|folder| path.starts_with(folder)) && !path.contains('*') {
                assert!(root().join(path).exists(), "{}: no {path}", page.display());
            }
        }
    }
}

/// The text of all files of Rust below a folder.
fn sources(folder: &Path) -> String {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let texts = entries.map(|entry| match entry.path() {
        path if path.is_dir() => sources(&path),
        path if path.extension().is_some_and(|it| it == "rs") => {
            fs::read_to_string(path).expect("text")
        }
        _ => String::new(),
    });
    texts.collect()
}

#[test]
fn what_hostile_guests_tried_is_tested() {
    let security = &pages()[Path::new("docs/security.md")];
    let table = security.split("\n## What hostile guests tried\n").nth(1);
    let table = table.expect("a section").split("\n## ").next();
    let rows = table.expect("a table").lines();
    let rows: Vec<&str> = rows
        .filter(|line| line.starts_with("| ") && !line.ends_with("| test |"))
        .collect();
    assert!(rows.len() >= 15, "{} rows", rows.len());
    let all = sources(&root().join("tests")) + &sources(&root().join("src"));
    for row in rows {
        let cell = row.trim_end_matches(" |").rsplit(" | ").next();
        let tests = quoted(cell.expect("a cell")).filter(|name| !name.contains('/'));
        let tests: Vec<&str> = tests.collect();
        assert!(!tests.is_empty(), "no test: {row}");
        for test in tests {
            assert!(all.contains(&format!("fn {test}(")), "no {test}");
        }
    }
}

/// What hull and its verbs say with `--help`, by the words of the verb.
fn helps(verb: &[&str], helps: &mut BTreeMap<String, String>) {
    let hull = Command::new(env!("CARGO_BIN_EXE_hull"))
        .args(verb)
        .arg("--help")
        .output();
    let text = String::from_utf8(hull.expect("hull starts").stdout).expect("text");
    let commands = text.split("Commands:\n").nth(1).unwrap_or_default();
    for line in commands.lines().take_while(|line| line.starts_with("  ")) {
        // Continuation lines are indented further.
        if let Some(word) = line
            .split_whitespace()
            .next()
            .filter(|_| !line.starts_with("   "))
        {
            self::helps(&[verb, &[word]].concat(), helps);
        }
    }
    helps.insert(verb.join(" "), text);
}

fn has_flag(help: &str, flag: &str) -> bool {
    let mut words = help.split(|c: char| !c.is_alphanumeric() && c != '-');
    words.any(|word| word == flag)
}

#[test]
fn the_commands_and_flags_of_the_pages_are_hulls() {
    let mut all = BTreeMap::new();
    helps(&[], &mut all);
    let mut commands = 0;
    for (page, text) in pages() {
        for line in text.lines().filter_map(|line| line.strip_prefix("    ")) {
            let line = line.trim_start_matches("$ ").trim_start_matches("time ");
            let Some(arguments) = line.strip_prefix("hull ") else {
                continue;
            };
            commands += 1;
            let words = arguments.split_whitespace();
            let words: Vec<&str> = words
                .take_while(|word| !["--", "#", "&", "|"].contains(word))
                .collect();
            let verb = (1..=words.len().min(2))
                .rev()
                .map(|len| words[..len].join(" "));
            let verb = verb.into_iter().find(|verb| all.contains_key(verb));
            let verb = verb.unwrap_or_else(|| panic!("{}: {line}", page.display()));
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                let name = flag.split('=').next().expect("a name");
                assert!(
                    has_flag(&all[&verb], name),
                    "{}: {verb} has no {name}",
                    page.display()
                );
            }
        }
        let flags = quoted(&text).filter(|quoted| quoted.starts_with("--"));
        for flag in flags.filter_map(|flag| flag.split([' ', '=']).next()) {
            let known = all.values().any(|help| has_flag(help, flag));
            assert!(known || flag == "--", "{}: no {flag}", page.display());
        }
    }
    assert!(commands > 30, "{commands} commands");
}

#[test]
fn machines_in_toml_are_accepted() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let mut machines = 0;
    for (page, text) in pages() {
        for toml in text.split("```toml\n").skip(1) {
            machines += 1;
            let file = scratch.path().join(format!("{machines}.toml"));
            fs::write(&file, toml.split("```").next().expect("text")).expect("a file");
            let hull = Command::new(env!("CARGO_BIN_EXE_hull"))
                .args(["run", "--print-config", "--config"])
                .arg(file)
                .output()
                .expect("hull starts");
            let error = String::from_utf8_lossy(&hull.stderr);
            assert!(hull.status.success(), "{}: {error}", page.display());
        }
    }
    assert!(machines > 0);
}

#[test]
fn the_readme_is_short() {
    let lines = pages()[Path::new("README.md")].lines().count();
    assert!(lines < MAX_README_LINES, "{lines} lines");
}
