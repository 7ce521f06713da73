//! Where hull must work, and what it says where it cannot: users, mounts and networks of containers and of
//! machines unlike a developer's. They are made with unshare(1), which needs root.

mod machine;

use std::process::{Command, Output};

use machine::kvm;

const HULL: &str = env!("CARGO_BIN_EXE_hull");

/// A place has hull as /mnt/hull, a new /dev with the node of KVM that only the group users may open, a new /tmp
/// that executes nothing, and none of the variables that hull reads.
const PLACE: &str = r#"
set -e
mount -t tmpfs place /mnt
cp "$HULL" /mnt/hull
mount -t tmpfs -o mode=755 place /dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/urandom c 1 9
mknod -m 660 /dev/kvm c 10 232
chgrp users /dev/kvm
mount -t tmpfs -o mode=1777,noexec place /tmp
unset HOME XDG_RUNTIME_DIR XDG_CACHE_HOME HULL_CACHE HULL_CACHE_SIZE TMPDIR container
set +e
"#;

/// The output of `script` in a place of its own; `None` if this user cannot make one.
fn place(test: &str, script: &str) -> Option<Output> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: {test}: only root can make such a place");
        return None;
    }
    let mut shell = Command::new("unshare");
    let shell = shell.args(["-mn", "bash", "-c", &format!("{PLACE}{script}")]);
    Some(shell.env("HULL", HULL).output().expect("unshare starts"))
}

/// Checks what a script has printed and its status. What it said stands in the message of a failure.
#[track_caller]
fn assert_done(output: &Output, status: i32, stdout: &str) {
    let found = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        (output.status.code(), &*found),
        (Some(status), stdout),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_plain_user_needs_the_group_of_kvm_and_nothing_else() {
    let test = "a_plain_user";
    let user = "setpriv --reuid 65534 --regid 65534";
    let command = "/mnt/hull run -- sh -c 'echo hi; exit 3'";
    let Some(outside) = place(test, &format!("{user} --clear-groups {command}")) else {
        return;
    };
    assert_done(&outside, 125, "");
    let message = String::from_utf8_lossy(&outside.stderr);
    // In a container the group is given from outside.
    let (own, given) = (
        "join its group users: sudo usermod",
        "docker run --group-add 100",
    );
    assert!(
        message.contains(own) || message.contains(given),
        "{message}"
    );
    if kvm(test) {
        let inside = place(test, &format!("{user} --groups 100 {command}"));
        assert_done(&inside.expect("as before"), 3, "hi\n");
    }
}

#[test]
fn a_root_file_system_needs_the_program_and_dev_kvm_only() {
    if !kvm("an empty root file system") {
        return;
    }
    // No /proc, /sys, /tmp, /etc and libraries.
    let script = "
        mkdir -p /mnt/root/dev && mv /mnt/hull /mnt/root/ && mknod /mnt/root/dev/kvm c 10 232
        chroot /mnt/root /hull run -- sh -c 'echo hi; exit 3'
        status=$?
        find /mnt/root -type f; exit $status";
    if let Some(done) = place("an empty root file system", script) {
        assert_done(&done, 3, "hi\n/mnt/root/hull\n");
    }
}

#[test]
fn nothing_has_to_be_writable() {
    if !kvm("a read-only system") {
        return;
    }
    let script = "
        mkdir /mnt/root && mount --bind / /mnt/root && mount --bind /dev /mnt/root/dev
        mount --rbind /proc /mnt/root/proc && mount --bind /mnt /mnt/root/mnt
        for at in '' /dev /mnt; do mount -o remount,bind,ro /mnt/root$at; done
        HOME=/root chroot /mnt/root /mnt/hull run -- sh -c 'echo hi; exit 3'";
    if let Some(done) = place("a read-only system", script) {
        assert_done(&done, 3, "hi\n");
    }
}

#[test]
fn root_leaves_reports_and_sockets_in_another_users_folder() {
    let test = "another_users_folder";
    // Root without capabilities could make no file there.
    let script = "mkdir -m 755 /mnt/home && cd /mnt/home && chown 65534 . \
                  && /mnt/hull run --json costs --trace trace --vsock cid=3,socket=socket -- true \
                  && test -s costs && test -s trace && echo done";
    if kvm(test)
        && let Some(output) = place(test, script)
    {
        assert_done(&output, 0, "done\n");
    }
}

#[test]
fn ports_are_published_on_a_host_without_a_route() {
    if !kvm("no route") {
        return;
    }
    let script = r#"
        ip link set lo up
        /mnt/hull run --net user,publish=127.0.0.1:8080:80 -- \
            sh -c 'echo found > /tmp/page; exec httpd -f -h /tmp' < /dev/null &
        while kill -0 $! 2> /dev/null; do
            ask() { exec 3<> /dev/tcp/127.0.0.1/8080; printf 'GET /page HTTP/1.0\r\n\r\n' >&3; timeout 5 tail -n 1 <&3; }
            answer=$( (ask) 2> /dev/null) && [ -n "$answer" ] && echo "$answer" && break
            sleep 0.2
        done
        kill $!; wait $!"#;
    if let Some(done) = place("no route", script) {
        assert_done(&done, 143, "found\n");
    }
}

#[test]
fn a_container_without_the_device_learns_how_to_get_it() {
    let script = "rm /dev/kvm; container=docker /mnt/hull run -- true";
    let Some(done) = place("a container", script) else {
        return;
    };
    assert_done(&done, 125, "");
    let message = String::from_utf8_lossy(&done.stderr);
    for part in [
        "/dev/kvm: No such file",
        "docker run --device /dev/kvm",
        "`make boot`",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
}
