//! Compressed bytes, as Linux's build and distributions make them.

use std::io::Write;

use arbitrary::Arbitrary;

/// The magic number of lz4's legacy frame.
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// A compression that hull unpacks and these targets can make.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Compression {
    Gzip,
    Bzip2,
    Lzma,
    Xz,
    Lz4,
    Zstd,
}

/// `data` as one stream.
pub fn stream(compression: Compression, data: &[u8]) -> Vec<u8> {
    use liblzma::stream::{Check, LzmaOptions, Stream};
    let xz = |stream| {
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    match compression {
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Lzma => {
            let mut options = LzmaOptions::new_preset(0).unwrap();
            options.dict_size(4096);
            xz(Stream::new_lzma_encoder(&options).unwrap())
        }
        Compression::Xz => xz(Stream::new_easy_encoder(0, Check::Crc32).unwrap()),
        Compression::Lz4 => {
            let block = lz4_flex::block::compress(data);
            let size = (block.len() as u32).to_le_bytes();
            [&LZ4_MAGIC[..], &size, &block].concat()
        }
        Compression::Zstd => zstd::bulk::compress(data, 1).unwrap(),
    }
}

/// `data` as the payload of a bzImage, which ends with its unpacked size.
pub fn payload(compression: Compression, data: &[u8]) -> Vec<u8> {
    let mut payload = stream(compression, data);
    if !matches!(compression, Compression::Gzip) {
        payload.extend((data.len() as u32).to_le_bytes());
    }
    payload
}
