//! Kernels of every format, with an initrd, and the tables for them.

use arbitrary::Arbitrary;
use hull::boot::cmdline;
use hull::boot::{Format, Machine, Placed, Plan, TableFaults, Via, detect, place};
use hull::memory::GuestMemory;
use hull::memory::image::Image;
use vm_memory::{Bytes, GuestAddress};

use crate::elf::{Elf, Load};
use crate::packed::{Compression, payload};
use crate::patch::Patches;

const MIB: u64 = 1 << 20;
/// Guest memory in bytes.
const MEMORY: u64 = 4 * MIB;
/// The first bytes of a flat payload.
const FLAT: &[u8] = b"\xeb\x0eHULLFLAT";

/// A file, and how it is to be entered.
#[derive(Arbitrary, Debug)]
pub struct Input {
    kernel: Kernel,
    patches: Patches,
    via: u8,
    initrd: Vec<Vec<u8>>,
}

#[derive(Arbitrary, Debug)]
enum Kernel {
    Any(Vec<u8>),
    Elf(Elf),
    BzImage(BzImage),
    Flat(u8, Vec<u8>),
}

/// A bzImage; where a field is none it is as in Linux.
#[derive(Arbitrary, Debug)]
struct BzImage {
    sectors: u8,
    version: Option<u16>,
    flags: Option<u8>,
    start: Option<u32>,
    address_max: Option<u32>,
    alignment: Option<u32>,
    relocatable: bool,
    extended: u16,
    cmdline: Option<u32>,
    offset: Option<u32>,
    length: Option<u32>,
    preferred: Option<u32>,
    init_size: Option<u32>,
    payload: Payload,
    code: u8,
}

#[derive(Arbitrary, Debug)]
enum Payload {
    Packed(Compression, Elf),
    Other(Compression, Vec<u8>),
    Bytes(Vec<u8>),
}

impl Kernel {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Any(bytes) => bytes.clone(),
            Self::Elf(elf) => elf.bytes(),
            Self::BzImage(image) => image.bytes(),
            Self::Flat(mode, code) => [FLAT, &[*mode, 0, 0, 0, 0, 0], code].concat(),
        }
    }
}

impl BzImage {
    /// Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
    fn bytes(&self) -> Vec<u8> {
        let payload = match &self.payload {
            Payload::Packed(compression, elf) => payload(*compression, &elf.bytes()),
            Payload::Other(compression, bytes) => payload(*compression, bytes),
            Payload::Bytes(bytes) => bytes.clone(),
        };
        let sectors = self.sectors % 4;
        let setup = (usize::from(if sectors == 0 { 4 } else { sectors }) + 1) * 512;
        let before = usize::from(self.code) * 4;
        let size = (before + payload.len()).next_multiple_of(16);
        let mut file = vec![0; setup];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[sectors]);
        put(0x1f4, &(size as u32 / 16).to_le_bytes());
        put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(0x202, b"HdrS");
        put(0x206, &self.version.unwrap_or(0x20f).to_le_bytes());
        put(0x211, &[self.flags.unwrap_or(1)]);
        put(0x214, &self.start.unwrap_or(0x10_0000).to_le_bytes());
        put(
            0x22c,
            &self.address_max.unwrap_or(0x7fff_ffff).to_le_bytes(),
        );
        put(0x230, &self.alignment.unwrap_or(0x1000).to_le_bytes());
        put(0x234, &[self.relocatable.into()]);
        put(0x236, &self.extended.to_le_bytes());
        put(0x238, &self.cmdline.unwrap_or(2047).to_le_bytes());
        put(0x248, &self.offset.unwrap_or(before as u32).to_le_bytes());
        let length = self.length.unwrap_or(payload.len() as u32);
        put(0x24c, &length.to_le_bytes());
        let preferred = u64::from(self.preferred.unwrap_or(0x10_0000));
        put(0x258, &preferred.to_le_bytes());
        put(0x260, &self.init_size.unwrap_or(0x10_0000).to_le_bytes());
        file.resize(setup + before, 0x90);
        file.extend(payload);
        file.resize(setup + size, 0);
        file
    }
}

/// Load it.
pub fn check(input: &Input) {
    let mut bytes = input.kernel.bytes();
    input.patches.apply(&mut bytes);
    let whole = bytes.clone();
    let image = Image::from(bytes);
    let via = [Via::Auto, Via::Pvh, Via::Guest][usize::from(input.via % 3)];
    let initrd: Vec<Image> = input
        .initrd
        .iter()
        .map(|part| part.clone().into())
        .collect();
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
    let seen = detect(&image);
    let placed = match place(&memory, &image, via, &initrd) {
        Ok(placed) => placed,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            if let Err(seen) = seen {
                assert_eq!(seen.to_string(), error.to_string());
            }
            return;
        }
    };
    let read = |gpa: u64, size: usize| {
        let mut bytes = vec![0; size];
        memory.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    };
    match &placed {
        Placed::Flat(_, payload) => assert_eq!(payload, &whole),
        Placed::Kernel {
            format,
            kernel,
            initrd,
        } => {
            assert_eq!(seen.unwrap(), *format);
            assert!(kernel.range.start >= MIB && kernel.range.end <= MEMORY);
            assert!(kernel.range.contains(&kernel.entry.rip), "{kernel:x?}");
            if let Some(initrd) = initrd {
                assert!(initrd.start >= kernel.range.end && initrd.end <= MEMORY);
                assert!(initrd.start.is_multiple_of(4096) && !initrd.is_empty());
            }
            if let (Kernel::Elf(elf), true) = (&input.kernel, input.patches.is_empty()) {
                let mut loads = elf.loads();
                loads.sort_by_key(|load| load.gpa);
                for load in &loads {
                    let bytes = load.bytes.as_ref().expect("a part beyond the file");
                    assert_eq!(read(load.gpa, bytes.len()), *bytes, "at {:#x}", load.gpa);
                    assert!(load.gpa >= MIB && load.gpa + load.size <= MEMORY);
                }
                let apart = |pair: &[Load]| pair[0].gpa + pair[0].size <= pair[1].gpa;
                assert!(loads.windows(2).all(apart), "segments overlap");
                let inside =
                    |load: &Load| (load.gpa..load.gpa + load.size).contains(&kernel.entry.rip);
                assert!(loads.iter().any(inside), "it begins between segments");
            }
        }
    }
    let plan = Plan {
        cmdline: cmdline::new("quiet", &cmdline::DEFAULTS).unwrap(),
        virtio_on_cmdline: false,
        machine: Machine {
            cpus: 1,
            com2: false,
            virtio: &[],
        },
        faults: TableFaults::default(),
    };
    if let Ok(loaded) = placed.finish(&memory, &plan) {
        let start = usize::try_from(loaded.kernel.start).unwrap();
        assert!(loaded.kernel.contains(&loaded.entry.rip));
        if matches!(loaded.format, Format::Flat(_)) {
            assert_eq!(read(start as u64, whole.len()), whole);
        }
    }
}
