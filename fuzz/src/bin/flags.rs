//! Values of flags.
#![no_main]

use hull_fuzz::flags::{Input, check};

libfuzzer_sys::fuzz_target!(|input: Input| check(&input));
