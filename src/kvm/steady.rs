//! Whether the clock of this machine counts instructions.

use std::time::{Duration, Instant};

/// Whether each instruction takes 1 ns by the clock, as in an emulator that counts them (QEMU's
/// `-icount shift=0`): then a time says how much work was done, and repeats. Takes some 10 ms.
pub fn counts_instructions() -> bool {
    const TURNS: u32 = 1_000_000;
    const TRIES: usize = 5;
    // An interrupt of the host makes a try longer.
    let shortest = (0..TRIES).map(|_| two_instructions(TURNS)).min();
    let expected = Duration::from_nanos(2 * u64::from(TURNS));
    shortest.is_some_and(|time| time.abs_diff(expected) * 200 < expected)
}

/// The time of `turns`, at least 1, of a loop of two instructions.
fn two_instructions(turns: u32) -> Duration {
    let started = Instant::now();
    // SAFETY: the loop changes a register, which is an operand, and the flags alone.
    unsafe {
        std::arch::asm!(
            "2: dec {turns:e}",
            "jnz 2b",
            turns = inout(reg) turns => _,
            options(nomem, nostack),
        );
    }
    started.elapsed()
}
