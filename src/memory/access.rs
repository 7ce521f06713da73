//! A few bytes of guest memory at once, as virtqueues and headers of requests need them. vm-memory's `Bytes` goes
//! through an iterator over regions, some hundred instructions for each value; here the region is looked up, and
//! the iterator serves the rare bytes that lie in two.

use std::sync::atomic::Ordering;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::Result;
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, VolatileMemory, VolatileSlice,
};

use super::GuestMemory;
use super::bitmap::Dirty;

type Region = GuestRegionMmap<Dirty>;

/// The `len` bytes at `addr`, if all lie in one region.
#[inline]
pub fn slice(
    memory: &GuestMemory,
    addr: GuestAddress,
    len: usize,
) -> Option<VolatileSlice<'_, BS<'_, Dirty>>> {
    // There are a few regions, and most addresses lie in the first.
    let offset = |region: &Region| addr.0.checked_sub(region.start_addr().0);
    let inside = |region: &&Region| offset(region).is_some_and(|offset| offset < region.len());
    let region = memory.iter().find(inside)?;
    let offset = MemoryRegionAddress(offset(region)?);
    region.get_slice(offset, len).ok()
}

/// The value at `addr`, which the guest may be writing.
///
/// # Errors
/// It does not lie in guest memory.
pub fn read<T: ByteValued>(memory: &GuestMemory, addr: GuestAddress) -> Result<T> {
    let slice = slice(memory, addr, size_of::<T>());
    match slice.as_ref().and_then(|slice| slice.get_ref(0).ok()) {
        Some(value) => Ok(value.load()),
        None => memory.read_obj(addr),
    }
}

/// Write `value` at `addr`.
///
/// # Errors
/// It does not lie in guest memory.
pub fn write<T: ByteValued>(memory: &GuestMemory, value: T, addr: GuestAddress) -> Result<()> {
    let slice = slice(memory, addr, size_of::<T>());
    match slice.as_ref().and_then(|slice| slice.get_ref(0).ok()) {
        Some(place) => {
            place.store(value);
            Ok(())
        }
        None => memory.write_obj(value, addr),
    }
}

/// The 16 bits at `addr`, a multiple of 2, in one access.
///
/// # Errors
/// They do not lie in guest memory, or `addr` is odd.
pub fn load(memory: &GuestMemory, addr: GuestAddress, order: Ordering) -> Result<u16> {
    match slice(memory, addr, size_of::<u16>()) {
        Some(slice) => Ok(u16::from_le(slice.load(0, order)?)),
        None => memory.load(addr, order).map(u16::from_le),
    }
}

/// Set the 16 bits at `addr`, a multiple of 2, in one access.
///
/// # Errors
/// They do not lie in guest memory, or `addr` is odd.
pub fn store(memory: &GuestMemory, value: u16, addr: GuestAddress, order: Ordering) -> Result<()> {
    match slice(memory, addr, size_of::<u16>()) {
        Some(slice) => Ok(slice.store(value.to_le(), 0, order)?),
        None => memory.store(value.to_le(), addr, order),
    }
}

/// Fill `buffer` from `addr` on.
///
/// # Errors
/// Not all of it lies in guest memory.
pub fn read_slice(memory: &GuestMemory, buffer: &mut [u8], addr: GuestAddress) -> Result<()> {
    match slice(memory, addr, buffer.len()) {
        Some(slice) => {
            slice.copy_to(buffer);
            Ok(())
        }
        None => memory.read_slice(buffer, addr),
    }
}

/// Write `bytes` from `addr` on.
///
/// # Errors
/// Not all of it lies in guest memory.
pub fn write_slice(memory: &GuestMemory, bytes: &[u8], addr: GuestAddress) -> Result<()> {
    match slice(memory, addr, bytes.len()) {
        Some(slice) => {
            slice.copy_from(bytes);
            Ok(())
        }
        None => memory.write_slice(bytes, addr),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::dirty;
    use super::*;

    /// Two regions side by side, and one behind a hole.
    fn memory() -> GuestMemory {
        let ranges = [(0, 0x1000), (0x1000, 0x1000), (0x4000, 0x1000)];
        let ranges = ranges.map(|(start, len)| (GuestAddress(start), len));
        GuestMemory::from_ranges(&ranges).expect("memory")
    }

    /// Near the edges of the regions.
    fn addr() -> impl Strategy<Value = GuestAddress> {
        let edges = prop::sample::select(vec![0u64, 0x1000, 0x2000, 0x4000, 0x5000, u64::MAX]);
        (edges, -20i64..20).prop_map(|(edge, by)| GuestAddress(edge.wrapping_add_signed(by)))
    }

    proptest! {
        #[test]
        fn it_is_what_vm_memory_does(addr in addr(), bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let (ours, theirs) = (memory(), memory());
            for memory in [&ours, &theirs] {
                dirty::start(memory);
                for at in [0, 0x4000] {
                    let bytes: Vec<u8> = (0..0x1000u32).map(|n| (n % 251) as u8).collect();
                    memory.write_slice(&bytes, GuestAddress(at)).expect("there");
                }
                dirty::take(memory);
            }
            let told = |result: Result<()>| result.is_ok();
            let word = u64::from_le_bytes([7; 8]);
            prop_assert_eq!(read::<u64>(&ours, addr).ok(), theirs.read_obj(addr).ok());
            let (mut one, mut other) = (bytes.clone(), bytes.clone());
            let both = (read_slice(&ours, &mut one, addr), theirs.read_slice(&mut other, addr));
            prop_assert_eq!(told(both.0), told(both.1));
            prop_assert!(one == other || theirs.read_slice(&mut other, addr).is_err());
            let order = Ordering::Relaxed;
            prop_assert_eq!(load(&ours, addr, order).ok(), theirs.load(addr, order).ok());
            let both = (write_slice(&ours, &bytes, addr), theirs.write_slice(&bytes, addr));
            prop_assert_eq!(told(both.0), told(both.1));
            let both = (write(&ours, word, addr), theirs.write_obj(word, addr));
            prop_assert_eq!(told(both.0), told(both.1));
            let both = (store(&ours, 9, addr, order), theirs.store(9u16, addr, order));
            prop_assert_eq!(told(both.0), told(both.1));
            let content = |memory: &GuestMemory| {
                let mut all = vec![0; 0x3000];
                memory.read_slice(&mut all[..0x2000], GuestAddress(0)).expect("there");
                memory.read_slice(&mut all[0x2000..], GuestAddress(0x4000)).expect("there");
                all
            };
            prop_assert_eq!(content(&ours), content(&theirs));
            prop_assert_eq!(dirty::take(&ours), dirty::take(&theirs));
        }
    }
}
