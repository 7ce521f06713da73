//! `hull run --share`: folders of the host in the guest.

mod machine;

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use machine::guest_program::guest_program;
use machine::user::{NOBODY, User};
use machine::{kvm, run, run_with, script};
use rustix::fs::{FlockOperation, XattrFlags, fcntl_lock, flock, getxattr, setxattr};
use rustix::process::geteuid;

fn share(folder: &Path, rest: &str) -> String {
    format!("--share={}:{rest}", folder.display())
}

#[test]
fn files_go_both_ways() {
    if !kvm("shares") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("from-host"), "host\n").expect("written");
    symlink("/etc/passwd", path("link")).expect("a link");
    symlink("../outside", path("up")).expect("a link");
    for n in 0..30 {
        fs::create_dir_all(path("tree").join(format!("{n}"))).expect("made");
        for file in 0..10 {
            fs::write(path("tree").join(format!("{n}/{file}")), "x").expect("written");
        }
    }
    let flags = share(folder.path(), "/mnt/deep/src");
    // The guest resolves links: to its own passwd, and to a file beside its mount point.
    let finished = script(
        &[&flags],
        "cd /mnt/deep/src; cat from-host; find tree -type f | wc -l; echo inside > ../outside; \
         cat up; cmp link /etc/passwd && echo same; mkdir -p made/by; echo guest > made/by/guest; \
         mv made/by/guest made/guest; chmod 640 made/guest; \
         chmod 777 .; chown 5 .; \
         rm from-host; mknod dev c 1 3; ls -l made | grep -c guest",
    );
    // The folder itself is the host's.
    let refused = "chmod: .: Operation not permitted\n\
         chown: .: Operation not permitted\n\
         mknod: dev: Operation not permitted\n";
    finished.assert(0, "host\n300\ninside\nsame\n1\n", refused);
    let made = fs::metadata(path("made/guest")).expect("the guest's file");
    assert_eq!(made.mode() & 0o7777, 0o640);
    assert_eq!(
        fs::read_to_string(path("made/guest")).expect("read"),
        "guest\n"
    );
    assert!(!path("from-host").exists());
    assert!(!path("dev").exists());
    let outside = folder.path().parent().expect("a parent").join("outside");
    assert!(!outside.exists(), "the guest wrote outside");
}

#[test]
fn a_large_file_arrives_unchanged() {
    if !kvm("shares") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    // A software KVM emulates the guest kernel's copies, which would take minutes at the lab's size.
    let mib = if machine::in_lab() { 64 } else { 2 };
    let mut seed = 1u64;
    let data: Vec<u8> = (0..mib << 17)
        .flat_map(|_| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            seed.to_le_bytes()
        })
        .collect();
    fs::write(folder.path().join("in"), &data).expect("written");
    let sum = |data: &[u8]| {
        let mut hasher = DefaultHasher::new();
        data.hash(&mut hasher);
        hasher.finish()
    };
    let flags = share(folder.path(), "/s");
    let finished = script(
        &[&flags],
        "cd /s; dd if=in of=out bs=1M 2> /dev/null; cmp in out && wc -c < out",
    );
    finished.assert(0, &format!("{}\n", data.len()), "");
    let copy = fs::read(folder.path().join("out")).expect("the copy");
    assert!(copy.len() == data.len() && sum(&copy) == sum(&data));
}

#[test]
fn a_read_only_share_does_not_change_and_several_can_be_mounted() {
    if !kvm("shares") {
        return;
    }
    let [one, two, nested] = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    fs::write(one.path().join("file"), "kept\n").expect("written");
    fs::create_dir(one.path().join("inner")).expect("made");
    fs::write(nested.path().join("deep"), "deep\n").expect("written");
    let flags = [
        // Mounted last, though it is named first.
        share(nested.path(), "/a/inner"),
        share(one.path(), "/a:ro"),
        share(two.path(), "/b/a"),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let finished = script(
        &flags,
        "cat /a/file /a/inner/deep; touch /a/new; echo x > /a/file; rm /a/file; \
         mount -o remount,rw /a; touch /a/new; echo two > /b/a/two; \
         mount | grep virtiofs | sort",
    );
    let refused = "touch: /a/new: Read-only file system\n\
        /bin/sh: can't create /a/file: Read-only file system\n\
        rm: can't remove '/a/file': Read-only file system\n\
        touch: /a/new: Read-only file system\n";
    let mounts = "a on /a type virtiofs (rw,nosuid,nodev,relatime)\n\
        inner on /a/inner type virtiofs (rw,nosuid,nodev,relatime)\n\
        share2 on /b/a type virtiofs (rw,nosuid,nodev,relatime)\n";
    finished.assert(0, &format!("kept\ndeep\n{mounts}"), refused);
    assert_eq!(fs::read_dir(one.path()).expect("read").count(), 2);
    let written = fs::read_to_string(two.path().join("two"));
    assert_eq!(written.expect("the guest's file"), "two\n");
}

#[test]
fn changes_by_the_host_are_seen() {
    if !kvm("shares") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "old\n").expect("written");
    let flags = share(folder.path(), "/s");
    // The guest prints a line after each read; a line on its input makes it read again.
    let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"))
        .args(["run", &flags, "--", "/bin/sh", "-c"])
        .arg("cat /s/file; touch /s/seen; read x; sleep 2; cat /s/file /s/more")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("hull starts");
    let seen = folder.path().join("seen");
    let since = Instant::now();
    while !seen.exists() && since.elapsed() < machine::LIMIT {
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::write(&file, "new, and longer\n").expect("written");
    fs::write(folder.path().join("more"), "more\n").expect("written");
    drop(hull.stdin.take());
    let output = hull.wait_with_output().expect("hull ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "old\nnew, and longer\nmore\n");
}

#[test]
fn impossible_shares_are_refused_before_the_boot() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("written");
    let root = folder.path().join("root");
    symlink("/", &root).expect("a link");
    let missing = folder.path().join("none");
    for (flag, said) in [
        (
            share(&missing, "/s"),
            "No such file or directory (os error 2); name a folder",
        ),
        (
            share(&file, "/s"),
            "not a folder; share the folder that contains it",
        ),
        (share(Path::new("/"), "/s"), "this is /, the whole host"),
        (share(&root, "/s:ro"), "this is /, the whole host"),
        (
            share(Path::new("/usr/.."), "/s"),
            "this is /, the whole host",
        ),
    ] {
        let finished = run(&["run", &flag, "--", "true"]);
        assert_eq!(finished.status, Some(125), "{flag}: {}", finished.stderr);
        assert!(finished.stdout.is_empty());
        let path = flag.trim_start_matches("--share=");
        let path = path.rsplit_once(":/").expect("a path").0;
        assert!(finished.stderr.contains("--share"), "{}", finished.stderr);
        assert!(finished.stderr.contains(path), "{}", finished.stderr);
        assert!(finished.stderr.contains(said), "{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    }
    let twice = [share(folder.path(), "/s"), share(folder.path(), "/s/")];
    let finished = run(&["run", &twice[0], &twice[1], "--", "true"]);
    assert_eq!(finished.status, Some(125));
    assert!(
        finished.stderr.contains("--share /s: two folders"),
        "{}",
        finished.stderr
    );
}

#[test]
fn a_failed_mount_ends_the_run() {
    if !kvm("shares") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    // A folder cannot be mounted on a file.
    let flags = share(folder.path(), "/etc/passwd");
    let finished = run_with(&["run", &flags, "--", "echo", "ran"], b"");
    assert_eq!(finished.status, Some(125), "{}", finished.stderr);
    assert!(finished.stdout.is_empty(), "the command ran");
    let said = "a shared folder cannot be mounted at /etc/passwd";
    assert!(finished.stderr.contains(said), "{}", finished.stderr);
}

/// tests/all runs this first, so that the program is there when the lab starts.
#[test]
fn the_guests_program_is_built() {
    assert!(guest_program("files").exists());
}

/// What a share does not do, and why: its lines in the table of files_guest.rs.
const DIFFERENT: [&str; 2] = [
    // A guest makes no programs of the host that run as another user, and no devices.
    "set-ID bits: the mode: 493, not 3565",
    "devices: Operation not permitted (os error 1)",
];

/// What the guest can do if the host's file system can: tmpfs has attributes since Linux 6.6, overlay
/// files without a name since 6.3.
const BY_HOST: [&str; 2] = ["file without a name", "extended attributes"];

/// The cases that also run on a software KVM, which emulates the guest's kernel.
const FEW: [&str; 7] = [
    "open flags",
    "append",
    "rename over",
    "link counts",
    "removed and open",
    "file without a name",
    "set-ID bits",
];

#[test]
fn a_share_does_what_a_file_system_promises() {
    if !kvm("shares") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::copy(guest_program("files"), path("files")).expect("copied");
    fs::create_dir(path("host")).expect("made");
    fs::create_dir(path("guest")).expect("made");
    let cases: &[&str] = match machine::lab_also("most cases", "they take minutes") {
        true => &[],
        false => &FEW,
    };
    let host = Command::new(path("files"))
        .arg(path("host"))
        .args(cases)
        .output()
        .expect("the program runs");
    let host = String::from_utf8(host.stdout).expect("text");
    assert!(host.lines().count() >= FEW.len(), "{host}");
    let expected: String = host
        .lines()
        .map(|line| {
            let (name, _) = line.split_once(':').expect("a name");
            let other = DIFFERENT.iter().find(|other| other.starts_with(name));
            match other {
                Some(other) => format!("{other}\n"),
                None if BY_HOST.contains(&name) => format!("{line}\n"),
                None => format!("{name}: ok\n"),
            }
        })
        .collect();
    let flags = share(folder.path(), "/s:xattr=on");
    let arguments = ["run", &flags, "--", "/s/files", "/s/guest"];
    run(&[&arguments, cases].concat()).assert(0, &expected, "");
}

/// More files than descriptors; and a folder that is emptied while it is read.
#[test]
fn a_share_has_more_files_than_hull_may_open() {
    if !kvm("shares") {
        return;
    }
    // In the lab this is the tmpfs of Linux 6.1, whose positions count entries.
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let (files, gone) = match machine::in_lab() {
        true => (4500, 1000),
        false => (400, 200), // each look-up is emulated
    };
    for (name, count) in [("many", files), ("gone", gone)] {
        fs::create_dir(folder.path().join(name)).expect("made");
        for n in 0..count {
            fs::write(folder.path().join(format!("{name}/{n}")), "").expect("written");
        }
    }
    // What several shares keep open for speed leaves room for what the guest opens.
    let mut shares = vec![share(folder.path(), "/s")];
    let (more_shares, folders) = match machine::in_lab() {
        true => (6, 40),
        false => (1, 2),
    };
    for n in 0..more_shares {
        for inner in 0..folders {
            let inner = folder.path().join(format!("share{n}/{inner}"));
            fs::create_dir_all(&inner).expect("made");
            fs::write(inner.join("f"), "x").expect("written");
        }
        let more = folder.path().join(format!("share{n}"));
        shares.push(share(&more, &format!("/share{n}")));
    }
    let opened = more_shares * folders;
    let script = "cat /share*/*/f | wc -c; cd /s; \
        ls many | wc -l; ls -l many | grep -c ' 0 '; ls many | wc -l; \
        rm -rf gone; ls -d [a-m]*; exec 5< many/7; rm many/7; echo x > many/8; cat <&5 many/8";
    // The superuser may go beyond the hard limit.
    let finished = Command::new("setpriv")
        .args(["--bounding-set=-sys_resource", "--inh-caps=-sys_resource"])
        .args(["sh", "-c", "ulimit -n 300; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_hull"))
        .arg("run")
        .args(shares)
        .args(["--", "sh", "-c", script])
        .output()
        .expect("setpriv starts");
    let out = String::from_utf8_lossy(&finished.stdout);
    let err = String::from_utf8_lossy(&finished.stderr);
    assert_eq!(
        out,
        format!("{opened}\n{files}\n{files}\n{files}\nmany\nx\n"),
        "{err}"
    );
    assert!(finished.status.success() && err.is_empty(), "{err}");
    assert!(!folder.path().join("gone").exists());
}

/// A Debian system but for its programs, which are those of the machine that runs the tests.
fn root_without_usr() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a folder");
    let path = |name: &str| root.path().join(name);
    for name in ["usr", "dev", "proc", "etc", "work"] {
        fs::create_dir(path(name)).expect("made");
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), path(name)).expect("a link");
    }
    for name in ["etc/passwd", "etc/group"] {
        fs::copy(Path::new("/").join(name), path(name)).expect("copied");
    }
    root
}

const EVERYDAY: &str = r#"
    set -e
    export HOME=/work PATH=/usr/local/bin:/usr/bin:/usr/sbin
    export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
    cd /work
    git init -q -b main r
    cd r
    for i in {1..20}; do echo $i > f$i; done
    git add .
    git commit -qm one
    git mv f1 g1
    git commit -qam two
    git status --short
    cd ..
    git clone -q r c
    git -C c gc -q
    git -C c fsck
    git -C c log --oneline | wc -l

    sqlite3 db 'pragma journal_mode=wal; create table t(x)'
    insert() { for i in {1..5}; do sqlite3 -cmd '.timeout 1000000' db "insert into t values($i)"; done; }
    insert & insert
    wait
    sqlite3 db 'select count(*) from t; pragma integrity_check; pragma journal_mode=delete'

    mkdir s s/inner
    echo old > s/inner/old
    touch -d 2001-02-03 s/inner/old
    chmod 640 s/inner/old
    ln s/inner/old s/hard
    ln -s nowhere s/dangling
    mkfifo s/fifo
    truncate -s 10M s/sparse
    rsync -aHS s/ d/
    rsync -aHni --delete s/ d/
    stat -c %h:%b d/hard d/sparse
    tar cSf s.tar s
    mkdir t
    tar xpf s.tar -C t
    tar df s.tar -C t
    rm -rf s s.tar d t
    ls
"#;

#[test]
fn everyday_programs_work_in_a_share() {
    if !machine::lab("git, sqlite, rsync, tar", "a software KVM takes minutes") {
        return;
    }
    let (root, work) = (root_without_usr(), tempfile::tempdir().expect("a folder"));
    fs::write(root.path().join("job"), EVERYDAY).expect("written");
    let flags = [
        share(root.path(), "/host"),
        share(Path::new("/usr"), "/host/usr:ro"),
        share(work.path(), "/host/work"),
    ];
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    flags.push("--memory=256M");
    let inside = "mount --bind /dev /host/dev; exec chroot /host /bin/bash /job";
    let expected = "2\nwal\n10\nok\ndelete\n2:8\n1:0\nc\ndb\nr\n";
    script(&flags, inside).assert(0, expected, "");
    let file = fs::read_to_string(work.path().join("c/g1"));
    assert_eq!(file.expect("the clone's file"), "1\n");
}

#[test]
fn file_systems_below_a_share_are_told_apart() {
    if !kvm("shares") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["one", "two", "bound", "source"] {
        fs::create_dir(folder.path().join(name)).expect("made");
    }
    fs::write(folder.path().join("source/file"), "bound\n").expect("written");
    fs::write(folder.path().join("over"), "").expect("written");
    // The first file of each tmpfs has inode 2.
    let mounts = "cd $1; mount -t tmpfs -o size=1m one one; mount -t tmpfs -o size=2m two two; \
        echo one > one/file; echo two > two/file; mount --bind source bound; \
        mount --bind two/file over; shift; exec \"$@\"";
    let inside = "cd /s; stat -c %i one/file two/file | uniq -c | grep -c '2 2'; \
        stat -c %d:%i one/file two/file over | sort -u | wc -l; \
        [ $(stat -c %d .) != $(stat -c %d one/.) ] && echo apart; \
        df -k one two | awk 'NR > 1 { print $2 }'; cat bound/file over; \
        mkdir /tmp/copy; cp -a one two over /tmp/copy; cat /tmp/copy/*/file /tmp/copy/over; \
        find . -xdev -name file; tar c one two | tar t | sort; \
        echo new > two/new; mv two/new two/newer; cat two/newer; rmdir one; \
        find . | wc -l";
    let finished = Command::new("unshare")
        .args(["-m", "sh", "-c", mounts, "sh"])
        .arg(folder.path())
        .arg(env!("CARGO_BIN_EXE_hull"))
        .args(["run", &share(folder.path(), "/s"), "--", "sh", "-c", inside])
        .output()
        .expect("unshare starts");
    let out = String::from_utf8_lossy(&finished.stdout);
    let err = String::from_utf8_lossy(&finished.stderr);
    let expected = "1\n3\napart\n1024\n2048\nbound\ntwo\none\ntwo\ntwo\n./source/file\n./bound/file\n\
        one/\none/file\ntwo/\ntwo/file\nnew\n11\n";
    assert_eq!(out, expected, "{err}");
    assert!(err.contains("rmdir: 'one': "), "{err}");
}

#[test]
fn locks_are_shared_with_the_host_on_request() {
    if !kvm("shares") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::copy(guest_program("files"), path("files")).expect("copied");
    fs::write(path("f"), "").expect("written");
    let open = || fs::File::options().read(true).write(true).open(path("f"));
    let (file, other) = (open().expect("the file"), open().expect("the file"));
    flock(&file, FlockOperation::LockExclusive).expect("locked");
    fcntl_lock(&file, FlockOperation::LockExclusive).expect("locked");
    let script = "cd /s; for kind in flock fcntl; do ./files --lock f $kind; done; touch asked; \
        for kind in flock-wait fcntl-wait; do ./files --lock f $kind; done; \
        ./files --lock f hold";
    let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"))
        .args([
            "run",
            &share(folder.path(), "/s:lock=host"),
            "--",
            "sh",
            "-c",
            script,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("hull starts");
    machine::user::wait_until(|| path("asked").exists());
    flock(&file, FlockOperation::Unlock).expect("unlocked");
    fcntl_lock(&file, FlockOperation::Unlock).expect("unlocked");
    machine::user::wait_until(|| path("held").exists());
    let taken = flock(&other, FlockOperation::NonBlockingLockShared);
    assert_eq!(taken, Err(rustix::io::Errno::AGAIN));
    drop(hull.stdin.take());
    let output = hull.wait_with_output().expect("hull ends");
    let out = String::from_utf8_lossy(&output.stdout);
    assert_eq!(out, "taken\ntaken\nlocked\nlocked\nlocked\n");
    flock(&other, FlockOperation::NonBlockingLockExclusive).expect("free");
}

/// The guest's owner of a file, as hull keeps it on the host.
fn kept_owner(path: &Path) -> Option<String> {
    let mut value = [0; 64];
    let len = getxattr(path, "user.hull.owner", &mut value).ok()?;
    String::from_utf8(value[..len].to_vec()).ok()
}

#[test]
fn the_guests_owners_outlive_the_machine_of_a_plain_user() {
    if !kvm("shares") {
        return;
    }
    let (user, own) = (User::new(), geteuid().as_raw());
    let uid = if own == 0 { NOBODY } else { own };
    let folder = user.0.path().join("data");
    fs::create_dir(&folder).expect("made");
    if setxattr(&folder, "user.test", b"", XattrFlags::empty()).is_err() {
        return eprintln!("skipped: the temporary folder has no extended attributes");
    }
    fs::write(folder.join("locked"), "").expect("written");
    let mode = fs::Permissions::from_mode(0o444);
    fs::set_permissions(folder.join("locked"), mode).expect("its mode");
    symlink("locked", folder.join("link")).expect("a link");
    for path in [folder.clone(), folder.join("locked"), folder.join("link")] {
        std::os::unix::fs::lchown(path, Some(uid), Some(uid)).expect("an owner");
    }
    chown(user.0.path(), Some(uid), Some(uid)).expect("an owner");
    let machine = |flags: &str, script: &str| {
        let (hull, shared) = (env!("CARGO_BIN_EXE_hull"), folder.display());
        let run = format!(
            "exec {hull} run {flags} --share {shared}:/d:xattr=on -w /d -- sh -c \"{script}\""
        );
        let mut shell = user.shell_of(uid, &run);
        shell.env("HULL_CACHE", user.0.path().join("cache"));
        machine::finish(shell, b"")
    };
    // As an image's entry point begins: its user gets the folder and what is in it.
    let by_root = "mkdir sub; touch made; stat -c %u:%g made; chown -R 70:71 .; chown :9 made
        chown 4294967294:5 sub; stat -c %n,%u:%g,%a . locked sub made link";
    machine("", by_root).assert(
        0,
        &format!(
            "0:0\n.,70:71,755\nlocked,70:71,444\nsub,4294967294:5,755\nmade,70:9,644\nlink,{uid}:{uid},777\n"
        ),
        "",
    );
    // Another machine, in which it has the folder, and no more.
    let by_user = "echo x > new; chmod 600 new; mkdir own; mv new own; ln made linked; rm locked
        touch sub/refused; chown 0 made; cat own/new; stat -c %n,%u:%g own own/new linked sub";
    machine("-u 70:71", by_user).assert(
        0,
        "x\nown,70:71\nown/new,70:71\nlinked,70:9\nsub,4294967294:5\n",
        "touch: sub/refused: Permission denied\nchown: made: Operation not permitted\n",
    );
    for (name, owner) in [("", "70:71"), ("own/new", "70:71"), ("made", "70:9")] {
        let path = folder.join(name);
        let host = fs::metadata(&path).expect("there");
        assert_eq!((host.uid(), host.gid()), (uid, uid), "{name}");
        assert_eq!(kept_owner(&path).as_deref(), Some(owner), "{name}");
    }
    // Back to the host's, and nothing stays; another's attribute and one without a meaning count for nothing.
    setxattr(
        folder.join("own/new"),
        "user.hull.owner",
        b"0:x",
        XattrFlags::empty(),
    )
    .expect("set");
    let back = format!("chown -R {uid}:{uid} made; cd own; stat -c %u:%g new");
    machine("", &back).assert(0, &format!("{uid}:{uid}\n"), "");
    assert_eq!(kept_owner(&folder.join("made")), None);
}
