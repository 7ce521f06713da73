//! gdb's remote protocol.
#![no_main]

use hull_fuzz::gdb::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
