//! From a sample to its call stack.
//!
//! If RBP starts a chain of frames, that is used. For a kernel without frame pointers the stack is
//! searched instead: the next return address is the nearest word that points right after a call of
//! the function found last, or after an indirect call. The call instructions are read from the
//! guest's code; without symbols only frame pointers work.

use std::collections::HashMap;

use super::sample::Sample;
use crate::memory::GuestMemory;
use crate::symbols::Symbols;

/// Most functions of a stack; of a deeper one the outermost functions are left out.
const MAX_DEPTH: usize = 128;
/// Words of the stack that are searched for a function's return address.
const WINDOW: usize = 256;
/// Most return addresses whose call is cached.
const MAX_CALLS: usize = 1 << 16;
/// Longest call instruction that is recognised, in bytes.
const MAX_CALL: usize = 7;

/// The instruction before a return address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The instruction is not a call.
    None,
    /// A call of this address.
    Direct(u64),
    /// A call through a register or memory.
    Indirect,
}

/// Finds the callers of a sample.
#[derive(Debug)]
pub struct Unwinder {
    symbols: Symbols,
    calls: HashMap<u64, Call>,
}

impl Unwinder {
    /// An unwinder for a guest with these symbols.
    pub fn new(symbols: Symbols) -> Self {
        Self {
            symbols,
            calls: HashMap::new(),
        }
    }

    /// The functions of a sample in the kernel, innermost first, each by its first address if that is
    /// known, so that all samples of a function count together.
    pub fn functions(&mut self, sample: &Sample, memory: &GuestMemory) -> Vec<u64> {
        let mut places = vec![sample.rip];
        let by_frames = self.by_frame_pointers(sample, memory);
        match by_frames.len() {
            0 | 1 => places.extend(self.by_search(sample, memory)),
            _ => places.extend(by_frames),
        }
        places.into_iter().map(|place| self.start(place)).collect()
    }

    /// Return addresses along the chain that RBP starts.
    fn by_frame_pointers(&mut self, sample: &Sample, memory: &GuestMemory) -> Vec<u64> {
        let mut places = Vec::new();
        let mut frame = sample.rbp;
        while places.len() < MAX_DEPTH {
            let (Some(next), Some(back)) = (
                word_at(sample, frame),
                frame.checked_add(8).and_then(|at| word_at(sample, at)),
            ) else {
                break;
            };
            if self.call(back, sample, memory) == Call::None {
                break;
            }
            places.push(back.wrapping_sub(1));
            if next <= frame {
                break;
            }
            frame = next;
        }
        places
    }

    /// Return addresses found by searching the stack.
    fn by_search(&mut self, sample: &Sample, memory: &GuestMemory) -> Vec<u64> {
        let words: Vec<u64> = words(&sample.stack).collect();
        let mut places = Vec::new();
        let mut function = self.start(sample.rip);
        let mut from = 0;
        while places.len() < MAX_DEPTH {
            let Some((index, back)) = self.caller_of(function, &words, from, sample, memory) else {
                break;
            };
            places.push(back.wrapping_sub(1));
            function = self.start(back.wrapping_sub(1));
            from = index + 1;
        }
        places
    }

    /// The nearest word from index `from` on that points right after a direct call of `function` or an
    /// indirect call; or else after a call of another function, which may have jumped to it.
    fn caller_of(
        &mut self,
        function: u64,
        words: &[u64],
        from: usize,
        sample: &Sample,
        memory: &GuestMemory,
    ) -> Option<(usize, u64)> {
        let mut second = None;
        for (index, &word) in words.iter().enumerate().skip(from).take(WINDOW) {
            if self.symbols.lookup(word).is_none() {
                continue;
            }
            match self.call(word, sample, memory) {
                Call::None => {}
                Call::Indirect => return Some((index, word)),
                Call::Direct(target) if self.start(target) == function => {
                    return Some((index, word));
                }
                Call::Direct(_) => second = second.or(Some((index, word))),
            }
        }
        second
    }

    /// The first address of the function that contains `place`, or `place`.
    fn start(&self, place: u64) -> u64 {
        match self.symbols.lookup(place) {
            Some((_, offset)) => place - offset,
            None => place,
        }
    }

    /// The call before the address `back`.
    fn call(&mut self, back: u64, sample: &Sample, memory: &GuestMemory) -> Call {
        if let Some(known) = self.calls.get(&back) {
            return *known;
        }
        let mut bytes = [0; MAX_CALL];
        let start = back.wrapping_sub(MAX_CALL as u64);
        let call = match sample.paging.look(memory, start, &mut bytes) {
            MAX_CALL => self.decode(&bytes, back),
            _ => Call::None,
        };
        if self.calls.len() < MAX_CALLS {
            self.calls.insert(back, call);
        }
        call
    }

    fn decode(&self, bytes: &[u8; MAX_CALL], back: u64) -> Call {
        match call_before(bytes, back) {
            // Kernels with retpolines make indirect calls through a thunk.
            Call::Direct(target)
                if self
                    .symbols
                    .lookup(target)
                    .is_some_and(|(name, _)| name.starts_with("__x86_indirect_")) =>
            {
                Call::Indirect
            }
            call => call,
        }
    }
}

/// The call that ends at the end of `bytes`, which is the address `back` (Intel SDM 2A, CALL: E8
/// with a displacement of 32 bits; FF /2 with any operand).
pub fn call_before(bytes: &[u8; MAX_CALL], back: u64) -> Call {
    let [.., opcode, d0, d1, d2, d3] = *bytes;
    if opcode == 0xe8 {
        let distance = i32::from_le_bytes([d0, d1, d2, d3]);
        return Call::Direct(back.wrapping_add_signed(distance.into()));
    }
    let indirect = bytes.windows(2).enumerate().any(|(at, pair)| {
        let &[0xff, modrm] = pair else { return false };
        let (mode, reg, rm) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
        let sib = usize::from(mode != 3 && rm == 4);
        let displacement = match (mode, rm) {
            (0, 5) => 4,
            (0, 4) if bytes.get(at + 2).is_some_and(|sib| sib & 7 == 5) => 4,
            (1, _) => 1,
            (2, _) => 4,
            _ => 0,
        };
        reg == 2 && at + 2 + sib + displacement == MAX_CALL
    });
    if indirect { Call::Indirect } else { Call::None }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| u64::from_le_bytes(*word))
}

/// The word at `address` of the sample's stack.
fn word_at(sample: &Sample, address: u64) -> Option<u64> {
    let start = usize::try_from(address.checked_sub(sample.rsp)?).ok()?;
    let bytes = sample.stack.get(start..start.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}
