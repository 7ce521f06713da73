//! Messages between hull and a guest's init.
#![no_main]

use hull_fuzz::messages::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
