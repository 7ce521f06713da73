//! Symbols of a guest's kernel.
#![no_main]

use hull_fuzz::symbols::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
