//! The processor features that a guest may use, and whether another processor has them.
//!
//! A guest reads CPUID only when it boots. So a snapshot can only be restored where all features that
//! CPUID showed then exist.

use std::arch::x86_64::{__cpuid, __cpuid_count};

use kvm_bindings::CpuId;
use serde::{Deserialize, Serialize};

/// A register of a CPUID leaf with feature bits, and their names. A bit without a name is not a feature
/// that a guest can use.
struct Word {
    leaf: u32,
    index: u32,
    register: Register,
    names: &'static [(u8, &'static str)],
}

#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Intel SDM 2A, CPUID, and AMD APM 3, E.3 and E.4; the names are those of /proc/cpuinfo.
const WORDS: [Word; 9] = [
    Word {
        leaf: 1,
        index: 0,
        register: Register::Ecx,
        names: &[
            (0, "sse3"),
            (1, "pclmulqdq"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (17, "pcid"),
            (19, "sse4_1"),
            (20, "sse4_2"),
            (21, "x2apic"),
            (22, "movbe"),
            (23, "popcnt"),
            (24, "tsc_deadline_timer"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
        ],
    },
    Word {
        leaf: 1,
        index: 0,
        register: Register::Edx,
        names: &[
            (0, "fpu"),
            (3, "pse"),
            (4, "tsc"),
            (5, "msr"),
            (6, "pae"),
            (8, "cx8"),
            (9, "apic"),
            (11, "sep"),
            (12, "mtrr"),
            (13, "pge"),
            (15, "cmov"),
            (16, "pat"),
            (19, "clflush"),
            (23, "mmx"),
            (24, "fxsr"),
            (25, "sse"),
            (26, "sse2"),
        ],
    },
    Word {
        leaf: 7,
        index: 0,
        register: Register::Ebx,
        names: &[
            (0, "fsgsbase"),
            (1, "tsc_adjust"),
            (3, "bmi1"),
            (5, "avx2"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (28, "avx512cd"),
            (29, "sha_ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    },
    Word {
        leaf: 7,
        index: 0,
        register: Register::Ecx,
        names: &[
            (1, "avx512vbmi"),
            (2, "umip"),
            (3, "pku"),
            (6, "avx512_vbmi2"),
            (7, "shstk"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512_vnni"),
            (12, "avx512_bitalg"),
            (14, "avx512_vpopcntdq"),
            (16, "la57"),
            (22, "rdpid"),
            (27, "movdiri"),
            (28, "movdir64b"),
        ],
    },
    Word {
        leaf: 7,
        index: 0,
        register: Register::Edx,
        names: &[
            (4, "fsrm"),
            (20, "ibt"),
            (22, "amx_bf16"),
            (23, "avx512_fp16"),
            (24, "amx_tile"),
            (25, "amx_int8"),
        ],
    },
    Word {
        leaf: 7,
        index: 1,
        register: Register::Eax,
        names: &[(4, "avx_vnni"), (5, "avx512_bf16")],
    },
    Word {
        leaf: 0xd,
        index: 1,
        register: Register::Eax,
        names: &[
            (0, "xsaveopt"),
            (1, "xsavec"),
            (2, "xgetbv1"),
            (3, "xsaves"),
            (4, "xfd"),
        ],
    },
    Word {
        leaf: 0x8000_0001,
        index: 0,
        register: Register::Ecx,
        names: &[
            (0, "lahf_lm"),
            (5, "abm"),
            (6, "sse4a"),
            (8, "3dnowprefetch"),
            (11, "xop"),
            (16, "fma4"),
            (21, "tbm"),
        ],
    },
    Word {
        leaf: 0x8000_0001,
        index: 0,
        register: Register::Edx,
        names: &[
            (11, "syscall"),
            (20, "nx"),
            (22, "mmxext"),
            (26, "pdpe1gb"),
            (27, "rdtscp"),
            (29, "lm"),
        ],
    },
];

/// The features of a processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// The vendor, CPUID.0: vendors differ in MSRs and errata.
    pub vendor: [u32; 3],
    /// The registers of [`WORDS`], in the same order.
    words: Vec<u32>,
}

impl Features {
    /// The features that this CPUID shows.
    pub fn shown(cpuid: &CpuId) -> Self {
        Self::read(|leaf, index| {
            let entries = cpuid.as_slice().iter();
            let mut of = entries.filter(|entry| (entry.function, entry.index) == (leaf, index));
            of.next()
                .map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
        })
    }

    /// The features of the host's processor, which a guest sees if its CPUID is not intercepted.
    pub fn of_host() -> Self {
        Self::read(|leaf, index| {
            // Safe in newer Rust: every x86_64 has CPUID.
            #[allow(unused_unsafe)]
            // SAFETY: the instruction is there in 64-bit mode and only writes registers.
            let found = unsafe {
                if __cpuid(leaf & 0x8000_0000).eax >= leaf {
                    __cpuid_count(leaf, index)
                } else {
                    return [0; 4];
                }
            };
            [found.eax, found.ebx, found.ecx, found.edx]
        })
    }

    fn read(cpuid: impl Fn(u32, u32) -> [u32; 4]) -> Self {
        let [_, ebx, ecx, edx] = cpuid(0, 0);
        let word = |word: &Word| {
            let [eax, ebx, ecx, edx] = cpuid(word.leaf, word.index);
            match word.register {
                Register::Eax => eax,
                Register::Ebx => ebx,
                Register::Ecx => ecx,
                Register::Edx => edx,
            }
        };
        Self {
            vendor: [ebx, edx, ecx],
            words: WORDS.iter().map(word).collect(),
        }
    }

    /// The vendor's name as text.
    pub fn maker(&self) -> String {
        let bytes = self.vendor.map(u32::to_le_bytes).concat();
        let printable = bytes.iter().filter(|byte| byte.is_ascii_graphic());
        printable.map(|byte| char::from(*byte)).collect()
    }

    /// The names of the features that `there` lacks.
    pub fn missing(&self, there: &Self) -> Vec<&'static str> {
        let words = WORDS.iter().zip(&self.words).zip(&there.words);
        let lost = words.flat_map(|((word, here), there)| {
            let lost = here & !there;
            let names = word.names.iter();
            names.filter(move |(bit, _)| lost >> bit & 1 == 1)
        });
        lost.map(|(_, name)| *name).collect()
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    fn shown(ecx: u32) -> Features {
        let entry = |function, ecx| kvm_cpuid_entry2 {
            function,
            ebx: u32::from_le_bytes(*b"Genu"),
            edx: u32::from_le_bytes(*b"ineI"),
            ecx,
            ..Default::default()
        };
        let vendor = entry(0, u32::from_le_bytes(*b"ntel"));
        let entries = [vendor, entry(1, ecx)];
        Features::shown(&CpuId::from_entries(&entries).expect("two entries"))
    }

    #[test]
    fn missing_features_are_named() {
        let (all, less) = (shown(1 << 28 | 1 << 23 | 1), shown(1 << 23));
        assert_eq!(all.missing(&all), [""; 0]);
        assert_eq!(all.missing(&less), ["sse3", "avx"]);
        assert_eq!(less.missing(&all), [""; 0]);
        assert_eq!(all.maker(), "GenuineIntel");
    }

    #[test]
    fn the_hosts_processor_has_the_features_of_every_x86_64() {
        let host = Features::of_host();
        let names = WORDS[1].names.iter().map(|(_, name)| *name);
        let have = |name: &&str| !["fpu", "sse2", "cx8"].contains(name);
        let rest: Vec<_> = names.filter(|name| !have(name)).collect();
        assert_eq!(rest, ["fpu", "cx8", "sse2"]);
        assert_eq!(host.words[1] & (1 | 1 << 8 | 1 << 26), 1 | 1 << 8 | 1 << 26);
    }
}
