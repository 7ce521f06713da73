use super::super::decompress::tests::pack;
use super::super::ram::tests::{memory, read};
use super::*;

const MIB: u64 = 1 << 20;
/// Two sectors of real-mode code behind the first one.
const SETUP_SIZE: usize = 3 * SECTOR;
/// Where `image` puts the payload in the protected-mode code.
const PAYLOAD: usize = 0x300;

/// A bzImage of boot protocol 2.15 around `payload`, which wants to run at 2 MiB.
pub fn image(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; SETUP_SIZE];
    bytes[0x1f1] = 2;
    bytes[0x200..0x208].copy_from_slice(b"\xeb\x6aHdrS\x0f\x02");
    bytes[0x211] = LOADED_HIGH;
    put(&mut bytes, 0x214, HIGH_MEMORY as u32); // code32_start
    put(&mut bytes, 0x22c, 0x7fff_ffff); // initrd_addr_max
    put(&mut bytes, 0x230, 2 * MIB as u32); // kernel_alignment
    bytes[0x234] = 1; // relocatable_kernel
    bytes[0x236] = XLF_KERNEL_64 as u8;
    put(&mut bytes, 0x238, 2047); // cmdline_size
    put(&mut bytes, 0x248, PAYLOAD as u32);
    put(&mut bytes, 0x24c, payload.len() as u32);
    put(&mut bytes, 0x258, 2 * MIB as u32); // pref_address
    put(&mut bytes, 0x260, MIB as u32); // init_size
    bytes.extend([0xf4; PAYLOAD]);
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    let code = bytes.len() - SETUP_SIZE;
    put(&mut bytes, 0x1f4, (code / 16) as u32); // syssize
    bytes
}

pub fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn load(bytes: &[u8], mib: u64) -> Result<(Kernel, GuestMemory), BootError> {
    let memory = memory(mib);
    let placed = BzImage::parse(bytes)?.load(&memory)?;
    Ok((placed, memory))
}

fn refusal(bytes: &[u8]) -> String {
    BzImage::parse(bytes).unwrap_err().to_string()
}

#[test]
fn the_elf_file_inside_is_found_and_unpacked() {
    let elf = [elf::MAGIC, &[7; 100]].concat();
    let bytes = image(&pack(Compression::Zstd, &elf));
    let image = BzImage::parse(&bytes).unwrap();
    assert_eq!(image.unpack(&memory(16)).unwrap().unwrap(), elf);
}

#[test]
fn other_payloads_stay_packed() {
    let packed = pack(Compression::Gzip, b"not a kernel");
    for payload in [packed.as_slice(), &[], &[9; 99]] {
        let bytes = image(payload);
        let image = BzImage::parse(&bytes).unwrap();
        assert_eq!(image.unpack(&memory(16)), Ok(None));
    }
}

#[test]
fn a_payload_larger_than_init_size_or_memory_is_refused() {
    let payload = pack(Compression::Gzip, &vec![0; 3 << 20]);
    let mut bytes = image(&payload);
    let limit = |bytes: &[u8]| {
        let image = BzImage::parse(bytes).unwrap();
        match image.unpack(&memory(2)) {
            Err(DecompressError::TooBig { limit, .. }) => limit,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(limit(&bytes), MIB);
    put(&mut bytes, 0x260, 64 << 20);
    assert_eq!(limit(&bytes), 2 * MIB);
}

#[test]
fn the_guest_unpacks_where_the_kernel_wants_to_run() {
    let bytes = image(b"payload");
    let (placed, memory) = load(&bytes, 16).unwrap();
    assert_eq!(placed.entry.mode, Mode::Linux64);
    assert_eq!(placed.entry.rip, 2 * MIB + 0x200);
    assert_eq!(placed.range, 2 * MIB..3 * MIB);
    assert_eq!({ placed.header.code32_start }, 2 * MIB as u32);
    let code = &bytes[SETUP_SIZE..];
    assert_eq!(read(&memory, 2 * MIB, code.len()), code);
}

#[test]
fn without_a_64_bit_entry_the_32_bit_one_is_taken() {
    let mut bytes = image(b"payload");
    bytes[0x236] = 0;
    let (placed, _) = load(&bytes, 16).unwrap();
    assert_eq!(
        (placed.entry.mode, placed.entry.rip),
        (Mode::Linux32, 2 * MIB)
    );
}

#[test]
fn a_kernel_that_does_not_relocate_is_loaded_at_code32_start() {
    let mut bytes = image(b"payload");
    bytes[0x234] = 0;
    let (placed, _) = load(&bytes, 16).unwrap();
    assert_eq!(placed.entry.rip, MIB + 0x200);
    assert_eq!(placed.range, MIB..3 * MIB);
}

#[test]
fn an_old_protocol_has_no_payload_and_no_init_size() {
    let mut bytes = image(&pack(Compression::Gzip, b"\x7fELF"));
    bytes[0x206] = 0x06;
    let image = BzImage::parse(&bytes).unwrap();
    assert_eq!(image.unpack(&memory(16)), Ok(None));
    let (placed, _) = load(&bytes, 16).unwrap();
    assert_eq!(
        (placed.entry.mode, placed.entry.rip),
        (Mode::Linux32, 2 * MIB)
    );
    bytes[0x206] = 0x05;
    assert!(refusal(&bytes).contains("boot protocol 2.05, the oldest that hull supports is 2.06"));
}

#[test]
fn init_size_must_be_ram() {
    let mut bytes = image(b"payload");
    assert!(load(&bytes, 3).is_ok());
    let error = load(&bytes, 2).unwrap_err().to_string();
    assert!(
        error.contains("needs 0x310 bytes at 0x200000") && error.contains("guest of 2 MiB"),
        "{error}"
    );
    put(&mut bytes, 0x260, u32::MAX);
    let error = load(&bytes, 16).unwrap_err().to_string();
    assert!(error.contains("needs 0xffffffff bytes"), "{error}");
}

#[test]
fn addresses_without_ram_are_refused() {
    for (at, value) in [(0x258, 0x7000), (0x258, 0xc000_0000), (0x25c, u32::MAX)] {
        let mut bytes = image(b"payload");
        put(&mut bytes, at, value);
        put(&mut bytes, 0x230, 1);
        let error = load(&bytes, 16).unwrap_err();
        assert!(
            matches!(
                error,
                BootError::BzImage(BzImageError::OutsideMemory { .. })
            ),
            "{error}"
        );
    }
    let mut bytes = image(b"payload");
    bytes[0x234] = 0;
    put(&mut bytes, 0x214, 0x1000);
    assert!(load(&bytes, 16).is_err(), "code32_start below 1 MiB");
}

#[test]
fn a_payload_length_beyond_the_code_is_refused() {
    let mut bytes = image(&pack(Compression::Lz4, b"\x7fELF"));
    put(&mut bytes, 0x24c, 0x10_0000);
    assert!(refusal(&bytes).contains("its payload ends at byte 1050880, the file has"));
    put(&mut bytes, 0x24c, u32::MAX);
    put(&mut bytes, 0x248, u32::MAX);
    assert!(refusal(&bytes).contains("its payload ends at byte"));
}

#[test]
fn a_file_that_is_cut_off_is_refused_and_a_signature_behind_it_is_not() {
    let mut bytes = image(&[5; 400]);
    for end in [0x26c, 0x400, SETUP_SIZE, SETUP_SIZE + 1, bytes.len() - 16] {
        let text = refusal(&bytes[..end]);
        assert!(text.contains("truncated"), "{end}: {text}");
    }
    bytes.extend([1; 1000]);
    let image = BzImage::parse(&bytes).unwrap();
    assert_eq!(image.code.len(), bytes.len() - 1000 - SETUP_SIZE);
}

#[test]
fn a_zimage_and_a_file_without_a_header_are_refused() {
    let mut bytes = image(b"");
    bytes[0x211] = 0;
    assert!(refusal(&bytes).contains("a zImage"));
    assert!(refusal(b"MZ").contains("no setup header"));
}
