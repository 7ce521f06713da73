//! Circles of files inside a module: each file of a circle uses the next one, and the last the first.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Source, paths};

/// Of larger circles only the files are shown, not which uses which.
const MAX_SHOWN: usize = 12;

/// Which file uses which others of its top-level module, by their modules: `kvm/vcpu`.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// One fault for each circle in `sources`. `allowed` are uses that do not count: from, to, and why.
pub fn circle_faults(sources: &[Source], allowed: &[(&str, &str, &str)]) -> Vec<String> {
    let mut uses = uses(sources);
    for (from, to, _) in allowed {
        let known = uses.get_mut(*from).is_some_and(|all| all.remove(*to));
        if !known {
            return vec![format!(
                "src/{from} does not use {to} any more: drop it from the list"
            )];
        }
    }
    let reached: BTreeMap<_, _> = uses.keys().map(|file| (file, reach(&uses, file))).collect();
    let mut circles = BTreeSet::new();
    for (&file, others) in &reached {
        let mutual = |other: &&String| reached[other].contains(file);
        circles.insert(
            others
                .iter()
                .filter(mutual)
                .cloned()
                .collect::<BTreeSet<_>>(),
        );
    }
    let circles = circles.iter().filter(|circle| circle.len() > 1);
    circles.map(|circle| describe(circle, &uses)).collect()
}

fn uses(sources: &[Source]) -> Uses {
    let sources = sources.iter().filter(|source| !source.is_test());
    let files: BTreeMap<_, _> = sources
        .map(|source| (source.modules().join("/"), source))
        .collect();
    let inside = |me: &String, source: &Source| {
        let product = source.product();
        let targets = paths(&product).into_iter();
        let targets = targets.filter_map(|(_, names)| {
            let known = |name: &str| files.contains_key(name);
            resolve(&source.modules(), &names, known)
        });
        let inside = targets.filter(|to| to != me && top(to) == top(me));
        inside.collect()
    };
    files
        .iter()
        .map(|(me, source)| (me.clone(), inside(me, source)))
        .collect()
}

fn top(file: &str) -> &str {
    file.split('/').next().unwrap_or_default()
}

/// The file that a path in the file `me` leads to, if `known` files have it.
fn resolve(me: &[&str], path: &[&str], known: impl Fn(&str) -> bool) -> Option<String> {
    let mut at = me.to_vec();
    let mut names = path;
    match path[0] {
        "crate" => at.clear(),
        "self" | "super" => {}
        name if known(&[me, &[name]].concat().join("/")) => {}
        _ => return None,
    }
    while let [name, rest @ ..] = names {
        match *name {
            "crate" | "self" => {}
            "super" => drop(at.pop()),
            name => {
                at.push(name);
                if !known(&at.join("/")) {
                    at.pop();
                    break;
                }
            }
        }
        names = rest;
    }
    Some(at.join("/")).filter(|file| known(file))
}

/// All files that `file` uses, directly or through others.
fn reach(uses: &Uses, file: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut open = vec![file];
    while let Some(file) = open.pop() {
        for to in &uses[file] {
            if reached.insert(to.clone()) {
                open.push(to);
            }
        }
    }
    reached
}

fn describe(circle: &BTreeSet<String>, uses: &Uses) -> String {
    let first = circle.first().map_or("", String::as_str);
    let mut text = format!(
        "src/{}: {} files use each other in a circle:",
        top(first),
        circle.len()
    );
    for file in circle {
        let inside: Vec<&str> = uses[file]
            .intersection(circle)
            .map(String::as_str)
            .collect();
        if circle.len() > MAX_SHOWN {
            text += &format!(" {file}");
        } else {
            text += &format!("\n    {file} -> {}", inside.join(", "));
        }
    }
    text
}

/// Three files of one module.
fn files(texts: [&str; 3]) -> [Source; 3] {
    let [a, b, c] = texts;
    [("a/mod.rs", a), ("a/b.rs", b), ("a/c.rs", c)].map(|(path, text)| Source::new(path, text))
}

#[test]
fn circles_are_found_however_a_use_is_written() {
    for (texts, circles) in [
        (["mod b; use b::X;", "use super::Y;", ""], 1),
        (["pub use self::b::X;", "fn f(y: crate::a::Y) {}", ""], 1),
        (["mod b;", "use super::Y;", ""], 0),
        (
            [
                "use c::X;",
                "use super::Y;",
                "use super::{b::{self, Z}, d};",
            ],
            1,
        ),
        (["", "use super::c;", "use crate::a::b::Z;"], 1),
        (["", "use super::c;", "use crate::d::b::Z;"], 0),
        (
            [
                "",
                "use super::c;",
                "//! super::b\n#[cfg(test)]\nmod t { use super::super::b; }",
            ],
            0,
        ),
    ] {
        let faults = circle_faults(&files(texts), &[]);
        assert_eq!(faults.len(), circles, "{texts:?}: {faults:?}");
    }
}

#[test]
fn a_use_on_the_list_closes_no_circle() {
    let files = files(["", "use super::c;", "use super::b;"]);
    assert_eq!(circle_faults(&files, &[("a/b", "a/c", "why")]).len(), 0);
    assert_eq!(circle_faults(&files, &[("a/b", "a", "gone")]).len(), 1);
}
