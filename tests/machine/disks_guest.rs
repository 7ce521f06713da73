//! What a disk does for a guest: `disks DEVICE..` makes the same requests of each, and prints a line for each:
//! `vda: UNIT`, the bytes that a discard frees at least (0: it is not offered), or what failed.

use std::ffi::{c_int, c_ulong};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const BLKFLSBUF: c_ulong = 0x1261;
const BLKDISCARD: c_ulong = 0x1277;
const BLKZEROOUT: c_ulong = 0x127f;
/// FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE: zeroes, whose space may be freed.
const PUNCH_HOLE: c_int = 3;

unsafe extern "C" {
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn fallocate(fd: c_int, mode: c_int, offset: i64, len: i64) -> c_int;
}

fn main() {
    for device in std::env::args().skip(1) {
        let name = device.trim_start_matches("/dev/");
        match requests(&device, name) {
            Ok(unit) => println!("{name}: {unit}"),
            Err((what, error)) => println!("{name}: {what}: {error}"),
        }
    }
}

type Failure = (&'static str, io::Error);

fn requests(device: &str, name: &str) -> Result<u64, Failure> {
    let queue = |limit: &str| {
        let value = fs::read_to_string(format!("/sys/block/{name}/queue/{limit}"));
        value.map_or(0, |value| value.trim().parse::<u64>().unwrap_or_default())
    };
    let disk = OpenOptions::new().read(true).write(true).open(device);
    let disk = disk.map_err(|error| ("open", error))?;
    let written: Vec<u8> = (0..200_000).map(|n: u32| (n * 31 % 251) as u8).collect();
    let write = |bytes: &[u8], at| disk.write_all_at(bytes, at).map_err(|error| ("write", error));
    write(&written, 65_536)?;
    write(&written, 1_000_000)?;
    write(&written, 2 << 20)?;
    write(b"odd", 5_000_001)?;
    disk.sync_all().map_err(|error| ("flush", error))?;
    let called = |what, result: c_int| match result {
        0 => Ok(()),
        _ => Err((what, io::Error::last_os_error())),
    };
    let range = |what, request: c_ulong, range: [u64; 2]| {
        called(what, unsafe { ioctl(disk.as_raw_fd(), request, range.as_ptr()) })
    };
    called("drop cache", unsafe { ioctl(disk.as_raw_fd(), BLKFLSBUF, 0) })?;
    let mut read = vec![0; written.len()];
    disk.read_exact_at(&mut read, 65_536).map_err(|error| ("read", error))?;
    if read != written {
        return Err(("read", io::Error::other("other bytes")));
    }
    range("write zeroes", BLKZEROOUT, [131_072, 131_072])?;
    range("write zeroes", BLKZEROOUT, [1_000_448, 1536])?;
    let punched = unsafe { fallocate(disk.as_raw_fd(), PUNCH_HOLE, 1_048_576, 131_072) };
    // Zeroes whose space is freed where that is offered, and otherwise only zeroes.
    if punched != 0 {
        range("write zeroes", BLKZEROOUT, [1_048_576, 131_072])?;
    }
    let unit = match queue("discard_max_bytes") {
        0 => 0,
        _ => queue("discard_granularity"),
    };
    if unit != 0 {
        range("discard", BLKDISCARD, [2 << 20, 2 << 20])?;
    }
    disk.sync_all().map_err(|error| ("flush", error))?;
    after(&disk)?;
    Ok(unit)
}

/// What was zeroed is read as zeroes.
fn after(disk: &File) -> Result<(), Failure> {
    let mut read = vec![1; 131_072];
    for at in [131_072, 1_048_576] {
        disk.read_exact_at(&mut read, at).map_err(|error| ("read", error))?;
        if read.iter().any(|&byte| byte != 0) {
            return Err(("write zeroes", io::Error::other("other bytes")));
        }
    }
    Ok(())
}
