//! Why /dev/kvm does not open, and what the user can do about it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{getegid, geteuid, getgroups};

use super::processor::{Kind, Processor};

/// The owner or group of a file that has none in this user namespace (the default of
/// /proc/sys/fs/overflowuid, proc_sys_fs(5)).
const OVERFLOW: u32 = 65534;

/// What a newcomer can do wherever there is no KVM.
const WITHOUT: &str = "to try hull without KVM: `make boot` in its source";

/// What this host shows of KVM.
struct Host {
    processor: Processor,
    /// KVM is loaded, or part of the kernel.
    loaded: bool,
    /// This process runs in a container.
    container: bool,
    node: Option<Node>,
}

/// The file /dev/kvm.
struct Node {
    /// Owner, group and others may read and write.
    mode: [bool; 3],
    /// Its group; `None` if owner and group have no number in this user namespace.
    gid: Option<u32>,
    /// The name of the group; `None` if the group has none here.
    group: Option<String>,
    /// This process may use it by its mode.
    permitted: bool,
}

/// What the user can do about `error`, with which open(2) refused /dev/kvm.
pub fn remedy(error: &io::Error) -> String {
    let host = Host {
        processor: Processor::of_host(),
        loaded: Path::new("/sys/class/misc/kvm").exists(),
        container: in_container(),
        node: Node::read(),
    };
    host.remedy(error.raw_os_error().unwrap_or_default())
}

/// Whether a container's manager says that this is one.
fn in_container() -> bool {
    let marked = |file: &&str| Path::new(file).exists();
    ["/.dockerenv", "/run/.containerenv"].iter().any(marked)
        || std::env::var_os("container").is_some()
        || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

impl Node {
    fn read() -> Option<Self> {
        let found = fs::metadata("/dev/kvm").ok()?;
        let mode = [0o600, 0o060, 0o006].map(|bits| found.mode() & bits == bits);
        let groups = getgroups().unwrap_or_default();
        let member = getegid().as_raw() == found.gid()
            || groups.iter().any(|group| group.as_raw() == found.gid());
        let user = geteuid();
        let hidden = [found.uid(), found.gid()] == [OVERFLOW; 2];
        let class = match (user.as_raw() == found.uid(), member) {
            _ if hidden => 2,
            (true, _) => 0,
            (_, true) => 1,
            _ => 2,
        };
        let names = fs::read_to_string("/etc/group").unwrap_or_default();
        Some(Self {
            mode,
            gid: (!hidden).then_some(found.gid()),
            group: group_name(&names, found.gid()).filter(|_| !hidden),
            permitted: user.is_root() || mode[class],
        })
    }
}

/// The name of the group `gid` in the text of group(5).
fn group_name(groups: &str, gid: u32) -> Option<String> {
    let named = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_string())
    };
    groups.lines().find_map(named)
}

impl Host {
    /// What to do after the error number `errno`.
    fn remedy(&self, errno: i32) -> String {
        match errno {
            libc::EACCES => self.permission(),
            libc::EPERM => "the container or sandbox of this process has no access to it: \
                            docker run --device /dev/kvm, or DeviceAllow=/dev/kvm of systemd"
                .into(),
            libc::ENOENT | libc::ENXIO | libc::ENODEV => format!("{}; {WITHOUT}", self.missing()),
            libc::EMFILE | libc::ENFILE => "close files, or raise the limit (ulimit -n)".into(),
            libc::ENOMEM => "end other programs: there is no memory for it".into(),
            _ => "check that KVM works on this machine (dmesg | grep kvm)".into(),
        }
    }

    /// The mode of the file, or a security module, refuses.
    fn permission(&self) -> String {
        let Some(node) = &self.node else {
            return "this process may not look into /dev: run as root".into();
        };
        let gid = node.gid.unwrap_or(OVERFLOW);
        match (&node.group, node.mode[1]) {
            _ if node.permitted => "its mode allows it, so SELinux or AppArmor refuses: see \
                                    dmesg | grep -i denied; docker run --security-opt \
                                    label=disable, or apparmor=unconfined, turns that off"
                .into(),
            _ if node.gid.is_none() => format!(
                "its mode admits only its owner or its group, which a user namespace such as a jail's \
                 does not show: see ls -l /dev/kvm outside, and join that group \
                 (sudo usermod -aG GROUP $USER, then log in again); {WITHOUT}"
            ),
            (_, true) if self.container => {
                format!("give the container its group: docker run --group-add {gid}")
            }
            (Some(group), true) => format!(
                "join its group {group}: sudo usermod -aG {group} $USER, then log in again; {WITHOUT}"
            ),
            (None, true) => format!("run as root, or with the group {gid}; {WITHOUT}"),
            (_, false) => format!(
                "let a group use it, as Debian does: sudo chgrp kvm /dev/kvm && sudo chmod 660 \
                 /dev/kvm, then join the group kvm; {WITHOUT}"
            ),
        }
    }

    /// There is no such device.
    fn missing(&self) -> &'static str {
        match (self.processor.virtualization, &self.processor.hypervisor) {
            _ if self.loaded && self.container => {
                "give the container the device: docker run --device /dev/kvm"
            }
            _ if self.loaded => "KVM is there but its device is not: sudo mknod /dev/kvm c 10 232",
            _ if self.container => {
                "load KVM on the host of this container (modprobe kvm_amd or kvm_intel), and give \
                 the container the device: docker run --device /dev/kvm"
            }
            (Some(Kind::Svm), _) => {
                "load its module: sudo modprobe kvm_amd (if it is refused, enable SVM in the \
                 firmware)"
            }
            (Some(_), _) => {
                "load its module: sudo modprobe kvm_intel (if it is refused, enable VT-x in the \
                 firmware)"
            }
            (None, Some(_)) => {
                "this is a virtual machine without VT-x and SVM: switch nested virtualization on \
                 in its hypervisor (QEMU: -cpu host, and kvm_amd or kvm_intel with nested=1; in \
                 a cloud: a type of machine that has it)"
            }
            (None, None) => "the processor shows neither VT-x nor SVM: enable it in the firmware",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(loaded: bool, container: bool, kind: Option<Kind>, hypervisor: Option<&str>) -> Host {
        Host {
            processor: Processor {
                name: String::new(),
                virtualization: kind,
                hypervisor: hypervisor.map(str::to_string),
            },
            loaded,
            container,
            node: None,
        }
    }

    #[test]
    fn a_missing_device_has_the_remedy_of_its_cause() {
        let (svm, vtx) = (Some(Kind::Svm), Some(Kind::VtX));
        for (host, expected) in [
            (host(true, true, svm, None), "docker run --device /dev/kvm"),
            (host(true, false, None, None), "mknod /dev/kvm c 10 232"),
            (host(false, true, None, None), "host of this container"),
            (
                host(false, false, svm, Some("KVM")),
                "sudo modprobe kvm_amd",
            ),
            (host(false, false, vtx, None), "sudo modprobe kvm_intel"),
            (
                host(false, false, None, Some("KVM")),
                "nested virtualization",
            ),
            (host(false, false, None, None), "enable it in the firmware"),
        ] {
            let remedy = host.remedy(libc::ENOENT);
            assert!(remedy.contains(expected), "{expected}: {remedy}");
            assert!(remedy.ends_with(WITHOUT), "{remedy}");
        }
    }

    #[test]
    fn a_refused_device_has_the_remedy_of_its_mode() {
        let kvm = Some("kvm");
        for (permitted, gid, group, shared, container, expected) in [
            (true, Some(107), kvm, true, false, "SELinux or AppArmor"),
            (false, Some(107), kvm, true, false, "usermod -aG kvm $USER"),
            (false, Some(107), None, true, true, "--group-add 107"),
            (false, Some(107), None, true, false, "with the group 107"),
            (
                false,
                Some(0),
                Some("root"),
                false,
                false,
                "chmod 660 /dev/kvm",
            ),
            (false, None, None, true, true, "see ls -l /dev/kvm outside"),
        ] {
            let mut host = host(true, container, None, None);
            host.node = Some(Node {
                mode: [true, shared, false],
                gid,
                group: group.map(str::to_string),
                permitted,
            });
            let remedy = host.remedy(libc::EACCES);
            assert!(remedy.contains(expected), "{expected}: {remedy}");
        }
        let remedy = host(true, true, None, None).remedy(libc::EPERM);
        assert!(remedy.contains("--device /dev/kvm"), "{remedy}");
    }

    #[test]
    fn a_group_is_named_as_in_its_file() {
        let groups = "root:x:0:\nkvm:x:107:a,b\nbroken\n";
        assert_eq!(group_name(groups, 107).as_deref(), Some("kvm"));
        assert_eq!(group_name(groups, 1), None);
    }
}
