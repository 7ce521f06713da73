//! `hull snapshot` and `hull restore` of a Linux guest, which runs a shell that the test tells what to
//! do: after a restore, too.

mod machine;

use std::fs;

use machine::kvm;
use machine::saving::{Talk, text};
use machine::user::User;

#[test]
fn a_mounted_folder_cannot_be_saved_and_an_unmounted_one_can() {
    if !kvm("snapshot with a shared folder") {
        return;
    }
    let user = User::new();
    let dir = user.0.path().join("saved");
    let folder = user.0.path().join("folder");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("file"), "shared\n").expect("a file");
    let share = format!("{}:/mnt", folder.display());
    let mut original = Talk::start(
        &user,
        &[
            "run", "--name", "shares", "--share", &share, "--", "/bin/sh",
        ],
    );
    assert_eq!(original.ask("cat /mnt/file"), "shared");
    user.refused(
        &["snapshot", "shares", text(&dir)],
        "is mounted in the guest",
    );
    assert!(!dir.exists(), "nothing is left behind");
    assert_eq!(
        original.ask("cat /mnt/file; umount /mnt; echo $?"),
        "shared\n0"
    );
    user.snapshot("shares", &dir, &[]);
    let mut copy = user.restore(&dir, &[]);
    assert_eq!(copy.ask("ls /mnt; echo it goes on"), "it goes on");
    copy.order("exit 3");
    assert_eq!(copy.hull.0.wait().expect("an end").code(), Some(3));

    // The template of all that is none that hull restore can do anything with.
    let cache = std::env::var_os("HULL_CACHE").expect("cargo and tests/lab/suite say");
    let templates = fs::read_dir(cache)
        .expect("the cache")
        .map(|it| it.expect("a file").path());
    let template = templates
        .into_iter()
        .find(|template| template.join("state").exists());
    let template = template.expect("the template of this guest");
    user.refused(
        &["restore", text(&template)],
        "is a template without a command",
    );
    user.refused(
        &["restore", text(&template), "-n", "2"],
        "is a template without a command",
    );
}
