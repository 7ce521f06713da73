//! The lessons' commands print what the lessons show (guest/lessons/*.md). After a change on purpose
//! `TRYCMD=overwrite cargo test --test lessons` writes the outputs anew; then put `[..]` back where
//! they differ from machine to machine.

mod machine;

use std::path::Path;

#[test]
fn every_command_of_the_lessons_prints_what_they_show() {
    if !machine::kvm("lessons") {
        return;
    }
    trycmd::TestCases::new()
        .register_bin("hull", Path::new(env!("CARGO_BIN_EXE_hull")))
        .timeout(machine::LIMIT)
        .case(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/guest/lessons/[0-9]*.md"
        ));
}
