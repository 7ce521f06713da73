//! The loaders as a whole: every kind of kernel, whole and damaged.

use proptest::prelude::*;

use super::bzimage::tests::image;
use super::decompress::tests::{ALL, pack};
use super::elf::tests::{linux, pvh32};
use super::ram::tests::{memory, read};
use super::*;
use crate::memory::layout::{ACPI, CMDLINE, MmioSlot, virtio_slot};

const MIB: u64 = 1 << 20;

fn load_with(
    kernel: &[u8],
    via: Via,
    initrd: &[&[u8]],
) -> Result<(Loaded, GuestMemory), BootError> {
    load_with_faults(kernel, via, initrd, TableFaults::default())
}

fn load_with_faults(
    kernel: &[u8],
    via: Via,
    initrd: &[&[u8]],
    faults: TableFaults,
) -> Result<(Loaded, GuestMemory), BootError> {
    let memory = memory(8);
    let initrd: Vec<Image> = initrd.iter().map(|part| (*part).into()).collect();
    let slots: Vec<MmioSlot> = virtio_slot(0).into_iter().collect();
    let plan = Plan {
        cmdline: cmdline::new("quiet", &[]).unwrap(),
        virtio_on_cmdline: false,
        machine: Machine {
            cpus: 2,
            com2: true,
            virtio: &slots,
        },
        faults,
    };
    let placed = place(&memory, &kernel.into(), via, &initrd)?;
    placed.finish(&memory, &plan).map(|loaded| (loaded, memory))
}

fn entry(kernel: &[u8], via: Via) -> (Mode, u64, u64) {
    let (loaded, _) = load_with(kernel, via, &[]).unwrap();
    let Entry { mode, rip, params } = loaded.entry;
    (mode, rip, params)
}

#[test]
fn linux_is_entered_in_64_bit_mode_and_by_pvh_when_asked() {
    let kernel = linux().build();
    let auto = (Mode::Linux64, 2 * MIB, BOOT_PARAMS);
    let pvh = (Mode::Pvh, 2 * MIB + 0x10, PVH_START_INFO);
    assert_eq!(entry(&kernel, Via::Auto), auto);
    assert_eq!(entry(&kernel, Via::Guest), auto);
    assert_eq!(entry(&kernel, Via::Pvh), pvh);
    for compression in ALL {
        let packed = image(&pack(compression, &kernel));
        assert_eq!(entry(&packed, Via::Auto), auto, "{compression}");
        assert_eq!(entry(&packed, Via::Pvh), pvh, "{compression}");
        let guest = (Mode::Linux64, 2 * MIB + 0x200, BOOT_PARAMS);
        assert_eq!(entry(&packed, Via::Guest), guest, "{compression}");
    }
}

#[test]
fn faults_leave_out_the_tables_of_processors() {
    for (no_processors, words) in [(false, 2), (true, 0)] {
        let faults = TableFaults {
            no_processors,
            ..TableFaults::default()
        };
        let kernel = linux().build();
        let (_, memory) = load_with_faults(&kernel, Via::Auto, &[], faults).unwrap();
        let low = read(&memory, 0, MIB as usize);
        let tables = low
            .windows(4)
            .filter(|word| matches!(*word, b"_MP_" | b"APIC"));
        assert_eq!(tables.count(), words);
    }
}

#[test]
fn a_32_bit_kernel_is_entered_by_pvh() {
    let pvh = (Mode::Pvh, MIB, PVH_START_INFO);
    assert_eq!(entry(&pvh32().build(), Via::Auto), pvh);
    let packed = image(&pack(ALL[0], &pvh32().build()));
    assert_eq!(entry(&packed, Via::Auto), pvh);
}

#[test]
fn a_bzimage_around_a_32_bit_kernel_without_a_note_unpacks_itself() {
    let mut kernel = pvh32();
    kernel.segments.pop();
    let packed = image(&pack(ALL[0], &kernel.build()));
    let guest = (Mode::Linux64, 2 * MIB + 0x200, BOOT_PARAMS);
    assert_eq!(entry(&packed, Via::Auto), guest);
}

#[test]
fn a_bzimage_without_an_elf_file_inside_starts_at_its_own_entry_but_not_by_pvh() {
    for payload in [b"".as_slice(), &[0x90; 300]] {
        let guest = (Mode::Linux64, 2 * MIB + 0x200, BOOT_PARAMS);
        assert_eq!(entry(&image(payload), Via::Auto), guest);
        let error = load_with(&image(payload), Via::Pvh, &[]).unwrap_err();
        assert!(matches!(error, BootError::NoPvhEntry), "{error}");
    }
}

#[test]
fn a_damaged_kernel_in_a_bzimage_is_an_error() {
    let mut arm = linux();
    arm.machine = object::elf::Machine(183);
    let error = load_with(&image(&pack(ALL[0], &arm.build())), Via::Auto, &[]).unwrap_err();
    assert!(error.to_string().contains("64-bit ARM"), "{error}");
    let mut payload = pack(ALL[0], &linux().build());
    payload[20] ^= 0xff;
    let error = load_with(&image(&payload), Via::Auto, &[]).unwrap_err();
    assert!(error.to_string().contains("gzip-compressed"), "{error}");
}

#[test]
fn the_kernel_finds_command_line_initrd_and_acpi_by_either_structure() {
    for (via, [cmdline_at, initrd_at, rsdp_at]) in
        [(Via::Auto, [0x228, 0x218, 0x70]), (Via::Pvh, [24, 56, 32])]
    {
        let packed = image(&pack(ALL[0], &linux().build()));
        let (loaded, memory) = load_with(&packed, via, &[b"070701"]).unwrap();
        let params = loaded.entry.params;
        let u32_at =
            |at: u64| u32::from_le_bytes(read(&memory, params + at, 4).try_into().unwrap());
        assert_eq!(u64::from(u32_at(cmdline_at)), CMDLINE);
        assert_eq!(read(&memory, CMDLINE, 6), b"quiet\0");
        assert_eq!(read(&memory, u32_at(initrd_at).into(), 6), b"070701");
        assert_eq!(u64::from(u32_at(rsdp_at)), ACPI);
        assert_eq!(read(&memory, ACPI, 8), b"RSD PTR ");
    }
}

#[test]
fn the_limits_of_a_bzimage_are_respected() {
    let mut packed = image(&pack(ALL[0], &linux().build()));
    packed[0x238..0x23c].copy_from_slice(&4u32.to_le_bytes()); // cmdline_size
    let error = load_with(&packed, Via::Auto, &[]).unwrap_err();
    assert!(error.to_string().contains("this kernel takes 4"), "{error}");
}

/// Kernels of every kind, by number.
fn kernel(which: usize) -> Vec<u8> {
    match which {
        0 => linux().build(),
        1 => pvh32().build(),
        2 => image(&[0x90; 300]),
        3 => [flat::MAGIC, &[64, 0, 0, 0, 0, 0, 0xf4]].concat(),
        packed => image(&pack(ALL[packed - 4], &linux().build())),
    }
}

const KERNELS: usize = 4 + ALL.len();

fn any_via() -> impl Strategy<Value = Via> {
    prop::sample::select(&[Via::Auto, Via::Pvh, Via::Guest][..])
}

/// What holds for every kernel that is started.
fn check(kernel: &[u8], via: Via) -> Result<(), TestCaseError> {
    match load_with(kernel, via, &[&[1; 5000]]) {
        Err(error) => prop_assert!(!error.to_string().is_empty()),
        Ok((loaded, _)) if matches!(loaded.format, Format::Flat(_)) => {}
        Ok((loaded, _)) => {
            let initrd = loaded.initrd.unwrap_or_default();
            prop_assert!(loaded.kernel.contains(&loaded.entry.rip));
            prop_assert!(loaded.kernel.start >= MIB && loaded.kernel.end <= initrd.start);
            prop_assert!(initrd.end <= 8 * MIB);
        }
    }
    Ok(())
}

#[test]
fn every_kernel_truncated_at_any_byte_is_an_error_or_starts() {
    for which in 0..KERNELS {
        let kernel = kernel(which);
        assert!(load_with(&kernel, Via::Auto, &[]).is_ok(), "{which}");
        for end in 0..kernel.len() {
            check(&kernel[..end], Via::Auto).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn flipped_bits_give_an_error_or_a_kernel_in_its_place(
        which in 0..KERNELS,
        via in any_via(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..6),
    ) {
        let mut kernel = kernel(which);
        for (index, bit) in flips {
            let at = index.index(kernel.len());
            kernel[at] ^= 1 << bit;
        }
        check(&kernel, via)?;
    }

    /// The headers are where it matters: the first 0x270 bytes hold all of them.
    #[test]
    fn overwritten_header_fields_give_an_error_or_a_kernel_in_its_place(
        which in 0..KERNELS,
        via in any_via(),
        fields in prop::collection::vec(
            (0usize..0x270, prop_oneof![any::<u32>(), 0u32..64, Just(u32::MAX)]), 1..5),
    ) {
        let mut kernel = kernel(which);
        for (at, value) in fields {
            if let Some(field) = kernel.get_mut(at..at + 4) {
                field.copy_from_slice(&value.to_le_bytes());
            }
        }
        check(&kernel, via)?;
    }

    #[test]
    fn setup_header_fields_of_any_value_give_an_error_or_a_kernel_in_its_place(
        which in 2..KERNELS,
        via in any_via(),
        fields in prop::collection::vec(
            (0x1f1usize..0x268, any::<u8>()), 1..12),
    ) {
        let mut kernel = kernel(which);
        for (at, value) in fields {
            if let Some(byte) = kernel.get_mut(at) {
                *byte = value;
            }
        }
        check(&kernel, via)?;
    }

    #[test]
    fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(load_with(&noise, Via::Auto, &[]).is_err());
    }
}
