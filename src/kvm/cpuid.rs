//! CPUID as the guest sees it: what KVM supports, with the topology and the caches of this machine.
//!
//! The leaves that describe topology are made whole from the machine, whichever of their subleaves KVM
//! lists (since Linux 6.2 leaf 0BH has one, all zero); those of caches keep what the processor's caches
//! are and say which vCPUs share them. The APIC id is the vCPU's number. Sources: Intel SDM 2A, CPUID;
//! AMD APM 3, E.3 and E.4; Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};

use super::{KvmError, refused};
use crate::boot::Topology;

/// CPUID.1:EBX[31:24], the initial APIC id, and [23:16], logical processors in the package.
const EBX_PACKAGE: u32 = 0xffff_0000;
/// CPUID.1:ECX[31]: the processor is a hypervisor's.
const ECX_HYPERVISOR: u32 = 1 << 31;
/// CPUID.1:ECX[24]: the local APIC's timer has TSC-deadline mode. KVM's in-kernel APIC has it.
pub(super) const ECX_TSC_DEADLINE: u32 = 1 << 24;
/// CPUID.1:EDX[28]: EBX[23:16] is valid, the package has several logical processors.
const EDX_MULTITHREADED: u32 = 1 << 28;

/// CPUID.80000001H:EDX[29]: the processor has long mode.
const EDX_LONG_MODE: u32 = 1 << 29;
/// CPUID.80000001H:ECX[1], AMD: the package has several cores or threads.
const ECX_CMP_LEGACY: u32 = 1 << 1;
/// CPUID.80000001H:ECX[22], AMD: leaves 8000001DH and 8000001EH are there.
const ECX_TOPOLOGY: u32 = 1 << 22;

/// Level types of leaves 0BH and 1FH, ECX[15:8].
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Leaves of the processor's caches, one subleaf each up to one of type 0.
const CACHES: u32 = 4;
const AMD_CACHES: u32 = 0x8000_001d;
/// No processor has as many caches.
const MAX_CACHES: u32 = 8;

/// EBX of leaf 0 of the processors with AMD's leaves: AuthenticAMD and HygonGenuine.
const AMD_VENDORS: [u32; 2] = [u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"Hygo")];

/// EAX, EBX, ECX and EDX.
type Registers = [u32; 4];

/// A vCPU among those of its machine.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its number and APIC id.
    pub id: u8,
    /// vCPUs of the machine, 1 to 32.
    pub cpus: u8,
    /// Their arrangement, which `cpus` vCPUs have.
    pub topology: Topology,
}

impl Place {
    /// The only vCPU of a machine.
    pub const ALONE: Self = Self {
        id: 0,
        cpus: 1,
        topology: Topology {
            sockets: 1,
            threads: 1,
        },
    };
}

/// `supported`, which KVM lists, with the topology of `place`. `host` is the CPUID instruction of this
/// processor by leaf and subleaf, asked for caches that KVM does not list.
///
/// # Errors
/// KVM lists more leaves than it takes.
pub fn describe(
    supported: &CpuId,
    place: &Place,
    host: impl Fn(u32, u32) -> Registers,
) -> Result<CpuId, KvmError> {
    let mut leaves = Leaves(supported.as_slice().to_vec());
    let sizes = Sizes::of(place);
    let [basic, vendor, ..] = leaves.registers(0);
    let [extended, ..] = leaves.registers(0x8000_0000);
    let amd = AMD_VENDORS.contains(&vendor);

    leaves.change(1, |[_, ebx, ecx, edx]| {
        let package = sizes.socket.next_power_of_two();
        *ebx = *ebx & !EBX_PACKAGE | sizes.id << 24 | package << 16;
        *ecx |= ECX_HYPERVISOR | ECX_TSC_DEADLINE;
        *edx = with(*edx, EDX_MULTITHREADED, sizes.socket > 1);
    });
    let extended_topology = if amd { &[0xb][..] } else { &[0xb, 0x1f] };
    for leaf in extended_topology.iter().filter(|leaf| **leaf <= basic) {
        leaves.replace(*leaf, &sizes.levels());
    }
    if !amd && basic >= CACHES {
        let caches = leaves.caches(CACHES, host);
        let caches: Vec<_> = caches
            .into_iter()
            .map(|cache| sizes.intel_cache(cache))
            .collect();
        leaves.replace(CACHES, &caches);
    } else if amd {
        let mut has_topology = false;
        leaves.change(0x8000_0001, |[_, _, ecx, _]| {
            *ecx = with(*ecx, ECX_CMP_LEGACY, sizes.socket > 1);
            has_topology = *ecx & ECX_TOPOLOGY != 0;
        });
        // ECX[7:0]: threads in the package less 1; ECX[15:12]: bits of the APIC id that number them.
        leaves.change(0x8000_0008, |[_, _, ecx, _]| {
            *ecx = *ecx & !0xf0ff | sizes.socket_bits() << 12 | (sizes.socket - 1);
        });
        if has_topology && extended >= 0x8000_001e {
            let caches = leaves.caches(AMD_CACHES, host);
            let caches: Vec<_> = caches
                .into_iter()
                .map(|cache| sizes.amd_cache(cache))
                .collect();
            leaves.replace(AMD_CACHES, &caches);
            leaves.replace(0x8000_001e, &[sizes.amd_place()]);
        }
        // Another form of leaf 0BH, which kernels prefer: of the host's processor.
        leaves.replace(0x8000_0026, &[]);
    }
    leaves.finish()
}

/// Clear the bit of long mode. KVM then refuses a guest that sets EFER.LME (kvm_valid_efer in
/// arch/x86/kvm/x86.c).
pub fn hide_long_mode(cpuid: &mut CpuId) {
    for entry in cpuid.as_mut_slice() {
        if entry.function == 0x8000_0001 {
            entry.edx &= !EDX_LONG_MODE;
        }
    }
}

/// What the leaves are made of.
struct Sizes {
    /// The APIC id.
    id: u32,
    /// Threads of a core.
    threads: u32,
    /// Cores of a socket.
    cores: u32,
    /// Threads of a socket.
    socket: u32,
}

impl Sizes {
    fn of(place: &Place) -> Self {
        let threads = place.topology.threads.max(1).into();
        let cores = place.topology.cores(place.cpus).max(1).into();
        Self {
            id: place.id.into(),
            threads,
            cores,
            socket: threads * cores,
        }
    }

    /// Bits of the APIC id below the number of the socket.
    fn socket_bits(&self) -> u32 {
        bits(self.threads) + bits(self.cores)
    }

    /// Leaves 0BH and 1FH. EAX: bits of the APIC id below the next level; EBX: threads in one of this
    /// level; ECX: its number and type; EDX: the APIC id.
    fn levels(&self) -> [Registers; 3] {
        [
            [bits(self.threads), self.threads, LEVEL_THREAD << 8, self.id],
            [
                self.socket_bits(),
                self.socket,
                LEVEL_CORE << 8 | 1,
                self.id,
            ],
            [0, 0, 2, self.id],
        ]
    }

    /// How many threads share a cache whose EAX says its level in [7:5]: the third level is the
    /// socket's, those before it the core's.
    fn sharing(&self, eax: u32) -> u32 {
        if eax >> 5 & 7 >= 3 {
            self.socket
        } else {
            self.threads
        }
    }

    /// A subleaf of leaf 4. EAX[25:14]: APIC ids that share it less 1, EAX[31:26]: those of cores in
    /// the package less 1, both up to the next power of two.
    fn intel_cache(&self, [eax, ebx, ecx, edx]: Registers) -> Registers {
        let sharing = self.sharing(eax).next_power_of_two();
        let cores = self.cores.next_power_of_two();
        let eax = eax & 0x3fff | (sharing - 1) << 14 | (cores - 1) << 26;
        [eax, ebx, ecx, edx]
    }

    /// A subleaf of leaf 8000001DH. EAX[25:14]: threads that share it less 1.
    fn amd_cache(&self, [eax, ebx, ecx, edx]: Registers) -> Registers {
        let sharing = self.sharing(eax);
        [eax & 0x3fff | (sharing - 1) << 14, ebx, ecx, edx]
    }

    /// Leaf 8000001EH. EAX: the APIC id; EBX: threads of a core less 1 in [15:8], and the core's number;
    /// ECX: the node, which is the socket.
    fn amd_place(&self) -> Registers {
        let core = (self.id & ((1 << self.socket_bits()) - 1)) >> bits(self.threads);
        [
            self.id,
            (self.threads - 1) << 8 | core,
            self.id >> self.socket_bits(),
            0,
        ]
    }
}

/// A list of leaves that KVM takes.
struct Leaves(Vec<kvm_cpuid_entry2>);

impl Leaves {
    /// The registers of a leaf's first subleaf, 0 if it is not listed.
    fn registers(&self, leaf: u32) -> Registers {
        let entry = self.0.iter().find(|entry| entry.function == leaf);
        entry.map_or([0; 4], registers)
    }

    /// Change a leaf without subleaves, if it is listed.
    fn change(&mut self, leaf: u32, change: impl FnOnce(&mut Registers)) {
        if let Some(entry) = self.0.iter_mut().find(|entry| entry.function == leaf) {
            let mut of_entry = registers(entry);
            change(&mut of_entry);
            [entry.eax, entry.ebx, entry.ecx, entry.edx] = of_entry;
        }
    }

    /// Have `leaf` consist of `subleaves`.
    fn replace(&mut self, leaf: u32, subleaves: &[Registers]) {
        self.0.retain(|entry| entry.function != leaf);
        let subleaves = (0..).zip(subleaves);
        self.0.extend(
            subleaves.map(|(index, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
                function: leaf,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: *eax,
                ebx: *ebx,
                ecx: *ecx,
                edx: *edx,
                ..Default::default()
            }),
        );
    }

    /// The subleaves of a leaf of caches, the host's if KVM lists none; EAX[4:0] is 0 after the last.
    fn caches(&self, leaf: u32, host: impl Fn(u32, u32) -> Registers) -> Vec<Registers> {
        let is_cache = |registers: &Registers| registers[0] & 0x1f != 0;
        let listed = self.0.iter().filter(|entry| entry.function == leaf);
        let listed: Vec<_> = listed.map(registers).filter(is_cache).collect();
        if !listed.is_empty() {
            return listed;
        }
        let caches = (0..MAX_CACHES).map(|index| host(leaf, index));
        caches.take_while(is_cache).collect()
    }

    /// Without what is all zero, as what is not listed is too.
    fn finish(mut self) -> Result<CpuId, KvmError> {
        self.0.retain(|entry| registers(entry) != [0; 4]);
        self.0.truncate(KVM_MAX_CPUID_ENTRIES + 1);
        CpuId::from_entries(&self.0)
            .map_err(|_| refused("KVM_SET_CPUID2")(kvm_ioctls::Error::new(libc::E2BIG)))
    }
}

fn registers(entry: &kvm_cpuid_entry2) -> Registers {
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

/// Bits that number `count` things.
fn bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

fn with(bits: u32, mask: u32, set: bool) -> u32 {
    if set { bits | mask } else { bits & !mask }
}

#[cfg(test)]
mod tests;
