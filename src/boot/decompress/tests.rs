use std::io::Write;

use proptest::prelude::*;

use super::*;

pub const ALL: [Compression; 7] = [
    Compression::Gzip,
    Compression::Bzip2,
    Compression::Lzma,
    Compression::Xz,
    Compression::Lzo,
    Compression::Lz4,
    Compression::Zstd,
];

/// `data` as Linux's build would put it into a bzImage.
pub fn pack(compression: Compression, data: &[u8]) -> Vec<u8> {
    let mut payload = stream(compression, data);
    if compression != Compression::Gzip {
        payload.extend((data.len() as u32).to_le_bytes());
    }
    payload
}

#[test]
fn lzma_may_have_a_small_dictionary() {
    let found = Compression::detect(b"\x5d\0\x10\0\0");
    assert_eq!(found, Some(Compression::Lzma));
}

pub fn stream(compression: Compression, data: &[u8]) -> Vec<u8> {
    use liblzma::stream::{Check, Filters, LzmaOptions};
    let xz = |stream| {
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let options = LzmaOptions::new_preset(1).unwrap();
    match compression {
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), Default::default());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Lzma => xz(Stream::new_lzma_encoder(&options).unwrap()),
        Compression::Xz => {
            let mut filters = Filters::new();
            filters.x86().lzma2(&options);
            xz(Stream::new_stream_encoder(&filters, Check::Crc32).unwrap())
        }
        Compression::Lzo => lzop(data),
        Compression::Lz4 => {
            let blocks = data.chunks(LZ4_BLOCK).flat_map(|chunk| {
                let block = lz4_flex::block::compress(chunk);
                [(block.len() as u32).to_le_bytes().to_vec(), block].concat()
            });
            LZ4_MAGIC.into_iter().chain(blocks).collect()
        }
        Compression::Zstd => zstd::bulk::compress(data, 1).unwrap(),
    }
}

/// A file as `lzop -9` writes it: checksums of the unpacked data, blocks of 256 KiB.
fn lzop(data: &[u8]) -> Vec<u8> {
    let mut file = LZOP_MAGIC.to_vec();
    file.extend([0x10, 0x40, 0x20, 0xa0, 0x09, 0x40, 3, 9]);
    file.extend(1u32.to_be_bytes()); // ADLER32 of the unpacked data
    file.extend([0; 12]); // mode, time
    file.extend(b"\x04name");
    file.extend([0; 4]); // checksum
    for chunk in data.chunks(256 << 10) {
        let block = lzokay::compress::compress(chunk).unwrap();
        let block = if block.len() < chunk.len() {
            &block
        } else {
            chunk
        };
        file.extend((chunk.len() as u32).to_be_bytes());
        file.extend((block.len() as u32).to_be_bytes());
        file.extend([0; 4]); // checksum
        file.extend(block);
    }
    file.extend([0; 4]);
    file
}

/// Bytes that compress, more than fit into a block of lz4 or lzo.
fn sample(compression: Compression) -> Vec<u8> {
    let size = match compression {
        Compression::Lz4 => LZ4_BLOCK as u32 + 1000,
        _ => 600_000,
    };
    let words = (0..size / 4).map(|index| index.wrapping_mul(index) / 1000);
    words.flat_map(u32::to_le_bytes).collect()
}

#[test]
fn every_compression_unpacks_to_the_original() {
    for compression in ALL {
        let data = sample(compression);
        let payload = pack(compression, &data);
        assert_eq!(Compression::detect(&payload), Some(compression));
        let limit = data.len() as u64;
        let unpacked = compression.unpack(&payload, limit).unwrap();
        assert!(unpacked == data, "{compression}");
    }
}

#[test]
fn incompressible_data_comes_out_too() {
    let mut state = 1u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let data: Vec<u8> = (0..300_000).map(|_| random()).collect();
    for compression in ALL {
        let unpacked = compression.unpack(&pack(compression, &data), 1 << 20);
        assert!(unpacked.unwrap() == data, "{compression}");
    }
}

#[test]
fn a_size_above_the_limit_is_refused_before_anything_is_unpacked() {
    for compression in ALL {
        let error = compression
            .unpack(&pack(compression, &[7; 5000]), 4999)
            .unwrap_err();
        let limit = 4999;
        let expected = DecompressError::TooBig {
            compression,
            size: 5000,
            limit,
        };
        assert_eq!(error, expected);
    }
}

#[test]
fn a_payload_that_unpacks_to_more_than_stated_is_refused() {
    for compression in ALL {
        let mut payload = pack(compression, &[0; 1 << 20]);
        let end = payload.len();
        payload[end - 4..].copy_from_slice(&1000u32.to_le_bytes());
        let error = compression.unpack(&payload, 1 << 30).unwrap_err();
        let size = matches!(&error, DecompressError::Size { size: 1000, .. });
        assert!(
            size || matches!(error, DecompressError::Damaged { .. }),
            "{error}"
        );
    }
}

#[test]
fn a_size_above_the_limit_is_an_error_with_both_numbers() {
    // Gzip has the size in its own trailer, and takes another one for damage.
    for compression in ALL.into_iter().filter(|one| *one != Compression::Gzip) {
        let mut payload = pack(compression, &[1; 5000]);
        let end = payload.len();
        payload[end - 4..].copy_from_slice(&6000u32.to_le_bytes());
        let error = compression.unpack(&payload, 1 << 30).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("unpacks to 5000 bytes, not the 6000"),
            "{text}"
        );
    }
}

#[test]
fn every_truncation_is_an_error() {
    let data: Vec<u8> = (0..2000u32).flat_map(|i| (i / 3).to_le_bytes()).collect();
    for compression in ALL {
        let payload = pack(compression, &data);
        for end in 0..payload.len() {
            let unpacked = compression.unpack(&payload[..end], 1 << 20);
            assert!(unpacked.is_err(), "{compression} cut off at {end}");
        }
    }
}

#[test]
fn bytes_after_the_compressed_data_are_an_error() {
    for compression in ALL {
        let data = vec![3; 5000];
        let mut payload = stream(compression, &data);
        payload.extend([0; 16]);
        payload.extend(5000u32.to_le_bytes());
        let error = compression.unpack(&payload, 1 << 20).unwrap_err();
        assert!(
            matches!(error, DecompressError::Damaged { .. }),
            "{compression}: {error}"
        );
    }
}

#[test]
fn uncompressed_data_is_not_detected_as_compressed() {
    for payload in [b"".as_slice(), b"\x1f", b"\x7fELF", &[0; 32]] {
        assert_eq!(Compression::detect(payload), None);
    }
}

proptest! {
    /// With a limit of 64 KiB, whatever the data says.
    #[test]
    fn mutated_payloads_give_an_error_or_the_stated_size(
        which in prop::sample::select(&ALL[..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let data: Vec<u8> = (0..4000u32).flat_map(|i| (i * i / 9).to_le_bytes()).collect();
        let mut payload = pack(which, &data);
        for (index, byte) in changes {
            let at = index.index(payload.len());
            payload[at] = byte;
        }
        let size = u32::from_le_bytes(*payload.last_chunk().unwrap());
        match which.unpack(&payload, 1 << 16) {
            Ok(unpacked) => prop_assert_eq!(unpacked.len(), size as usize),
            Err(error) => prop_assert!(error.to_string().contains(&which.to_string())),
        }
    }

    #[test]
    fn noise_after_a_magic_number_is_refused(
        which in prop::sample::select(&ALL[..]),
        noise in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let mut payload = stream(which, b"");
        payload.truncate(6);
        payload.extend(noise);
        payload.extend(40_000u32.to_le_bytes());
        prop_assert!(which.unpack(&payload, 1 << 16).is_err());
    }
}
