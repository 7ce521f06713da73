//! How well the host's kernel keeps guests apart from each other and from the host: the settings that
//! Firecracker's advice for production hosts names (docs/prod-host-setup.md there), and what hull's
//! lock-down can use.

use std::fs;
use std::path::Path;

use super::check::Check;
use crate::sandbox::landlock_version;

const FLAWS: &str = "/sys/devices/system/cpu/vulnerabilities";
const SMT: &str = "/sys/devices/system/cpu/smt";
const KSM: &str = "/sys/kernel/mm/ksm/run";
const NX_HUGE_PAGES: &str = "/sys/module/kvm/parameters/nx_huge_pages";

/// All of them.
pub fn checks() -> [Check; 8] {
    let word = |path: &str| {
        fs::read_to_string(path)
            .ok()
            .map(|text| text.trim().to_string())
    };
    let swaps = word("/proc/swaps");
    let affected = word(&format!("{FLAWS}/itlb_multihit"));
    let namespaces = [
        "/proc/sys/user/max_user_namespaces",
        "/proc/sys/kernel/unprivileged_userns_clone",
    ];
    let filters = Path::new("/proc/sys/kernel/seccomp").exists();
    [
        (mitigations(&flaws()), "/sys"),
        (smt(word(&format!("{SMT}/active")).as_deref()), "/sys"),
        (ksm(word(KSM).as_deref()), "/sys"),
        (
            nx_huge_pages(word(NX_HUGE_PAGES).as_deref(), affected.as_deref()),
            "/sys",
        ),
        (swap(swaps.as_deref()), "/proc"),
        (user_namespaces(namespaces.map(word)), "/proc"),
        (landlock(landlock_version()), "/"),
        (seccomp(filters), "/proc"),
    ]
    .map(|(check, source)| known(check, Path::new(source)))
}

/// The check, unless the folder that it was read of is empty: then what is not there says nothing.
fn known(check: Check, source: &Path) -> Check {
    let is_filled = fs::read_dir(source).is_ok_and(|mut entries| entries.next().is_some());
    if is_filled {
        return check;
    }
    let remedy = format!("{0} does not tell: mount {0}", source.display());
    Check::warn(check.name, "not known", remedy)
}

/// The processor's flaws that the kernel knows, each with what it does about it; `None` if it does not say.
fn flaws() -> Option<Vec<(String, String)>> {
    let files = fs::read_dir(FLAWS).ok()?.flatten();
    let flaw = |file: fs::DirEntry| {
        let state = fs::read_to_string(file.path()).ok()?;
        Some((file.file_name().into_string().ok()?, state.trim().into()))
    };
    let mut all: Vec<_> = files.filter_map(flaw).collect();
    all.sort();
    Some(all)
}

fn mitigations(flaws: &Option<Vec<(String, String)>>) -> Check {
    const NAME: &str = "mitigations";
    let Some(flaws) = flaws else {
        return Check::warn(
            NAME,
            format!("{FLAWS} does not tell"),
            "mount /sys to see whether a guest could read the host's memory through the processor",
        );
    };
    let open = flaws
        .iter()
        .filter(|(_, state)| state.contains("Vulnerable"));
    let open: Vec<&str> = open.map(|(name, _)| name.as_str()).collect();
    match open.as_slice() {
        [] => Check::ok(NAME, format!("of {} known flaws none is open", flaws.len())),
        open => Check::warn(
            NAME,
            format!("open: {}", open.join(", ")),
            "a guest might read the host's memory through the processor: update the microcode, and boot \
             the host without mitigations=off",
        ),
    }
}

fn smt(active: Option<&str>) -> Check {
    const NAME: &str = "SMT";
    match active {
        Some("1") => Check::warn(
            NAME,
            "on: two threads share a core",
            format!(
                "guests that do not trust each other can learn of each other's data on one core: \
                 echo off > {SMT}/control"
            ),
        ),
        Some(_) => Check::ok(NAME, "off"),
        None => Check::ok(NAME, "none"),
    }
}

fn ksm(run: Option<&str>) -> Check {
    const NAME: &str = "KSM";
    match run {
        Some("1") => Check::warn(
            NAME,
            "merges equal pages of processes that ask for it",
            format!(
                "hull does not ask; where other programs do, their guests can learn of each other's pages \
                 by timing: echo 2 > {KSM}"
            ),
        ),
        Some(_) => Check::ok(NAME, "off"),
        None => Check::ok(NAME, "none in this kernel"),
    }
}

fn nx_huge_pages(state: Option<&str>, flaw: Option<&str>) -> Check {
    const NAME: &str = "NX huge";
    match (state, flaw) {
        (None, _) => Check::ok(NAME, "this KVM has no such setting"),
        (_, Some("Not affected")) => Check::ok(NAME, "the processor needs none (iTLB multihit)"),
        (Some("N" | "0" | "off" | "never"), _) => Check::warn(
            NAME,
            "guests execute huge pages",
            format!(
                "a guest can halt such a processor (iTLB multihit): echo auto > {NX_HUGE_PAGES}"
            ),
        ),
        _ => Check::ok(NAME, "guests execute no huge pages (iTLB multihit)"),
    }
}

fn swap(swaps: Option<&str>) -> Check {
    const NAME: &str = "swap";
    // A line for each, below a heading (proc(5)).
    match swaps.map(|text| text.lines().count()) {
        Some(lines) if lines > 1 => Check::warn(
            NAME,
            format!("{} in use", lines - 1),
            "guests' memory is written to the disk, where it stays after they end: swapoff -a, or encrypt it",
        ),
        _ => Check::ok(NAME, "none"),
    }
}

fn user_namespaces([most, others]: [Option<String>; 2]) -> Check {
    const NAME: &str = "userns";
    match (most.as_deref(), others.as_deref()) {
        (None | Some("0"), _) => Check::ok(NAME, "none: passt and containers need root"),
        (_, Some("0")) => Check::ok(NAME, "for root alone: passt and containers need root"),
        // For some hosts a risk, for others what containers and passt live in.
        _ => Check::ok(NAME, "every user can make user namespaces, as passt does"),
    }
}

fn landlock(version: Option<u32>) -> Check {
    const NAME: &str = "Landlock";
    match version {
        Some(version) => Check::ok(NAME, format!("version {version}")),
        None => Check::warn(
            NAME,
            "none",
            "a guest that breaks into hull reaches the files of its user; boot a kernel with \
             CONFIG_SECURITY_LANDLOCK, and name landlock in lsm= of its command line",
        ),
    }
}

fn seccomp(filters: bool) -> Check {
    const NAME: &str = "seccomp";
    if filters {
        Check::ok(NAME, "filters system calls")
    } else {
        Check::warn(
            NAME,
            "none",
            "system calls cannot be filtered; boot a kernel with CONFIG_SECCOMP_FILTER",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Status::{Ok, Warn};

    #[test]
    fn each_setting_is_told_with_its_remedy() {
        let flaw = |name: &str, state: &str| (name.to_string(), state.to_string());
        let closed = Some(vec![
            flaw("meltdown", "Mitigation: PTI"),
            flaw("l1tf", "Not affected"),
        ]);
        let open = Some(vec![
            flaw("mds", "Vulnerable: no microcode"),
            flaw("l1tf", "Not affected"),
        ]);
        let heading = "Filename Type Size Used Priority";
        let set = |most: &str, others: &str| {
            user_namespaces([Some(most.to_string()), Some(others.to_string())])
        };
        for (check, status) in [
            (mitigations(&closed), Ok),
            (mitigations(&open), Warn),
            (mitigations(&None), Warn),
            (smt(Some("0")), Ok),
            (smt(Some("1")), Warn),
            (ksm(Some("0")), Ok),
            (ksm(Some("1")), Warn),
            (nx_huge_pages(Some("Y"), None), Ok),
            (nx_huge_pages(Some("N"), None), Warn),
            (nx_huge_pages(Some("N"), Some("Not affected")), Ok),
            (nx_huge_pages(None, None), Ok),
            (swap(Some(heading)), Ok),
            (swap(Some(&format!("{heading}\n/swap file 1 0 -2"))), Warn),
            (set("0", "1"), Ok),
            (set("9", "0"), Ok),
            (set("9", "1"), Ok),
            (landlock(Some(2)), Ok),
            (landlock(None), Warn),
            (seccomp(true), Ok),
            (seccomp(false), Warn),
        ] {
            assert_eq!(check.status, status, "{check:?}");
            assert_eq!(check.remedy.is_some(), status == Warn, "{check:?}");
            assert!(check.name.len() <= 12, "{check:?}");
        }
        assert_eq!(mitigations(&open).finding, "open: mds");
        let unmounted = tempfile::tempdir().unwrap();
        assert_eq!(known(swap(None), unmounted.path()).status, Warn);
        assert_eq!(known(swap(None), Path::new("/")).status, Ok);
        assert_eq!(checks().len(), 8);
    }
}
