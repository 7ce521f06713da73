//! The kernel `full`, which lies beside the program: [`find`] says where.

use std::path::{Path, PathBuf};

/// The kernel `full` of this program.
///
/// # Errors
/// The places where it may be; it is at none of them.
pub fn find() -> Result<PathBuf, Vec<PathBuf>> {
    let program = std::env::current_exe().unwrap_or_default();
    let places: Vec<PathBuf> = places(&program).collect();
    let there = places.iter().find(|place| place.is_file());
    there.cloned().ok_or(places)
}

/// Where it may be: `make install` puts it below the folder that has bin/hull, `make kernel-full` into the folder
/// of what is built.
fn places(program: &Path) -> impl Iterator<Item = PathBuf> {
    let installed = program.ancestors().nth(2).map(|it| it.join("lib/hull"));
    let mut above = program.ancestors();
    let built = above.find(|folder| folder.ends_with("target"));
    let built = built.map(|folder| folder.join("guest"));
    let folders = installed.into_iter().chain(built);
    folders.map(|folder| folder.join("full/vmlinux"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lies_where_the_program_was_installed_or_built() {
        let of = |program: &str| -> Vec<_> { places(Path::new(program)).collect() };
        assert_eq!(
            of("/usr/local/bin/hull"),
            [Path::new("/usr/local/lib/hull/full/vmlinux")]
        );
        for program in ["/src/target/release/hull", "/src/target/x86_64/debug/hull"] {
            let built = Path::new("/src/target/guest/full/vmlinux");
            assert_eq!(of(program).last().map(PathBuf::as_path), Some(built));
        }
        assert!(of("").is_empty());
    }
}
