//! The capabilities of an image's command (capabilities(7)), as container engines have them.

/// The names, by number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// Those that engines give a container: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
/// net_bind_service, net_raw, sys_chroot, mknod, audit_write and setfcap.
const DEFAULT: [u32; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];
/// The value that means all of them.
const ALL: u64 = crate::agent::ALL_CAPABILITIES;

/// Which the user adds to the default and takes away: bit N for capability N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Added.
    pub add: u64,
    /// Taken away.
    pub drop: u64,
}

impl Capabilities {
    /// Those that are left, as engines reckon: what is added wins over ALL that is dropped, and what is dropped
    /// over ALL that is added.
    pub fn result(self) -> u64 {
        let default: u64 = DEFAULT.iter().map(|bit| 1 << bit).sum();
        match (self.add, self.drop) {
            (ALL, dropped) => ALL & !dropped,
            (added, ALL) => added,
            (added, dropped) => default & !dropped | added,
        }
    }
}

/// The bits of a capability's name, with or without CAP_, or of ALL.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn parse(text: &str) -> Result<u64, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if upper == "ALL" {
        return Ok(ALL);
    }
    let number = NAMES.iter().position(|known| *known == name);
    number.map(|number| 1 << number).ok_or_else(|| {
        "unknown capability; write a name of capabilities(7), as NET_ADMIN or CAP_NET_ADMIN, or ALL".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_reckoned_as_engines_do() {
        let of = |add: &[&str], drop: &[&str]| {
            let bits = |names: &[&str]| {
                let bits = names.iter().map(|name| parse(name).expect("known"));
                bits.fold(0, |all, bit| all | bit)
            };
            let (add, drop) = (bits(add), bits(drop));
            Capabilities { add, drop }.result()
        };
        // CapEff of a container of docker's.
        assert_eq!(of(&[], &[]), 0xa804_25fb);
        assert_eq!(of(&["NET_ADMIN"], &["cap_chown", "MKNOD"]), 0xa004_35fa);
        assert_eq!(of(&["CAP_NET_ADMIN"], &["all"]), 1 << 12);
        assert_eq!(of(&["ALL"], &["SYS_ADMIN"]), !(1 << 21));
        assert_eq!(of(&["ALL"], &["ALL"]), 0);
        assert_eq!(parse("CHECKPOINT_RESTORE"), Ok(1 << 40));
        for bad in ["", "CAP_", "CAP_ALL", "NET-ADMIN", "CAP_CAP_KILL"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
