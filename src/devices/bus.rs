//! The bus: from an address to the device behind it.
//!
//! A machine has two, one of ports and one of memory-mapped registers. A [`Bus`] is built once
//! and then only read, so vCPU threads share it without a lock; each device has its own.
//! Lock order: a device's lock is taken with no other held, and no device calls the bus.

use std::io;
use std::sync::{Arc, Mutex};

use thiserror::Error;

use super::register::Register;
use super::state::StateError;
use crate::sync::lock;

/// A device that answers port or memory-mapped accesses.
///
/// Called on a vCPU thread with the guest's bytes: any `offset` inside the registered range and
/// `data` of 1, 2, 4 or 8 bytes (string I/O is split before it arrives here), at any time, from
/// any vCPU, one at a time.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset`; bytes that are not written read as all
    /// ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
    /// The registers as they are, read without side effects, for inspections.
    fn state(&self) -> Vec<Register> {
        Vec::new()
    }

    /// What the data sheet calls the register that an access at `offset` would reach now.
    fn register(&self, _offset: u64, _write: bool) -> Option<&'static str> {
        None
    }

    /// The state that another device of its type needs to continue (see [`super::state`]); empty
    /// for a device without state. No vCPU runs, and no thread works for the device.
    ///
    /// # Errors
    /// It cannot be saved as it is now.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(Vec::new())
    }

    /// Continue from `state`: the result of [`BusDevice::save`], or broken or malicious bytes.
    /// Called on a new device, before any access.
    ///
    /// # Errors
    /// `state` is not that of such a device.
    fn load(&mut self, state: &[u8]) -> Result<(), StateError> {
        if state.is_empty() {
            return Ok(());
        }
        Err(StateError("has no state, and is given one".into()))
    }
}

/// A line into the guest's interrupt controller.
pub trait Interrupt: Send + Sync {
    /// Raise an edge on the line.
    ///
    /// # Errors
    /// The host refuses.
    fn trigger(&self) -> io::Result<()>;
}

/// A device on a bus.
pub type Shared = Arc<Mutex<dyn BusDevice>>;

/// A device could not be put on the bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// The range is empty or runs past the last address.
    #[error("device range at {base:#x} of {len:#x} bytes is empty or wraps around")]
    BadRange {
        /// First address of the refused range.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The range overlaps that of another device.
    #[error(
        "device range at {base:#x} of {len:#x} bytes overlaps the device at {other:#x}; \
         move one of them in the memory layout"
    )]
    Overlap {
        /// First address of the refused range.
        base: u64,
        /// Its length in bytes.
        len: u64,
        /// First address of the other device.
        other: u64,
    },
}

struct Range {
    base: u64,
    last: u64,
    name: String,
    device: Shared,
}

/// Devices by address, sorted, never overlapping.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<Range>,
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Put `device`, which messages call `name`, at the `len` bytes from `base`.
    ///
    /// # Errors
    /// An empty or wrapping range, or one that touches another device's.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        name: impl Into<String>,
        device: Shared,
    ) -> Result<(), Error> {
        let last = len
            .checked_sub(1)
            .and_then(|reach| base.checked_add(reach))
            .ok_or(Error::BadRange { base, len })?;
        // The first range that ends at or after `base` is the only one that can overlap first.
        let index = self.ranges.partition_point(|range| range.last < base);
        if let Some(next) = self.ranges.get(index)
            && next.base <= last
        {
            return Err(Error::Overlap {
                base,
                len,
                other: next.base,
            });
        }
        let range = Range {
            base,
            last,
            name: name.into(),
            device,
        };
        self.ranges.insert(index, range);
        Ok(())
    }

    /// The guest reads at `addr`; returns whether a device claimed the access. Unclaimed, `data` is
    /// not changed.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        let Some((offset, range)) = self.find(addr, data.len()) else {
            return false;
        };
        lock(&range.device).read(offset, data);
        true
    }

    /// The guest writes `data` at `addr`; returns whether a device claimed the access.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        let Some((offset, range)) = self.find(addr, data.len()) else {
            return false;
        };
        lock(&range.device).write(offset, data);
        true
    }

    /// The name of the device at `addr`, and how far into its range that is.
    pub fn name(&self, addr: u64) -> Option<(&str, u64)> {
        let (offset, range) = self.find(addr, 1)?;
        Some((&range.name, offset))
    }

    /// All devices by address: first address, length, name, device.
    pub fn devices(&self) -> impl Iterator<Item = (u64, u64, &str, &Shared)> {
        let ranges = self.ranges.iter();
        ranges.map(|range| {
            let len = (range.last - range.base).saturating_add(1);
            (range.base, len, range.name.as_str(), &range.device)
        })
    }

    /// What the device there calls the register that an access at `addr` would reach now.
    pub fn register(&self, addr: u64, write: bool) -> Option<&'static str> {
        let (offset, range) = self.find(addr, 1)?;
        lock(&range.device).register(offset, write)
    }

    /// The device that holds all `len` bytes from `addr`. An access that leaves its device goes
    /// nowhere, as one across two chips' address decoders would.
    fn find(&self, addr: u64, len: usize) -> Option<(u64, &Range)> {
        let last = addr.checked_add(u64::try_from(len).ok()?.checked_sub(1)?)?;
        let range = self
            .ranges
            .get(self.ranges.partition_point(|range| range.last < addr))?;
        (range.base <= addr && last <= range.last).then(|| (addr - range.base, range))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Probe {
        log: Vec<(u64, Vec<u8>)>,
    }

    impl BusDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            assert!(offset != 0xbad, "a broken device");
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.log.push((offset, data.to_vec()));
        }
    }

    fn probe() -> Arc<Mutex<Probe>> {
        Arc::default()
    }

    #[test]
    fn an_access_reaches_its_device_with_an_offset() {
        let device = probe();
        let mut bus = Bus::new();
        bus.insert(0x3f8, 8, "probe", device.clone()).unwrap();
        let mut data = [0xff];
        assert_eq!(bus.name(0x3fa), Some(("probe", 2)));
        assert_eq!(bus.name(0x400), None);
        assert!(bus.read(0x3fa, &mut data));
        assert_eq!(data, [2]);
        assert!(bus.write(0x3ff, &[9]));
        assert_eq!(device.lock().unwrap().log, [(7, vec![9])]);
    }

    #[test]
    fn an_access_that_leaves_its_device_goes_nowhere() {
        let device = probe();
        let mut bus = Bus::new();
        bus.insert(0x3f8, 8, "probe", device.clone()).unwrap();
        bus.insert(0x400, 8, "probe", device.clone()).unwrap();
        bus.insert(u64::MAX - 3, 4, "probe", device.clone())
            .unwrap();
        let mut data = [0xff; 4];
        for addr in [0x3f6, 0x3fe, 0x406, u64::MAX] {
            assert!(!bus.read(addr, &mut data), "{addr:#x}");
            assert!(!bus.write(addr, &data), "{addr:#x}");
        }
        assert!(!bus.write(0x3f8, &[]));
        assert!(bus.write(u64::MAX - 3, &data));
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn overlapping_devices_are_refused() {
        let mut bus = Bus::new();
        bus.insert(0x100, 0x10, "probe", probe()).unwrap();
        bus.insert(0x110, 0x10, "probe", probe()).unwrap();
        for (base, len, other) in [
            (0x100, 0x10, 0x100),
            (0xff, 2, 0x100),
            (0x10f, 1, 0x100),
            (0x80, 0x1000, 0x100),
        ] {
            assert_eq!(
                bus.insert(base, len, "probe", probe()),
                Err(Error::Overlap { base, len, other }),
                "{base:#x}"
            );
        }
        assert_eq!(
            bus.insert(0x11f, 5, "probe", probe())
                .unwrap_err()
                .to_string()
                .lines()
                .count(),
            1
        );
        assert_eq!(
            bus.insert(5, 0, "probe", probe()),
            Err(Error::BadRange { base: 5, len: 0 })
        );
        assert!(bus.insert(u64::MAX, 2, "probe", probe()).is_err());
        bus.insert(0x120, 0x10, "probe", probe()).unwrap();
    }

    #[test]
    fn a_panicked_device_leaves_the_bus_usable() {
        let mut bus = Bus::new();
        bus.insert(0, 0x1000, "probe", probe()).unwrap();
        let bus = Arc::new(bus);
        let shared = bus.clone();
        assert!(
            std::thread::spawn(move || shared.read(0xbad, &mut [0]))
                .join()
                .is_err()
        );
        let mut data = [0];
        assert!(bus.read(3, &mut data));
        assert_eq!(data, [3]);
    }

    proptest! {
        #[test]
        fn lookup_agrees_with_a_linear_search(
            ranges in prop::collection::vec((0u64..200, 1u64..20), 0..20),
            addr in 0u64..220,
            len in 1usize..9,
        ) {
            let mut bus = Bus::new();
            let mut model: Vec<(u64, u64)> = Vec::new();
            for (base, count) in ranges {
                let free = model.iter().all(|&(b, c)| base + count <= b || b + c <= base);
                prop_assert_eq!(bus.insert(base, count, "probe", probe()).is_ok(), free);
                if free {
                    model.push((base, count));
                }
            }
            let inside = model.iter().any(|&(b, c)| b <= addr && addr + len as u64 <= b + c);
            prop_assert_eq!(bus.write(addr, &vec![0; len]), inside);
        }
    }
}
