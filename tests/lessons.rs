//! The commands in the lessons (guest/lessons/*.md) print what the lessons show. After an intended change
//! `TRYCMD=overwrite cargo test --test lessons` updates the outputs; then restore `[..]` where they differ
//! between machines.

mod machine;

use std::fs;
use std::path::Path;

use trycmd::schema::Bin;

#[test]
fn every_command_in_the_lessons_prints_what_they_show() {
    if !machine::kvm("lessons") {
        return;
    }
    let cargo = if machine::in_lab() {
        Bin::Ignore
    } else {
        Bin::Path(env!("CARGO").into())
    };
    trycmd::TestCases::new()
        .register_bin("hull", Path::new(env!("CARGO_BIN_EXE_hull")))
        // The lab has no compiler.
        .register_bin("cargo", cargo)
        .timeout(machine::LIMIT)
        .case(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/guest/lessons/[0-9]*.md"
        ));
}

/// The text of all lessons and of their index.
fn pages() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/lessons");
    let files = fs::read_dir(folder)
        .expect("the lessons are there")
        .flatten();
    let page = |file: fs::DirEntry| {
        let name = file.file_name().to_string_lossy().into_owned();
        (name, fs::read_to_string(file.path()).expect("text"))
    };
    files.map(page).collect()
}

#[test]
fn paths_in_the_lessons_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for (name, text) in pages() {
        // Every second piece stands between backquotes.
        let quoted = text.split('`').skip(1).step_by(2);
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        let links = links.map(|link| format!("guest/lessons/{link}"));
        let paths = quoted.map(String::from).chain(links);
        let ours = |path: &String| {
            let tree = path.starts_with("src/") || path.starts_with("guest/");
            tree && !path.contains(char::is_whitespace) && !path.contains('*')
        };
        for path in paths.filter(ours) {
            seen += 1;
            assert!(root.join(&path).exists(), "{name}: no {path}");
        }
    }
    assert!(seen > 50, "{seen} paths");
}

#[test]
fn items_in_the_lessons_are_in_the_files_that_they_name() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for (name, text) in pages() {
        let pieces: Vec<&str> = text.split('`').collect();
        for piece in pieces.windows(3) {
            let [item, between, path] = *piece else {
                continue;
            };
            let file = root.join(path);
            if ![" in ", " in\n", " (", "\n("].contains(&between) || !file.is_file() {
                continue;
            }
            seen += 1;
            let item = item.rsplit("::").next().unwrap_or(item);
            let source = fs::read_to_string(file).expect("text");
            assert!(source.contains(item), "{name}: no {item} in {path}");
        }
    }
    assert!(seen > 20, "{seen} items");
}

#[test]
fn every_way_to_break_a_machine_has_a_lesson() {
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_hull"))
        .args(["run", "--break", "?"])
        .output()
        .expect("hull starts");
    let help = String::from_utf8_lossy(&help.stderr).into_owned();
    let values = help.split("possible values: ").nth(1).expect("a list");
    let values = values.split(']').next().expect("its end");
    assert!(values.split(", ").count() >= 5, "{values}");
    for value in values.split(", ") {
        let command = format!("--break {value}");
        let shown =
            |(name, text): &(String, String)| name != "README.md" && text.contains(&command);
        assert!(pages().iter().any(shown), "no lesson has {command}");
    }
}
