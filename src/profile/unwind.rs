//! From a sample to the functions that were being called.
//!
//! Where RBP leads along a chain of frames, that is it. Kernels without frame pointers have their
//! stack searched instead: the next frame's return address is the nearest word that lies behind a
//! call of the function found last, or behind an indirect call. The call instructions are read from
//! the guest's text; without symbols only frame pointers help.

use std::collections::HashMap;

use super::sample::Sample;
use crate::memory::GuestMemory;
use crate::symbols::Symbols;

/// Deepest stack that is told whole; of a deeper one the outermost functions are left out.
const DEPTH_MOST: usize = 128;
/// Words that are searched for a function's return address.
const WINDOW: usize = 256;
/// Return addresses whose call is remembered.
const CALLS_MOST: usize = 1 << 16;
/// Longest call instruction that is recognised.
const CALL_MOST: usize = 7;

/// What stands before a return address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// No call.
    None,
    /// A call of this address.
    Direct(u64),
    /// A call through a register or memory.
    Indirect,
}

/// Finds callers.
#[derive(Debug)]
pub struct Unwinder {
    symbols: Symbols,
    calls: HashMap<u64, Call>,
}

impl Unwinder {
    /// For a guest with these symbols.
    pub fn new(symbols: Symbols) -> Self {
        Self {
            symbols,
            calls: HashMap::new(),
        }
    }

    /// The functions of a sample of the kernel, innermost first, as addresses inside each: its
    /// first, where that is known, so that samples of a function are one.
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
        while places.len() < DEPTH_MOST {
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

    /// Return addresses found on the stack.
    fn by_search(&mut self, sample: &Sample, memory: &GuestMemory) -> Vec<u64> {
        let words: Vec<u64> = words(&sample.stack).collect();
        let mut places = Vec::new();
        let mut function = self.start(sample.rip);
        let mut from = 0;
        while places.len() < DEPTH_MOST {
            let Some((index, back)) = self.caller_of(function, &words, from, sample, memory) else {
                break;
            };
            places.push(back.wrapping_sub(1));
            function = self.start(back.wrapping_sub(1));
            from = index + 1;
        }
        places
    }

    /// The nearest word from index `from` on that lies behind a call of `function`: directly or, as
    /// good, through a pointer; or else behind a call of another, which may have jumped to it.
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

    /// The first address of the function around `place`, or `place`.
    fn start(&self, place: u64) -> u64 {
        match self.symbols.lookup(place) {
            Some((_, offset)) => place - offset,
            None => place,
        }
    }

    /// What stands before the address `back`.
    fn call(&mut self, back: u64, sample: &Sample, memory: &GuestMemory) -> Call {
        if let Some(known) = self.calls.get(&back) {
            return *known;
        }
        let mut bytes = [0; CALL_MOST];
        let start = back.wrapping_sub(CALL_MOST as u64);
        let call = match sample.paging.look(memory, start, &mut bytes) {
            CALL_MOST => self.decode(&bytes, back),
            _ => Call::None,
        };
        if self.calls.len() < CALLS_MOST {
            self.calls.insert(back, call);
        }
        call
    }

    fn decode(&self, bytes: &[u8; CALL_MOST], back: u64) -> Call {
        match call_before(bytes, back) {
            // Where indirect branches are guarded they are calls of a thunk.
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
pub fn call_before(bytes: &[u8; CALL_MOST], back: u64) -> Call {
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
        reg == 2 && at + 2 + sib + displacement == CALL_MOST
    });
    match indirect {
        true => Call::Indirect,
        false => Call::None,
    }
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
