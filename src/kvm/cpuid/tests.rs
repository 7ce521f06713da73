//! The leaves of three hosts, as KVM lists them there, decoded the way a guest does.
//!
//! The values are those that Firecracker's published CPU fingerprints and the manuals have for these
//! processors; which subleaves are listed is what KVM of these versions does (arch/x86/kvm/cpuid.c).

use super::*;

const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];
const AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];

/// Leaf, subleaf and registers.
type Leaf = (u32, u32, Registers);

fn named(leaf: u32, max: u32, [ebx, ecx, edx]: [u32; 3]) -> Leaf {
    (leaf, 0, [max, ebx, ecx, edx])
}

/// Ice Lake server, Linux 6.2 or later: leaves 0BH and 1FH have their first subleaf alone, all zero.
fn ice_lake() -> Vec<Leaf> {
    vec![
        named(0, 0x1b, INTEL),
        (1, 0, [0x606a6, 0x0b40_0800, 0x77fa_3227, 0x0fab_fbff]),
        (4, 0, [0x7c00_4121, 0x02c0_003f, 0x3f, 0]),
        (4, 1, [0x7c00_4122, 0x01c0_003f, 0x3f, 0]),
        (4, 2, [0x7c00_4143, 0x04c0_003f, 0x3ff, 0]),
        (4, 3, [0x7c0f_c163, 0x02c0_003f, 0x11fff, 4]),
        (4, 4, [0; 4]),
        (0xb, 0, [0; 4]),
        named(0x8000_0000, 0x8000_0008, [0; 3]),
        (0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
        (0x8000_0008, 0, [0x3039, 0, 0, 0]),
    ]
}

/// Sapphire Rapids, Linux 5.10: leaves 0BH and 1FH are the host's, for the CPU that was asked.
fn sapphire_rapids() -> Vec<Leaf> {
    vec![
        named(0, 0x1f, INTEL),
        (1, 0, [0x806f8, 0x2360_0800, 0x77fa_3227, 0x1fab_fbff]),
        (4, 0, [0xfc00_4121, 0x02c0_003f, 0x3f, 0]),
        (4, 1, [0xfc00_4122, 0x01c0_003f, 0x3f, 0]),
        (4, 2, [0xfc00_4143, 0x03c0_003f, 0x7ff, 0]),
        (4, 3, [0xfc1f_c163, 0x0380_003f, 0x1bfff, 4]),
        (0xb, 0, [1, 2, 0x100, 35]),
        (0xb, 1, [7, 96, 0x201, 35]),
        (0xb, 2, [0, 0, 2, 35]),
        (0x1f, 0, [1, 2, 0x100, 35]),
        (0x1f, 1, [7, 96, 0x201, 35]),
        (0x1f, 2, [0, 0, 2, 35]),
        named(0x8000_0000, 0x8000_0008, [0; 3]),
        (0x8000_0001, 0, [0, 0, 0x121, 0x2c10_0800]),
        (0x8000_0008, 0, [0x3039, 0x0100_d200, 0, 0]),
    ]
}

/// Milan, Linux 4.14: no leaf of caches is listed; the processor has them.
fn milan() -> Vec<Leaf> {
    vec![
        named(0, 0x10, AMD),
        (1, 0, [0x00a0_0f11, 0x0b60_0800, 0x77fa_3203, 0x078b_fbff]),
        (4, 0, [0; 4]),
        (0xb, 0, [0; 4]),
        named(0x8000_0000, 0x8000_0021, AMD),
        (
            0x8000_0001,
            0,
            [0x00a0_0f11, 0x4000_0000, 0x00c0_03f7, 0x2fd3_fbff],
        ),
        (0x8000_0008, 0, [0x3030, 0x1302_d205, 0x705f, 0]),
        (0x8000_001d, 0, [0; 4]),
        (0x8000_001e, 0, [0; 4]),
    ]
}

/// CPUID of a Milan processor for its leaf of caches.
fn milan_processor(leaf: u32, subleaf: u32) -> Registers {
    let caches = [
        [0x4121, 0x01c0_003f, 0x3f, 0],
        [0x4122, 0x01c0_003f, 0x3f, 0],
        [0x4143, 0x01c0_003f, 0x3ff, 2],
        [0x3_c163, 0x03c0_003f, 0x7fff, 1],
    ];
    match leaf {
        AMD_CACHES => caches.get(subleaf as usize).copied().unwrap_or_default(),
        _ => [0; 4],
    }
}

fn list(leaves: &[Leaf]) -> CpuId {
    let entries: Vec<_> = leaves
        .iter()
        .map(|(function, index, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
            function: *function,
            index: *index,
            eax: *eax,
            ebx: *ebx,
            ecx: *ecx,
            edx: *edx,
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).unwrap()
}

fn described(host: &[Leaf], id: u8, cpus: u8, topology: Topology) -> Leaves {
    let place = Place { id, cpus, topology };
    let cpuid = describe(&list(host), &place, milan_processor).unwrap();
    Leaves(cpuid.as_slice().to_vec())
}

impl Leaves {
    fn subleaf(&self, leaf: u32, index: u32) -> Registers {
        let found = |entry: &&kvm_cpuid_entry2| (entry.function, entry.index) == (leaf, index);
        self.0.iter().find(found).map_or([0; 4], registers)
    }
}

/// Socket, core and thread, as Linux finds them by leaf 0BH or 1FH (arch/x86/kernel/cpu/topology_ext.c).
fn place_by(leaves: &Leaves, leaf: u32) -> (u32, u32, u32) {
    let [
        [thread_bits, .., id],
        [socket_bits, .., same],
        [end, none, ..],
    ] = [0, 1, 2].map(|index| leaves.subleaf(leaf, index));
    assert_eq!(id, same);
    assert_eq!((end, none), (0, 0), "a third level");
    let below = |bits: u32| (1 << bits) - 1;
    let core = (id & below(socket_bits)) >> thread_bits;
    (id >> socket_bits, core, id & below(thread_bits))
}

const ARRANGEMENTS: [(u8, u8, u8); 12] = [
    (1, 1, 1),
    (2, 1, 1),
    (3, 1, 1),
    (4, 1, 1),
    (7, 1, 1),
    (32, 1, 1),
    (2, 1, 2),
    (6, 1, 2),
    (8, 1, 2),
    (8, 2, 2),
    (32, 2, 2),
    (32, 32, 1),
];

#[test]
fn every_host_s_guest_finds_its_sockets_cores_and_threads() {
    for host in [ice_lake(), sapphire_rapids(), milan()] {
        for (cpus, sockets, threads) in ARRANGEMENTS {
            let topology = Topology { sockets, threads };
            let cores = cpus / sockets / threads;
            for id in 0..cpus {
                let leaves = described(&host, id, cpus, topology);
                let socket = cores * threads;
                let expected = (id / socket, id % socket / threads, id % threads);
                let expected = (expected.0.into(), expected.1.into(), expected.2.into());
                let [basic, ..] = leaves.registers(0);
                for leaf in [0xb, 0x1f].into_iter().filter(|leaf| *leaf <= basic) {
                    assert_eq!(
                        place_by(&leaves, leaf),
                        expected,
                        "{cpus} {topology:?} {id}"
                    );
                    assert_eq!(leaves.subleaf(leaf, 0)[1..3], [threads.into(), 0x100]);
                    assert_eq!(leaves.subleaf(leaf, 1)[1..3], [socket.into(), 0x201]);
                }
                let [_, ebx, ecx, edx] = leaves.registers(1);
                let package = u32::from(socket).next_power_of_two();
                assert_eq!(ebx >> 16, u32::from(id) << 8 | package);
                assert_eq!(edx >> 28 & 1 == 1, socket > 1);
                assert_eq!(ecx >> 31, 1);
            }
        }
    }
}

#[test]
fn caches_are_the_processor_s_and_shared_in_the_machine() {
    let topology = |sockets, threads| Topology { sockets, threads };
    // The size in KiB, and threads that share it, as lscpu and Linux's cacheinfo compute them.
    let cache = |[eax, ebx, ecx, _]: Registers| {
        let ways = (ebx >> 22) + 1;
        let line = (ebx & 0xfff) + 1;
        ((ways * line * (ecx + 1)) >> 10, ((eax >> 14) & 0xfff) + 1)
    };
    let all = |host: &[Leaf], leaf, cpus, topology| -> Vec<_> {
        let leaves = described(host, 0, cpus, topology);
        assert_eq!(leaves.subleaf(leaf, 4), [0; 4], "a fifth cache");
        (0..4)
            .map(|index| cache(leaves.subleaf(leaf, index)))
            .collect()
    };
    let ice_lake = ice_lake();
    assert_eq!(
        all(&ice_lake, 4, 7, topology(1, 1)),
        [(48, 1), (32, 1), (1280, 1), (55296, 8)]
    );
    assert_eq!(
        all(&ice_lake, 4, 8, topology(2, 2)),
        [(48, 2), (32, 2), (1280, 2), (55296, 4)]
    );
    assert_eq!(
        described(&ice_lake, 0, 7, topology(1, 1)).subleaf(4, 0)[0] >> 26,
        7
    );
    // Not listed there: from the processor.
    assert_eq!(
        all(&milan(), AMD_CACHES, 6, topology(1, 2)),
        [(32, 2), (32, 2), (512, 2), (32768, 6)]
    );
}

#[test]
fn amd_s_own_leaves_agree() {
    let leaves = described(
        &milan(),
        13,
        16,
        Topology {
            sockets: 2,
            threads: 2,
        },
    );
    assert_eq!(leaves.registers(0x8000_001e), [13, 0x102, 1, 0]);
    assert_eq!(leaves.registers(0x8000_0008)[2], 3 << 12 | 7);
    assert_eq!(
        leaves.registers(0x8000_0001)[2] & ECX_CMP_LEGACY,
        ECX_CMP_LEGACY
    );
    let alone = described(&milan(), 0, 1, Topology::default());
    assert_eq!(alone.registers(0x8000_0001)[2] & ECX_CMP_LEGACY, 0);
    assert_eq!(alone.registers(0x8000_0008)[2], 0);
}

#[test]
fn a_host_without_a_leaf_gives_its_guest_none() {
    let mut old = ice_lake();
    old[0] = named(0, 5, INTEL);
    let leaves = described(&old, 1, 4, Topology::default());
    assert!(leaves.0.iter().all(|entry| entry.function != 0xb));
    assert_eq!(leaves.registers(1)[1] >> 16, 1 << 8 | 4);
}

#[test]
fn a_list_that_is_full_keeps_what_says_something() {
    let mut host = ice_lake();
    host.extend(
        (0x100..)
            .map(|leaf| (leaf, 0, [0; 4]))
            .take(KVM_MAX_CPUID_ENTRIES - host.len()),
    );
    let leaves = described(&host, 0, 2, Topology::default());
    assert_eq!(leaves.subleaf(0xb, 1), [1, 2, 0x201, 0]);
    let full = (0x100..)
        .map(|leaf| (leaf, 0, [1; 4]))
        .take(KVM_MAX_CPUID_ENTRIES - 11);
    let full: Vec<_> = ice_lake().into_iter().chain(full).collect();
    let place = Place {
        id: 0,
        cpus: 2,
        topology: Topology::default(),
    };
    describe(&list(&full), &place, milan_processor).unwrap_err();
}

#[test]
fn hidden_long_mode_leaves_the_other_features() {
    let mut cpuid = list(&[(0x8000_0001, 0, [0, 0, 0, u32::MAX])]);
    hide_long_mode(&mut cpuid);
    assert_eq!(cpuid.as_slice()[0].edx, !EDX_LONG_MODE);
}
